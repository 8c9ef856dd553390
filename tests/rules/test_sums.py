"""Norm and Pass: everything in a relevance walk that is neither a linear layer nor attention."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from onnxplain.rules.sums import Norm, Pass, Terms
from tests.reference import Case, relative_error, rng
from tests.rules.dense import Array, stabilized
from tests.rules.one import relevances

TOLERANCE = 2e-4  # as for the other rules


def normal(*shape: int) -> Array:
    return rng(sum(shape)).normal(size=shape).astype(np.float32)


NORM: list[tuple[Case, Callable[..., torch.Tensor]]] = [
    (Case("Add", [normal(2, 3), normal(2, 3)]), torch.add),
    (Case("Add", [normal(2, 3), normal(1, 3)]), torch.add),
    (Case("Sum", [normal(2, 3), normal(3, 2, 3), normal(3)]), lambda a, b, c: a + b + c),
    (Case("Sub", [normal(2, 3), normal(3, 3)[:2]]), torch.sub),
    (Case("Mean", [normal(2, 3), normal(3)]), lambda a, b: (a + b) / 2),
    (Case("ReduceMean", [normal(2, 3, 4), np.array([1, 2])], {"keepdims": 0}), lambda a: a.mean((1, 2))),
    (Case("ReduceSum", [normal(2, 3, 4), np.array([1])], {"keepdims": 1}), lambda a: a.sum(1, keepdim=True)),
    (Case("GlobalAveragePool", [normal(2, 3, 4, 2)]), lambda a: a.mean((2, 3), keepdim=True)),
    (Case("Einsum", [normal(2, 3, 4)], {"equation": "bij->bi"}), lambda a: a.sum(2)),
    (
        Case("AveragePool", [normal(2, 2, 5, 6)], {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [1, 0, 1, 0]}),
        lambda a: F.avg_pool2d(a, (3, 2), 2, (1, 0), count_include_pad=False),
    ),
]


@pytest.mark.parametrize(("case", "function"), NORM, ids=[str(c) for c, _ in NORM])
def test_norm(case: Case, function: Callable[..., torch.Tensor]) -> None:
    """R_i = x_i sum_j J_ji R_j / S(y_j), for every input of the sum."""
    points = [torch.tensor(a, dtype=torch.float64, requires_grad=True) for a in case.inputs if a.dtype.kind == "f"]
    y = function(*points)
    values = y.detach().numpy()
    r = values * rng(1).uniform(-1, 2, values.shape)
    gradients = torch.autograd.grad(y, points, torch.tensor(r / stabilized(values, 1e-6)))
    expected = [(x * g).detach().numpy() for x, g in zip(points, gradients, strict=True)]
    assert np.isclose(sum(e.sum() for e in expected), r.sum(), rtol=1e-4)
    for free in (False, True):
        results = relevances(case, Norm(), r, free)
        assert len(results) == len(expected)
        for result, wanted in zip(results.values(), expected, strict=True):
            assert relative_error(result, wanted) <= TOLERANCE


def test_norm_of_zeros_is_finite() -> None:
    zeros = np.zeros((2, 3), np.float32)
    for result in relevances(Case("Add", [zeros, zeros]), Norm(), np.ones((2, 3)), True).values():
        np.testing.assert_array_equal(result, zeros)
    opposite = relevances(Case("Sub", [zeros + 1, zeros + 1]), Norm(), np.ones((2, 3)), True)
    np.testing.assert_allclose(sum(opposite.values()), zeros)


TERMS: list[tuple[Case, Callable[[Array], Array]]] = [
    (Case("ReduceSumSquare", [normal(2, 3, 4), np.array([1])]), np.square),
    (Case("ReduceL2", [normal(2, 3, 4), np.array([1])]), np.square),
    (Case("ReduceL1", [normal(2, 3, 4), np.array([1])]), np.abs),
    (Case("ReduceLogSum", [np.abs(normal(2, 3, 4)), np.array([1])]), lambda x: x),
    (Case("ReduceLogSumExp", [normal(2, 3, 4), np.array([1])]), np.exp),
    (Case("GlobalLpPool", [normal(2, 3, 4)], {"p": 3}), lambda x: np.abs(x) ** 3),
]


@pytest.mark.parametrize(("case", "term"), TERMS, ids=[str(c) for c, _ in TERMS])
def test_terms(case: Case, term: Callable[[Array], Array]) -> None:
    axis = 2 if case.op == "GlobalLpPool" else 1
    terms = term(case.inputs[0].astype(float))
    r = np.take(normal(2, 3, 4), [0], axis)
    expected = terms / terms.sum(axis, keepdims=True) * r
    for free in (False, True):
        (result,) = relevances(case, Terms(), r, free).values()
        assert relative_error(result, expected) <= TOLERANCE


def test_terms_of_a_determinant() -> None:
    """Each is in one of the n! products that make y times its row and column: all together have n y."""
    x = normal(2, 3, 3)
    (result,) = relevances(Case("Det", [x]), Terms(), np.ones(2), True).values()
    y = np.linalg.det(x.astype(float))[:, None, None]
    assert relative_error(result, x * y * np.linalg.inv(x.astype(float)).mT / (3 * y)) <= TOLERANCE
    np.testing.assert_allclose(result.sum((1, 2)), 1, rtol=1e-3)


def test_norm_of_a_batch_normalisation() -> None:
    """R_x = scale x R / y: the shift keeps its share."""
    x, r = normal(2, 3), normal(3, 3)[:2]
    scale, bias, mean, variance = (normal(3, n)[:, 0] ** 2 + 0.1 for n in range(1, 5))
    case = Case("BatchNormalization", [x, scale, bias, mean, variance], {"epsilon": 1e-5}, constant=(1, 2, 3, 4))
    factor = scale.astype(float) / np.sqrt(variance + 1e-5)
    expected = x * factor * r / stabilized((x - mean) * factor + bias, 1e-6)
    for free in (False, True):
        (result,) = relevances(case, Norm(), r, free).values()
        assert relative_error(result, expected) <= TOLERANCE


def test_what_bounds_an_input_gets_nothing() -> None:
    """A Clip whose bounds depend on the explained input, too: the first input gets all, once."""
    results = relevances(Case("Clip", [normal(2, 3), np.float32(0), np.float32(6)]), Pass(), normal(2, 3), False)
    assert list(results) == ["x0"]


PASS = [
    Case("Relu", [normal(2, 3)]),
    Case("LeakyRelu", [normal(2, 3)], {"alpha": 0.1}),
    Case("Sigmoid", [normal(2, 3)]),
    Case("Clip", [normal(2, 3), np.float32(0), np.float32(6)], constant=(1, 2)),
    Case("Mul", [normal(2, 3), normal(3)], constant=(1,)),
    Case("Add", [normal(3), normal(2, 3)], constant=(0,)),
    Case("Sub", [normal(3), normal(2, 3)], constant=(0,)),
    Case("Div", [normal(2, 3), normal(3)], constant=(1,)),
    Case("BatchNormalization", [normal(2, 3), *(normal(3) ** 2 for _ in range(4))], constant=(1, 2, 3, 4)),
]


@pytest.mark.parametrize("case", PASS, ids=str)
def test_pass(case: Case) -> None:
    r = normal(2, 3)
    for free in (False, True):
        (result,) = relevances(case, Pass(), r, free).values()
        np.testing.assert_array_equal(result, r)


def test_pass_sums_what_was_broadcast() -> None:
    r = normal(2, 3)
    for free in (False, True):
        (result,) = relevances(Case("Add", [normal(1, 3), normal(2, 3)], constant=(1,)), Pass(), r, free).values()
        np.testing.assert_allclose(result, r.sum(0, keepdims=True), rtol=1e-6)
