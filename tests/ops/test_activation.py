"""VJPs of onnxplain.ops.activation against finite differences."""

from __future__ import annotations

import numpy as np
import pytest

from onnxplain.ops import activation
from tests.reference import Case, check_vjp, rng

X = rng().normal(size=(2, 3, 4)).astype(np.float32) + 0.01  # no element at a kink

CASES = [Case(op, [X]) for op in ("Relu", "Sigmoid", "Tanh", "Exp")]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_vjp(case: Case) -> None:
    check_vjp(case)


def test_every_row_has_a_case() -> None:
    assert {c.op for c in CASES} == set(activation.TABLE)
