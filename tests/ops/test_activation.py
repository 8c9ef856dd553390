"""VJPs of onnxplain.ops.activation: against finite differences, and against torch at kinks and far out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from onnxplain.ops import activation
from tests.reference import Case, check_vjp, gradients, rng

R = rng()


def between(low: float, high: float, *shape: int) -> np.ndarray:
    """Evenly spread numbers in random order, none of them at a kink of the cases below."""
    return R.permuted(np.linspace(low, high, int(np.prod(shape))) + 0.00123).reshape(shape).astype(np.float32)


DOMAINS = {
    **dict.fromkeys(("Acos", "Asin", "Atanh"), (-0.9, 0.9)),
    **dict.fromkeys(("Log", "Sqrt", "Reciprocal"), (0.2, 5)),
    "Acosh": (1.1, 5),
    "Tan": (-1.3, 1.3),
}
ATTRIBUTES: dict[str, list[Mapping[str, Any]]] = {
    "Celu": [{"alpha": 0.4}, {"alpha": 2.5}],
    "Elu": [{"alpha": 0.4}, {"alpha": 2.5}],
    "Gelu": [{"approximate": "tanh"}],
    "HardSigmoid": [{"alpha": 0.3, "beta": 0.4}],
    "LeakyRelu": [{"alpha": 0.3}, {"alpha": -0.5}, {"alpha": 0.0}],
    "Selu": [{"alpha": 0.7, "gamma": 1.3}, {"alpha": 1.0, "gamma": 2.0}],
    "Shrink": [{"lambd": 0.8, "bias": 0.3}, {"lambd": -0.5, "bias": 0.2}],
    "ThresholdedRelu": [{"alpha": 0.6}, {"alpha": -1.1}],
}
UNARY = sorted(set(activation.TABLE) - {"Clip", "PRelu"})
SLOPES: list[tuple[int, ...]] = [(2, 3, 4), (3, 1), (4,), (1,), (), (1, 1, 4)]
LOW, HIGH = np.float32(-1.3), np.float32(0.9)
X = between(-4, 4, 2, 3, 4)

CASES = [
    *(Case(op, [between(*DOMAINS.get(op, (-4, 4)), *shape)]) for op in UNARY for shape in ((2, 3, 4), (6,))),
    *(Case(op, [np.asarray(x, np.float32)]) for op in ("Abs", "Relu", "Neg", "Elu", "Gelu") for x in (-0.7, 0.7)),
    *(Case(op, [X], attrs) for op, rows in ATTRIBUTES.items() for attrs in rows),
    *(Case("PRelu", [X, between(-0.5, 0.6, *shape)], constant=c) for shape in SLOPES for c in ([], [0], [1])),
    *(
        Case("Clip", [X, low, high], constant=constant)
        for low, high in ((None, None), (LOW, None), (None, HIGH), (LOW, HIGH), (HIGH, LOW))
        for constant in ([], [1, 2], [0, 1], [0, 2])
        if any(i not in constant and bound is not None for i, bound in enumerate((X, low, high)))
    ),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_vjp(case: Case) -> None:
    check_vjp(case)


def test_every_row_has_a_case() -> None:
    assert {c.op for c in CASES} == set(activation.TABLE)


TORCH: dict[str, tuple[Callable[..., torch.Tensor], Mapping[str, Any]]] = {
    **{op: (getattr(torch, op.lower()), {}) for op in UNARY if hasattr(torch, op.lower())},
    **{op: (getattr(F, op.lower()), {}) for op in ("Elu", "Gelu", "HardSwish", "Mish", "Softplus", "Softsign")},
    "Gelu tanh": (lambda x: F.gelu(x, approximate="tanh"), {"approximate": "tanh"}),
    "HardSigmoid": (F.hardsigmoid, {"alpha": 1 / 6, "beta": 0.5}),
    "LeakyRelu": (lambda x: F.leaky_relu(x, 0.25), {"alpha": 0.25}),
    "Elu 2": (lambda x: F.elu(x, 2), {"alpha": 2.0}),
    "Celu 2": (lambda x: F.celu(x, 2), {"alpha": 2.0}),
    "Shrink": (lambda x: F.softshrink(x, 0.5), {"lambd": 0.5, "bias": 0.5}),
    "ThresholdedRelu": (lambda x: F.threshold(x, 1, 0), {"alpha": 1.0}),
}
PERIODIC = ("Cos", "Sin", "Tan")  # which each library reduces in its own way far out
POINTS = np.array([0, 0.5, 1, 3, 6, 10, 20, 40, 100, 1e20], np.float32)
POINTS = np.concatenate([-POINTS, POINTS])


def torch_gradient(function: Callable[..., torch.Tensor], *arrays: np.ndarray) -> list[np.ndarray]:
    """The gradient of the function's sum, in float64."""
    points = [torch.tensor(a, dtype=torch.float64, requires_grad=True) for a in arrays]
    function(*points).sum().backward()
    return [np.zeros(p.shape) if p.grad is None else p.grad.numpy() for p in points]


def test_torch_has_every_row() -> None:
    assert {name.split()[0] for name in TORCH} == set(UNARY)


@pytest.mark.parametrize("name", TORCH)
def test_kinks_and_far_points_as_in_torch(name: str) -> None:
    op, (function, attrs) = name.split()[0], TORCH[name]
    x = POINTS[np.abs(POINTS) < 1e4] if op in PERIODIC else POINTS
    gradient = gradients(Case(op, [x], attrs), {"y0": np.ones_like(x)})["x0"]
    with np.errstate(over="ignore"):
        expected = torch_gradient(function, x)[0].astype(np.float32)
    # 1e-6 absolute: where an exponential tail meets 1, float32 has no more to give.
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-6)


def test_prelu_at_zero_as_in_torch() -> None:
    x, slope = np.array([[-1, 0, 1]], np.float32), np.array([0.25, 0.5, 0.75], np.float32)
    results = gradients(Case("PRelu", [x, slope]), {"y0": np.ones_like(x)})
    for result, expected in zip(results.values(), torch_gradient(F.prelu, x, slope), strict=True):
        np.testing.assert_array_equal(result, expected)


def test_clip_at_its_bounds_as_relu6() -> None:
    x = np.array([-1, 0, 3, 6, 7], np.float32)
    case = Case("Clip", [x, np.float32(0), np.float32(6)])
    results = gradients(case, {"y0": np.ones_like(x)})
    np.testing.assert_array_equal(results["x0"], torch_gradient(F.relu6, x)[0])
    assert (results["x1"], results["x2"]) == (2, 2)  # what reached a bound speaks for the bound
