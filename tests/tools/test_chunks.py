from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest

from tools import chunks

DIGITS = Path(__file__).parents[2] / "models" / "digits_cnn.onnx"


def test_every_size_is_measured() -> None:
    found = chunks.seconds(DIGITS, "gradient", [1, 3], budget=0)
    assert found.keys() == {1, 3}
    assert min(found.values()) > 0


@pytest.mark.skipif(sys.platform != "linux", reason="peaks are read from /proc")
def test_the_estimate_is_that_of_one_sample() -> None:
    estimate, _ = chunks.peaks(DIGITS, "gradient")
    shapes = [(16, 8, 8), (16, 8, 8), (16, 4, 4), (32, 4, 4), (32, 4, 4), (32, 2, 2), (128,)]  # of all activations
    sizes = [4 * math.prod(shape) for shape in shapes]  # bytes
    assert sizes[0] + sizes[1] <= estimate <= 2 * sum(sizes)  # Relu holds two; walking back, each has a cotangent
