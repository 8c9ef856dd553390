"""Random inputs for trial runs, and the comparison of their results."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from onnxplain.graph.ir import BATCH, Value

Array = np.ndarray[Any, Any]

_FREE_SIZE = 64  # elements along free axes other than the batch; sizes of images often must be multiples of 32
_TOLERANCE = 1e-3  # share of an output's largest magnitude: float32 rounding in deep networks stays well below


def random_feeds(inputs: Sequence[Value], batch: int) -> dict[str, Array]:
    """Make inputs of the declared shapes: normally distributed numbers, or zeros and ones for integers."""
    random = np.random.default_rng(0)
    feeds = {}
    for value in inputs:
        shape = [d if isinstance(d, int) else batch if d == BATCH else _FREE_SIZE for d in value.shape or ()]
        array = np.asarray(random.normal(size=shape) if value.is_float else random.integers(0, 2, shape))
        feeds[value.name] = (array.astype(str) if value.dtype == object else array).astype(value.dtype)
    return feeds


def close(a: Array, b: Array) -> bool:
    """Whether two results are the same up to rounding."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if a.dtype.kind in "biuOSU":
        return bool(np.array_equal(a, b))
    a, b = a.astype(np.float64), b.astype(np.float64)
    scale = np.max(np.abs(a[np.isfinite(a)]), initial=0)
    return bool(np.allclose(a, b, rtol=0, atol=_TOLERANCE * scale, equal_nan=True))
