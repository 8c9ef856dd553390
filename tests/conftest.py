"""Tests that need a GPU are skipped where there is none, and say so."""

from __future__ import annotations

import onnxruntime
import pytest


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("CUDAExecutionProvider is not available in this ONNX Runtime")
