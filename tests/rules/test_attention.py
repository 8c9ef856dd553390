"""Products of activations and softmax (AttnLRP), and the rectifiers' rules, by their formulas."""

from __future__ import annotations

import numpy as np
import pytest

from onnxplain.rules.attention import Signal, SoftmaxTaylor, Standardize, Uniform
from onnxplain.rules.relu import BetaSmooth, Deconvnet, GuidedBackprop
from tests.reference import Case, relative_error, rng
from tests.rules.dense import Array, stabilized
from tests.rules.one import relevances

TOLERANCE = 2e-4  # as for the other rules


def normal(*shape: int) -> Array:
    return rng(sum(shape)).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("free", [False, True])
def test_a_product_of_two_gives_half_to_each(free: bool) -> None:
    a, b, r = normal(2, 3), normal(3, 3)[:2], normal(4, 3)[:2]
    for op in ("Mul", "Pow"):
        results = relevances(Case(op, [abs(a), b]), Uniform(), r, free)
        assert len(results) == 2
        for result in results.values():
            np.testing.assert_array_equal(result, r / 2)


@pytest.mark.parametrize("free", [False, True])
def test_a_matrix_product_of_two(free: bool) -> None:
    """R_A = A ((R / 2 S(O)) B^T), R_B = B (A^T (R / 2 S(O)))."""
    a, b = normal(2, 3, 4).astype(float), normal(2, 4, 5).astype(float)
    o = a @ b
    r = o * rng(1).uniform(-1, 2, o.shape)
    s = r / (2 * stabilized(o, 1e-6))
    results = relevances(Case("MatMul", [a, b]), Uniform(), r, free)
    assert relative_error(results["x0"], a * (s @ b.swapaxes(1, 2))) <= TOLERANCE
    assert relative_error(results["x1"], b * (a.swapaxes(1, 2) @ s)) <= TOLERANCE
    assert np.isclose(sum(x.sum() for x in results.values()), r.sum(), rtol=1e-4)


def test_a_product_of_three_gives_a_third_to_each() -> None:
    factors = [normal(3), normal(4)[:3], normal(5)[:3]]
    case = Case("Einsum", factors, {"equation": "i,i,i->i"})
    for result in relevances(case, Uniform(), np.ones(3), False).values():
        np.testing.assert_allclose(result, np.full(3, 1 / 3), rtol=1e-3)


@pytest.mark.parametrize("free", [False, True])
def test_a_summand_of_a_product_keeps_its_share(free: bool) -> None:
    """y = A B + c: c gets c R / y, A and B half of the rest each."""
    a, b, c = normal(3, 4).astype(float), normal(4, 5).astype(float), normal(5).astype(float)
    y = a @ b + c
    r = y * rng(1).uniform(-1, 2, y.shape)
    results = relevances(Case("Gemm", [a, b, c]), Uniform(), r, free)
    s = r / stabilized(y, 1e-6)
    for result, expected in zip(results.values(), (a * (s @ b.T) / 2, b * (a.T @ s) / 2, (c * s).sum(0)), strict=True):
        assert relative_error(result, expected) <= TOLERANCE


@pytest.mark.parametrize("free", [False, True])
def test_all_factors_of_a_reduced_product_get_the_same(free: bool) -> None:
    r = normal(2, 1, 4)
    for x in (normal(2, 3, 4), np.zeros((2, 3, 4), np.float32)):
        (result,) = relevances(Case("ReduceProd", [x, np.array([1])]), Uniform(), r, free).values()
        np.testing.assert_allclose(result, np.broadcast_to(r / 3, x.shape), rtol=1e-6)


@pytest.mark.parametrize("free", [False, True])
def test_a_signal_takes_all(free: bool) -> None:
    a, b, r = normal(2, 3), normal(3, 3)[:2], normal(4, 3)[:2]
    for index in (0, 1):
        results = relevances(Case("Mul", [a, b]), Signal(index), r, free)
        assert list(results) == [f"x{index}"]
        np.testing.assert_array_equal(results[f"x{index}"], r)
    weights, values = np.abs(normal(2, 3, 4)).astype(float), normal(2, 4, 5).astype(float)
    o = weights @ values
    r = o * rng(1).uniform(-1, 2, o.shape)
    results = relevances(Case("MatMul", [weights, values]), Signal(1), r, free)
    assert list(results) == ["x1"]
    expected = values * (weights.swapaxes(1, 2) @ (r / stabilized(o, 1e-6)))
    assert relative_error(results["x1"], expected) <= TOLERANCE


@pytest.mark.parametrize("free", [False, True])
def test_a_quotient_belongs_to_the_dividend(free: bool) -> None:
    r = normal(2, 3)
    results = relevances(Case("Div", [normal(2, 3), 1 + normal(2, 1) ** 2]), Uniform(), r, free)
    assert list(results) == ["x0"]
    np.testing.assert_array_equal(results["x0"], r)


def softmax(x: Array, axis: int) -> Array:
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


@pytest.mark.parametrize("free", [False, True])
@pytest.mark.parametrize("axis", [-1, 1])
def test_softmax_taylor(axis: int, free: bool) -> None:
    """R_x = x (R - y sum R)."""
    x, r = normal(2, 3, 4).astype(float), normal(2, 4, 3).reshape(2, 3, 4)
    y = softmax(x, axis)
    expected = x * (r - y * r.sum(axis, keepdims=True))
    (result,) = relevances(Case("Softmax", [x], {"axis": axis}), SoftmaxTaylor(), r, free).values()
    assert relative_error(result, expected) <= TOLERANCE


def test_tiny_attention_weights_count() -> None:
    """Weights far below any epsilon of a quotient: the formula has none."""
    x = np.array([[0.0, -40.0, -60.0]])
    r = np.array([[1.0, 2.0, 3.0]])
    (result,) = relevances(Case("Softmax", [x], {"axis": -1}), SoftmaxTaylor(), r, False).values()
    np.testing.assert_allclose(result, [[0, -80, -180]], rtol=1e-6)


def test_log_softmax() -> None:
    """R_x = x J^T (R / y), J = 1 - softmax."""
    x, r = normal(2, 4).astype(float), normal(3, 4)[:2]
    y = np.log(softmax(x, -1))
    s = r / stabilized(y, 1e-6)
    (result,) = relevances(Case("LogSoftmax", [x], {"axis": -1}), SoftmaxTaylor(), r, True).values()
    assert relative_error(result, x * (s - softmax(x, -1) * s.sum(-1, keepdims=True))) <= TOLERANCE


@pytest.mark.parametrize("hidden", [-np.inf, np.finfo(np.float32).min, -1e10])
def test_masked_elements_get_nothing(hidden: float) -> None:
    x = normal(2, 4)
    x[0, 1] = x[1, 3] = hidden
    r = np.where(x > -1e9, normal(3, 4)[:2], 0)
    y = softmax(x.astype(float), 1)
    expected = np.where(x > -1e9, np.where(x > -1e9, x, 0) * (r - y * r.sum(1, keepdims=True)), 0)
    (result,) = relevances(Case("Softmax", [x], {"axis": 1}), SoftmaxTaylor(), r, True).values()
    assert relative_error(result, expected) <= TOLERANCE
    assert (result[0, 1], result[1, 3]) == (0, 0)


RECTIFIED = [
    (Case("Relu", [np.array([-1.0, 0, 1, 2])]), [0, 0, 1, 1]),
    (Case("Clip", [np.array([-1.0, 1, 2, 7]), np.float32(0), np.float32(6)], constant=(1, 2)), [0, 1, 1, 0]),
]


@pytest.mark.parametrize(("case", "slope"), RECTIFIED, ids=["Relu", "Clip"])
def test_rectifiers(case: Case, slope: list[int]) -> None:
    for sign in (1, -1):
        r = sign * np.array([1.0, -2, 3, -4])
        (guided,) = relevances(case, GuidedBackprop(), r, True).values()
        np.testing.assert_array_equal(guided, np.maximum(r, 0) * slope)
        (deconvnet,) = relevances(case, Deconvnet(), r, True).values()
        np.testing.assert_array_equal(deconvnet, np.maximum(r, 0))


def centred(x: Array, axes: tuple[int, ...]) -> Array:
    return x - x.mean(axes, keepdims=True)


@pytest.mark.parametrize("free", [False, True])
@pytest.mark.parametrize(
    ("op", "attrs", "shape", "axes", "groups"),
    [
        ("LayerNormalization", {"axis": -1}, (2, 3, 4), (-1,), 0),
        ("LayerNormalization", {"axis": 1}, (2, 3, 4), (1, 2), 0),
        ("InstanceNormalization", {}, (2, 4, 3), (3,), 4),
        ("GroupNormalization", {"num_groups": 2}, (2, 4, 3), (2, 3), 2),
        ("MeanVarianceNormalization", {"axes": [0, 2]}, (2, 4, 3), (0, 2), 0),
    ],
)
def test_standard_deviations_count_as_constant(
    op: str, attrs: dict[str, object], shape: tuple[int, ...], axes: tuple[int, ...], groups: int, free: bool
) -> None:
    """R_x = x C (scale / deviation R / S(y)), where C subtracts the mean."""
    x, r = normal(*shape).astype(float), rng(5).normal(size=shape)
    parameters = shape[1:] if attrs == {"axis": 1} else shape[-1:] if op.startswith("Layer") else shape[1:2]
    scale, bias = rng(6).uniform(0.5, 2, parameters), rng(7).normal(size=parameters)
    column = (-1, 1) if groups else scale.shape
    apart = (shape[0], groups, shape[1] // groups, *shape[2:]) if groups else shape
    z = x.reshape(apart)
    deviation = np.sqrt(np.mean(centred(z, axes) ** 2, axes, keepdims=True) + 1e-5)
    y = (centred(z, axes) / deviation).reshape(shape)
    inputs = [x]
    if op == "MeanVarianceNormalization":
        scale = np.ones(1)
    else:
        y = y * scale.reshape(column) + bias.reshape(column)
        inputs += [scale, bias]
    passed = (scale.reshape(column if groups else scale.shape) * r / stabilized(y, 1e-6)).reshape(apart) / deviation
    expected = x * centred(passed, axes).reshape(shape)
    case = Case(op, inputs, attrs, constant=tuple(range(1, len(inputs))))
    (result,) = relevances(case, Standardize(), r, free).values()
    assert relative_error(result, expected) <= TOLERANCE


@pytest.mark.parametrize("free", [False, True])
@pytest.mark.parametrize(
    ("op", "attrs"),
    [
        ("LpNormalization", {"p": 2, "axis": 1}),
        ("LpNormalization", {"p": 1, "axis": 2}),
        ("LRN", {"size": 3, "alpha": 0.5}),
    ],
)
def test_a_division_by_a_norm_passes_relevance_on(op: str, attrs: dict[str, object], free: bool) -> None:
    r = normal(2, 4, 3, 1)
    (result,) = relevances(Case(op, [normal(2, 4, 3, 1)], attrs), Standardize(), r, free).values()
    assert relative_error(result, r) <= TOLERANCE


def test_smoothed_rectifiers() -> None:
    x, r = normal(2, 3), normal(3, 3)[:2]
    (result,) = relevances(Case("Relu", [x]), BetaSmooth(5.0), r, True).values()
    np.testing.assert_allclose(result, r / (1 + np.exp(-5 * x)), rtol=1e-5)
