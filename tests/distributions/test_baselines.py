"""Baselines in the shape and the dtype of an input."""

from __future__ import annotations

import numpy as np
import pytest

from onnxplain.distributions.baselines import baseline_like
from onnxplain.errors import OptionError


def test_baseline_like() -> None:
    x = np.ones((2, 3, 4), np.float32)
    for baseline in (0.5, np.zeros(4), np.zeros((3, 1)), np.zeros((1, 3, 4)), np.zeros((2, 1, 1), int)):
        array = baseline_like(baseline, x, "x")
        assert array.shape == x.shape
        assert array.dtype == x.dtype
    for baseline in (np.zeros(3), np.zeros((3, 3, 4)), np.zeros((1, 2, 3, 4))):
        with pytest.raises(OptionError, match=r"does not fit the input 'x' of shape \(2, 3, 4\)"):
            baseline_like(baseline, x, "x")
