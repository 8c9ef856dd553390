"""VJPs of onnxplain.ops.quantize against finite differences."""

from __future__ import annotations

import numpy as np
import pytest

from onnxplain.ops import quantize
from tests.reference import Case, check_vjp, rng

X = rng().integers(-100, 100, (3, 4, 5)).astype(np.int8)
R = rng(1)


def scale(*shape: int) -> np.ndarray:
    return R.uniform(0.01, 0.1, shape).astype(np.float32)


def point(*shape: int) -> np.ndarray:
    return R.integers(-9, 9, shape).astype(np.int8)


CASES = [
    Case("DequantizeLinear", [X, scale()]),
    Case("DequantizeLinear", [X, scale(), point()]),
    Case("DequantizeLinear", [X.astype(np.uint8), scale(1), point(1).astype(np.uint8)]),
    *(Case("DequantizeLinear", [X, scale(n), point(n)], {"axis": a}) for a, n in ((0, 3), (1, 4), (-1, 5))),
    Case("DequantizeLinear", [X, scale(3, 2, 5), point(3, 2, 5)], {"axis": 1, "block_size": 2}),
    Case("DequantizeLinear", [X, scale(3, 4, 2)], {"axis": -1, "block_size": 3}),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_vjp(case: Case) -> None:
    check_vjp(case)


def test_every_row_has_a_case() -> None:
    assert {c.op for c in CASES} == set(quantize.TABLE)
