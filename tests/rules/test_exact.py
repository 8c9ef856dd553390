"""DeepLIFT at one node: what inputs contribute adds up, is the Shapley value of two, and ends in the gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from onnxplain.backward.walk import backward, plan
from onnxplain.composites import deep_lift
from onnxplain.graph.emit import Emitter
from onnxplain.rules.compared import Between
from onnxplain.rules.exact import Averaged, CrossMax, Extreme, LogMean, Midpoint, Quotient, Standardized, WhereRule
from onnxplain.storage.reader import to_graph
from tests.reference import Case, forward, gradients, relative_error, rng, run_ort, single_node
from tests.rules.dense import Array

TOLERANCE = 1e-5


def normal(*shape: int, seed: int = 0) -> Array:
    return rng(seed + sum(shape)).normal(size=shape).astype(np.float32)


def positive(*shape: int, seed: int = 0) -> Array:
    return abs(normal(*shape, seed=seed)) + np.float32(0.3)


def multipliers(case: Case, before: Sequence[Array], r: Array, free: bool, rule: Any = None) -> dict[str, Array]:
    """Return the multipliers of a node's inputs from ``r``, its output's; ``before``: inputs at the reference."""
    proto, feeds = single_node(case, free)
    graph = to_graph(proto)
    emitter = Emitter(graph)
    there = {n: emitter.input(f"{n}/reference", "float32", graph.value(n).shape) for n in feeds}
    (y0,) = emitter.inline(graph, there, ["y0"])
    names = {**{n: v.name for n, v in there.items()}, "y0": y0.name}
    seed = emitter.input("r", "float32", graph.value("y0").shape)
    chosen = deep_lift("rescale").against(names).assign if rule is None else lambda calls: [Between(rule, names)]
    results = backward(graph, emitter, {"y0": seed}, list(feeds), chosen)
    outputs = {f"m_{name}": var for name, var in results.items() if var is not None}
    graph = emitter.graph([*(emitter.var(n) for n in feeds), *there.values(), seed], outputs)
    given = {v.name: a.astype(np.float32) for v, a in zip(there.values(), before, strict=True)}
    arrays = run_ort(graph, {**feeds, **given, "r": np.asarray(r, np.float32)})
    return {name: arrays[f"m_{name}"] for name in feeds}


HALVES = np.array([0.5, 0.5], np.float32)
AXES = np.array([1])
CASES: list[tuple[Case, type | None]] = [
    (Case("Mul", [normal(2, 3), normal(3)]), Midpoint),
    (Case("Div", [normal(2, 3), positive(2, 1)]), Quotient),
    (Case("Div", [normal(3), positive(2, 3)], constant=(0,)), Quotient),
    (Case("MatMul", [normal(2, 3, 4), normal(2, 4, 5)]), Midpoint),
    (Case("MatMul", [normal(3, 4), normal(2, 4, 5)]), Midpoint),
    (Case("Gemm", [normal(2, 3), normal(4, 3), normal(4)], {"transB": 1, "alpha": 0.5, "beta": -2.0}), None),
    (Case("Conv", [normal(2, 3, 5), normal(4, 3, 2), normal(4)], {"strides": [2]}), None),
    (Case("Einsum", [normal(2, 3), normal(3, 2)], {"equation": "ij,jk->ik"}), Midpoint),
    (Case("Einsum", [normal(2, 3), normal(3, 2), normal(2)], {"equation": "ij,jk,k->i"}), Averaged),
    (Case("Max", [normal(2, 3), normal(2, 3, seed=1)]), Extreme),
    (Case("Min", [normal(2, 3), normal(3)]), Extreme),
    (Case("Max", [normal(4, 3), normal(4, 3, seed=1), normal(4, 3, seed=2), normal(3)]), Extreme),
    (Case("Min", [normal(4, 3), normal(4, 3, seed=1), normal(4, 3, seed=2)], constant=(1,)), Extreme),
    (Case("Softmax", [normal(2, 3, 4) * 3], {"axis": -1}), LogMean),
    (Case("Softmax", [normal(2, 3, 4) * 8], {"axis": 1}), LogMean),
    (Case("LogSoftmax", [normal(2, 3, 4) * 3], {"axis": 1}), LogMean),
    (Case("LayerNormalization", [normal(2, 3, 4), normal(3, 4), normal(4)], {"axis": 1}, (1, 2)), Standardized),
    (Case("LayerNormalization", [normal(2, 3, 4), normal(4)], {"axis": -1}, (1,)), Standardized),
    (Case("InstanceNormalization", [normal(2, 3, 4), normal(3), normal(3)], constant=(1, 2)), Standardized),
    (Case("GroupNormalization", [normal(2, 4, 5), normal(4), normal(4)], {"num_groups": 2}, (1, 2)), Standardized),
    (Case("MeanVarianceNormalization", [normal(2, 3, 4, 2)], {"axes": [0, 2, 3]}, runtime=True), Standardized),
    (Case("InstanceNormalization", [normal(2, 3, 4), positive(3), normal(3)]), Averaged),
    (Case("LRN", [normal(2, 5, 3, 2)], {"size": 3, "alpha": 0.5, "beta": 0.75, "bias": 1.0}, runtime=True), Averaged),
    (Case("LpNormalization", [normal(2, 5)], {"axis": 1, "p": 2}), Averaged),
    (Case("ReduceL2", [normal(2, 3, 4), AXES], {"keepdims": 0}), Midpoint),
    (Case("ReduceSumSquare", [normal(2, 3, 4), AXES]), Midpoint),
    (Case("ReduceProd", [normal(2, 5), AXES]), Averaged),
    (Case("ReduceLogSumExp", [normal(2, 5), AXES]), Averaged),
    (Case("Det", [normal(2, 3, 3)]), Averaged),
    (Case("ReduceMax", [normal(2, 3, 4), AXES]), CrossMax),
    (Case("ReduceMin", [normal(2, 3, 4), AXES], {"keepdims": 0}), CrossMax),
    (
        Case("MaxPool", [normal(2, 3, 6, 7)], {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
        CrossMax,
    ),
    (Case("MaxPool", [normal(2, 3, 9)], {"kernel_shape": [3], "strides": [1]}), CrossMax),
    (Case("GlobalMaxPool", [normal(2, 3, 4, 5)]), CrossMax),
    (Case("Pow", [positive(2, 3), positive(3)]), Averaged),
    *((Case(op, [normal(2, 30)]), None) for op in ("Relu", "LeakyRelu", "Elu", "Selu", "Celu", "Sigmoid", "Tanh")),
    *((Case(op, [normal(2, 30)]), None) for op in ("Exp", "Erf", "Softplus", "Softsign", "HardSigmoid", "HardSwish")),
    *((Case(op, [normal(2, 30)]), None) for op in ("Abs", "Sin", "Cos", "Mish", "Atan", "ThresholdedRelu")),
    *((Case("Gelu", [normal(2, 30)], {"approximate": a}), None) for a in ("none", "tanh")),
    *((Case(op, [positive(2, 30)]), None) for op in ("Log", "Sqrt", "Reciprocal")),
    (Case("Clip", [normal(2, 30), np.float32(-0.5), np.float32(0.7)], constant=(1, 2)), None),
    (Case("PRelu", [normal(2, 30), normal(30)], constant=(1,)), None),
    (Case("PRelu", [normal(2, 30) + 3, normal(30)]), Averaged),
    *((Case("Pow", [positive(2, 30), np.float32(p)], constant=(1,)), None) for p in (2, 0.5, -1.5, 3)),
    (Case("Concat", [normal(2, 3), normal(2, 2), normal(2, 1)], {"axis": 1}), None),
    (Case("Sub", [normal(2, 3), normal(3)]), None),
    (Case("Pad", [normal(2, 3), np.array([0, 1, 1, 0])], {"mode": "reflect"}), None),
    (Case("Gather", [normal(4, 3), np.array([2, 0, 2])], {"axis": 0}), None),
    (Case("AveragePool", [normal(2, 3, 6)], {"kernel_shape": [3], "strides": [2]}), None),
]
IDS = [str(case) for case, _ in CASES]


def moved(case: Case) -> list[Array]:
    """Another point for every active input; some elements stay."""
    points = []
    for i, a in enumerate(case.inputs):
        if a is not None and a.dtype.kind == "f" and i not in case.constant:
            keeps_sign = case.op in ("Log", "Sqrt", "Reciprocal", "Pow", "Div", "PRelu")
            other = a * rng(i).uniform(0.3, 3, a.shape) if keeps_sign else a + rng(i).normal(size=a.shape)
            other.flat[0] = a.flat[0]
            points.append(other.astype(np.float32))
    return points


@pytest.mark.parametrize("free", [False, True], ids=["static", "free"])
@pytest.mark.parametrize(("case", "rule"), CASES, ids=IDS)
def test_contributions_add_up(case: Case, rule: type | None, free: bool) -> None:
    run, feeds = forward(case)
    before = moved(case)
    y = run(["y0"], feeds)[0]
    y0 = run(["y0"], {n: b.astype(x.dtype) for (n, x), b in zip(feeds.items(), before, strict=True)})[0]
    r = rng(99).normal(size=y.shape)
    found = multipliers(case, before, r, free)
    assert all(found[n].shape == x.shape and np.isfinite(found[n]).all() for n, x in feeds.items())
    parts = [found[n] * (feeds[n] - x0.astype(np.float64)) for n, x0 in zip(feeds, before, strict=True)]
    scale = sum(abs(p).sum() for p in parts)
    assert abs(sum(p.sum() for p in parts) - (r * (y - y0)).sum()) < TOLERANCE * scale


@pytest.mark.parametrize(("case", "rule"), CASES, ids=IDS)
def test_nothing_between_the_points_gives_the_gradient(case: Case, rule: type | None) -> None:
    run, feeds = forward(case)
    y = run(["y0"], feeds)[0]
    r = rng(99).normal(size=y.shape).astype(np.float32)
    found = multipliers(case, [np.asarray(x, np.float32) for x in feeds.values()], r, False)
    expected = gradients(case, {"y0": r})
    for name in feeds:
        assert relative_error(found[name], expected[name]) < 1e-4


@pytest.mark.parametrize(("case", "rule"), CASES, ids=IDS)
def test_composites_choose_these_rules(case: Case, rule: type | None) -> None:
    proto, feeds = single_node(case, False)
    graph = to_graph(proto)
    (chosen,) = deep_lift("rescale").assign(plan(graph, Emitter(graph), ["y0"], list(feeds)))
    if rule is not None:
        assert type(chosen) is rule


PAIRS: dict[str, Callable[[Array, Array], Array]] = {
    "Mul": np.multiply,
    "Div": np.divide,
    "Max": np.maximum,
    "Min": np.minimum,
    "MatMul": np.matmul,
}


@pytest.mark.parametrize("op", PAIRS)
def test_two_inputs_get_their_shapley_values(op: str) -> None:
    """Half of what each changes first, and half of what it changes last."""
    f = PAIRS[op]
    a, b = normal(4, 4) * 2, positive(4, 4)
    a0, b0 = normal(4, 4, seed=5) * 2, positive(4, 4, seed=6)
    found = multipliers(Case(op, [a, b]), [a0, b0], np.ones((4, 4)), False)
    by_a = 0.5 * (f(a, b) - f(a0, b) + f(a, b0) - f(a0, b0))
    by_b = 0.5 * (f(a, b) - f(a, b0) + f(a0, b) - f(a0, b0))
    shares = [found["x0"] * (a - a0), found["x1"] * (b - b0)]
    if op == "MatMul":  # each element of a is read by a whole row of the result
        by_a, by_b = by_a.sum(1), by_b.sum(0)
        shares = [shares[0].sum(1), shares[1].sum(0)]
    np.testing.assert_allclose(shares[0], by_a, atol=1e-5)
    np.testing.assert_allclose(shares[1], by_b, atol=1e-5)


def test_a_rise_goes_to_the_new_maximum_and_a_fall_to_the_old_one() -> None:
    x = np.array([[[1, 5, 0, 0], [1, 0, 3, 0]]], np.float32)
    x0 = np.array([[[2, 0, 1, 0], [4, 1, 0, 0]]], np.float32)
    case = Case("GlobalMaxPool", [x])
    found = multipliers(case, [x0], np.ones((1, 2, 1)), False)["x0"]
    np.testing.assert_allclose(found * (x - x0), [[[0, 3, 0, 0], [-1, 0, 0, 0]]], atol=1e-6)


def test_equal_maxima_share_as_in_the_gradient() -> None:
    x, x0 = np.array([[2, 2, 1]], np.float32), np.zeros((1, 3), np.float32)
    found = multipliers(Case("ReduceMax", [x, AXES]), [x0], np.ones((1, 1)), False)["x0"]
    np.testing.assert_allclose(found * x, [[1, 1, 0]])


def test_masked_and_extreme_scores() -> None:
    """Masks of -infinity on both sides, all of a row masked, and scores that leave nothing but one element."""
    x = np.array([[1, -np.inf, 2], [-np.inf] * 3, [300, 0, -300]], np.float32)
    x0 = np.array([[0, -np.inf, 1], [-np.inf] * 3, [-300, 0, 300]], np.float32)
    r = np.array([[1, 2, -1], [1, 1, 1], [1, 2, 5]], np.float32)
    found = multipliers(Case("Softmax", [x], {"axis": 1}), [x0], r, False)["x0"]
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found[:2, 1], 0)
    np.testing.assert_allclose(found[1], 0)
    np.testing.assert_allclose((found[2] * (x[2] - x0[2])).sum(), 1 - 5, rtol=1e-5)


def test_choices_that_change() -> None:
    """LeakyRelu, spelled out: Rescale, wherever x crosses zero."""
    x, x0 = normal(40), normal(40, seed=3)
    case = Case("Where", [x > 0, x, x * np.float32(0.1)])
    proto, feeds = single_node(case, False)
    graph = to_graph(proto)
    graph = graph.replace(constants={}, inputs=(*graph.inputs, *(graph.value(n) for n in graph.constants)))
    emitter = Emitter(graph.replace(values={**graph.values, **{v.name: v for v in graph.inputs}}))
    there = {v.name: emitter.input(f"{v.name}/reference", v.dtype, v.shape) for v in graph.inputs}
    (y0,) = emitter.inline(graph, there, ["y0"])
    names = {**{n: v.name for n, v in there.items()}, "y0": y0.name}
    seed = emitter.input("r", "float32", (40,))
    found = backward(graph, emitter, {"y0": seed}, ["x1", "x2"], lambda calls: [Between(WhereRule(), names)])
    outputs = {f"m_{n}": v for n, v in found.items() if v is not None}
    result = emitter.graph([*(emitter.var(v.name) for v in graph.inputs), *there.values(), seed], outputs)
    before = {"x0": x0 > 0, "x1": x0, "x2": x0 * np.float32(0.1)}
    feeds = {"x0": x > 0, **feeds, **{f"{n}/reference": a for n, a in before.items()}, "r": np.ones(40, np.float32)}
    arrays = run_ort(result, feeds)
    leaky = lambda v: np.where(v > 0, v, 0.1 * v)
    np.testing.assert_allclose((arrays["m_x1"] + 0.1 * arrays["m_x2"]) * (x - x0), leaky(x) - leaky(x0), atol=1e-6)


@pytest.mark.parametrize("op", ["Sigmoid", "Tanh", "Exp", "Softplus", "Gelu", "Erf", "Log", "Sqrt", "Softmax"])
@pytest.mark.parametrize("step", [1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6])
def test_small_differences_lose_no_digits(op: str, step: float) -> None:
    """Quotients of differences that are rounded: the exact slope, to 1e-4, at every distance."""
    x = positive(200).reshape(1, 200) if op != "Softmax" else normal(20, 10)
    x0 = (x + step * rng(3).uniform(-1, 1, x.shape)).astype(np.float32)
    case = Case(op, [x], {"approximate": "none"} if op == "Gelu" else {"axis": 1} if op == "Softmax" else {})
    r = normal(*x.shape)
    found = multipliers(case, [x0], r, False)["x0"]
    middle = gradients(Case(op, [((x.astype(np.float64) + x0) / 2)], case.attrs), {"y0": r})["x0"]
    assert relative_error(found, middle) < 1e-4 + step**2  # of the second order, for smooth functions
