"""Tests run on the CPU, where float32 is float32; those marked ``gpu`` run on a GPU or are skipped."""

from __future__ import annotations

import onnxruntime
import pytest

AVAILABLE = onnxruntime.get_available_providers()


def pytest_runtest_setup(item: pytest.Item) -> None:
    gpu = item.get_closest_marker("gpu") is not None
    if gpu and "CUDAExecutionProvider" not in AVAILABLE:
        pytest.skip("CUDAExecutionProvider is not available in this ONNX Runtime")
    onnxruntime.get_available_providers = lambda: AVAILABLE if gpu else ["CPUExecutionProvider"]
