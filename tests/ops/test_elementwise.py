"""VJPs of onnxplain.ops.elementwise against finite differences."""

from __future__ import annotations

import numpy as np
import pytest

from onnxplain.ops import elementwise
from tests.reference import Case, check_vjp, rng

R = rng()


def pair(*shapes: tuple[int, ...]) -> list[np.ndarray]:
    return [R.normal(size=s).astype(np.float32) for s in shapes]


CASES = [
    Case(op, pair(*shapes))
    for op in ("Add", "Mul")
    for shapes in [((2, 3), (2, 3)), ((2, 3, 4), (3, 1)), ((3, 1), (2, 3, 4)), ((2, 1, 4), (1, 3, 1)), ((4,), ())]
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_vjp(case: Case) -> None:
    check_vjp(case)


def test_every_row_has_a_case() -> None:
    assert {c.op for c in CASES} == set(elementwise.TABLE)
