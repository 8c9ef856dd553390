"""Multi-node patterns: layers with the scales and shifts next to them, and the signals of products."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from onnx.reference import ReferenceEvaluator

import onnxplain
from onnxplain.backward.walk import backward
from onnxplain.canonize import canonize
from onnxplain.composites import COMPOSITES, LRP_RULES, everywhere
from onnxplain.graph.emit import Emitter
from onnxplain.ops import Kind
from onnxplain.rules.attention import Signal, Uniform
from onnxplain.rules.lrp import AlphaBeta, Folded
from onnxplain.rules.sums import Norm, Pass
from onnxplain.storage.reader import read
from tests.models import model
from tests.reference import relative_error, rng, run_ort
from tests.rules import dense
from tests.rules.dense import Array

TOLERANCE = 2e-4  # as for rules of single nodes


def normal(*shape: int) -> Array:
    return rng(sum(shape)).normal(size=shape).astype(np.float32)


# Scales and shifts around a layer: one affine map, whose rules follow from its Jacobian and its value at zero.

WEIGHTS = {
    "w": normal(4, 5),
    "wt": normal(5, 4),
    "k": normal(6, 4, 3, 3),
    "kd": normal(4, 1, 3, 3),
    "kt": normal(4, 5, 2, 2),
    "b": normal(5),
    "b6": normal(6),
    "s": normal(5, 1)[:, 0],
    "s4": normal(4, 1)[:, 0],
    "t4": normal(1, 4)[0],
    "s6": normal(6, 1, 1),
    "one": np.array(-1.5),
    "rows": np.array([-1, 5]),
    "rows4": np.array([-1, 4]),
    "back": np.array([-1, 3, 5]),
    **{f"{name}{n}": abs(normal(n, i)[:, 0]) + 0.1 for i, name in enumerate("gmv", 1) for n in (4, 5, 6)},
    **{f"h{n}": normal(n, 9)[:, 0] for n in (4, 5, 6)},
}
NORM = "BatchNormalization({}, g{n}, h{n}, m{n}, v{n})"
TOKENS, IMAGE = (3, 4), (4, 5, 4)
LAYERS: dict[str, tuple[tuple[int, ...], str]] = {
    # behind
    "bias": (TOKENS, "c = MatMul(a, w)  y = Add(b, c)"),
    "scale and bias": (TOKENS, "c = MatMul(a, w)  d = Mul(c, s)  y = Add(d, b)"),
    "difference": (TOKENS, "c = MatMul(a, w)  d = Sub(b, c)  y = Div(d, s)"),
    "negative": (TOKENS, "c = MatMul(a, w)  d = Neg(c)  e = Sub(d, b)  y = Mul(e, one)"),
    "batch norm of rows": (
        TOKENS,
        f"c = MatMul(a, w)  d = Reshape(c, rows)  e = {NORM.format('d', n=5)}  y = Reshape(e, back)",
    ),
    "batch norm of flat rows": (
        TOKENS,
        f"c = MatMul(a, w)  d = Flatten<axis=2>(c)  e = {NORM.format('d', n=5)}  y = Reshape(e, back)",
    ),
    "gemm": (TOKENS, "r = Reshape(a, rows4)  c = Gemm<transB=1>(r, wt, b)  d = Mul(c, s)  y = Add(d, b)"),
    "scaled convolution": (
        IMAGE,
        "c = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(a, k, b6)  t = Transpose<perm=[0,2,3,1]>(c)"
        "  d = Mul(t, g6)  y = Add(d, h6)",
    ),
    "batch norm behind a transposed convolution": (
        IMAGE,
        f"c = ConvTranspose<kernel_shape=[2,2], strides=[2,2]>(a, kt, b)  y = {NORM.format('c', n=5)}",
    ),
    # before
    "batch norm before a padded convolution": (
        IMAGE,
        f"n = {NORM.format('a', n=4)}  y = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(n, k, b6)",
    ),
    "batch norm before a depthwise one": (
        IMAGE,
        f"n = {NORM.format('a', n=4)}  y = Conv<kernel_shape=[3,3], pads=[1,1,1,1], group=4, strides=[2,2]>(n, kd)",
    ),
    "shift before a product": (TOKENS, "n = Add(a, t4)  y = MatMul(n, w)"),
    "scale and shift before a product": (TOKENS, "m = Mul(a, s4)  n = Sub(m, t4)  c = MatMul(n, w)  y = Add(c, b)"),
    "before, behind a transposition": (
        IMAGE,
        "m = Transpose<perm=[0,2,3,1]>(a)  n = Sub(t4, m)  y = MatMul(n, w)",
    ),
}
FORMULAS: dict[str, Callable[..., Array]] = {
    "epsilon": dense.epsilon,
    "gamma": dense.gamma,
    "interpolated": dense.interpolated,
    "alpha_beta": dense.alpha_beta,
    "z_plus": lambda layer, r: dense.alpha_beta(layer, r, 1.0, 0.0),
    "w_square": dense.w_square,
}


def affine(proto: Any, a: Array) -> dense.Dense:
    """The map from ``a`` to ``y`` by its values at zero and at the unit vectors, in float64."""
    evaluator = ReferenceEvaluator(proto)

    def at(point: Array) -> Array:
        return evaluator.run(["y"], {"x": point.reshape(a.shape)})[0]

    zero = at(a * 0)
    columns = [(at(unit) - zero).flatten() for unit in np.eye(a.size)]
    W = np.stack(columns, axis=1)
    return dense.Dense(W, a.flatten(), zero.flatten(), W != 0, zero.shape)


def relevance(proto: Any, rule: str, x: Array, r: Array) -> Array:
    graph = canonize(read(proto)).graph
    emitter = Emitter(graph)
    seeds = {"y": emitter.const(r.astype(np.float32))}
    found = backward(graph, emitter, seeds, ["x"], everywhere(rule).assign)["x"]
    assert found is not None
    return run_ort(emitter.graph([emitter.var("x")], {"relevance": found}), {"x": x})["relevance"]


# The w_square rule looks at the weights behind a scale only: contributions say nothing of them.
PAIRS = [(name, rule) for name in LAYERS for rule in FORMULAS if rule != "w_square" or "before" not in name]


@pytest.mark.parametrize(("name", "rule"), PAIRS)
def test_scales_and_shifts_belong_to_the_layer(name: str, rule: str) -> None:
    shape, text = LAYERS[name]
    x = normal(2, *shape)
    a = np.tanh(x.astype(np.float64))  # of which nothing is known, neither here nor there
    dims = ", ".join(map(str, shape))
    net = "m (float[N, %s] x) => (float[N] y) { a = %s(x)  %s }"
    layer = affine(model(net % (dims, "Identity", text), double=True, **WEIGHTS), a)
    r = layer.z * rng(5).uniform(-1, 2, layer.z.shape)
    result = relevance(model(net % (dims, "Tanh", text), **WEIGHTS), rule, x, r.reshape(layer.shape))
    assert relative_error(result.flatten(), FORMULAS[rule](layer, r)) <= TOLERANCE


@pytest.mark.parametrize("name", [name for name, (_, text) in LAYERS.items() if "Reshape" not in text])
def test_the_same_where_sizes_are_free(name: str) -> None:
    shape, text = LAYERS[name]
    fixed = [str(n) for n in shape]
    free = ["T", "4"] if shape == TOKENS else ["4", "H", "W"]
    net = "m (float[N, %s] x) => (float[N] y) { a = Tanh(x)  %s }"
    x = normal(2, *shape)
    (y,) = ReferenceEvaluator(model(net % (", ".join(fixed), text), **WEIGHTS)).run(["y"], {"x": x})
    given = rng(5).normal(size=y.shape)
    results = [relevance(model(net % (", ".join(dims), text), **WEIGHTS), "gamma", x, given) for dims in (fixed, free)]
    assert relative_error(results[1], results[0]) <= 1e-5


def rules(text: str, composite: str = "attn_lrp", **weights: Array) -> dict[str, Any]:
    """Name of a node's output -> its rule."""
    explainer = onnxplain.Explainer(model(text, **weights), "lrp", composite=composite)
    return {line.node.outputs[0]: line.rule for line in explainer.report()}


def test_a_shift_that_others_read_is_a_node_of_its_own() -> None:
    """Its share would be right for the layer and wrong for the others."""
    text = f"""m (float[N,4,5,4] x) => (float[N,4,5,4] y) {{
        a = Tanh(x)  n = {NORM.format("a", n=4)}
        c = Conv<kernel_shape=[3,3], pads=[1,1,1,1], group=4>(n, kd)  y = Add(c, %s)
    }}"""
    shared, alone = rules(text % "n", **WEIGHTS), rules(text % "a", **WEIGHTS)
    assert isinstance(shared["n"], Norm)
    assert not isinstance(shared["c"], Folded)
    assert isinstance(alone["n"], Pass)
    assert isinstance(alone["c"], Folded)


def test_constants_keep_their_share() -> None:
    """Positions that are added to tokens, and what is not one number per channel."""
    text = "m (float[N,3,4] x) => (float[N,3,4] y) { a = Tanh(x)  b = Add(a, p)  y = Relu(b) }"
    assert isinstance(rules(text, p=normal(3, 4))["b"], Norm)
    x, p = abs(normal(2, 3, 4)), abs(normal(3, 4))
    result = onnxplain.explain(model(text, p=p), x, "lrp", rule="epsilon", target=(1, 2))
    a = np.tanh(x[:, 1, 2])
    np.testing.assert_allclose(result.values[:, 1, 2], a / (a + p[1, 2]) * result.score, rtol=1e-4)


SHIFTED = "n = Sub(x, mean)  m = Div(n, std)"
LAST = "c = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(m, k3)  d = Relu(c)  f = Flatten(d)  y = MatMul(f, v)"
IMAGES = {"k3": normal(4, 3, 3, 3), "v": normal(80, 3)}
MEAN, STD = np.array([100.0, 120, 90]), np.array([50.0, 60, 70])


@pytest.mark.parametrize("rule", [*LRP_RULES])
def test_preprocessing_passes_on(rule: str) -> None:
    """The same relevance, be it in the model or in front of it; and boxes bound the model's input."""
    low, high = np.array([0.0, 5.0, 0.0]), np.array([255.0, 255.0, 240.0])
    inside = model(
        f"m (float[N,3,5,4] x) => (float[N,3] y) {{ {SHIFTED} {LAST} }}",
        mean=MEAN.reshape(3, 1, 1),
        std=STD.reshape(3, 1, 1),
        **IMAGES,
    )
    swapped = f"t = Transpose<perm=[0,3,1,2]>(m)  {LAST.replace('(m,', '(t,')}"
    last = model(
        f"m (float[N,5,4,3] x) => (float[N,3] y) {{ {SHIFTED} {swapped} }}",
        mean=MEAN,
        std=STD,
        **IMAGES,
    )
    bare = model(f"m (float[N,3,5,4] m) => (float[N,3] y) {{ {LAST} }}", **IMAGES)
    x = rng(1).uniform(0, 255, (2, 3, 5, 4)).astype(np.float32)
    normalized = ((x - MEAN.reshape(3, 1, 1)) / STD.reshape(3, 1, 1)).astype(np.float32)

    def explained(proto: Any, x: Array, bound: Callable[[Array], Array]) -> Array:
        box: dict[str, Any] = {"composite": "epsilon_gamma_box", "low": bound(low), "high": bound(high)}
        return onnxplain.explain(proto, x, "lrp", target=1, **(box if rule == "z_box" else {"rule": rule})).values

    expected = explained(bare, normalized, lambda b: ((b - MEAN) / STD).reshape(3, 1, 1))
    assert relative_error(explained(inside, x, lambda b: b.reshape(3, 1, 1)), expected) < 1e-4
    channels_last = explained(last, np.ascontiguousarray(x.transpose(0, 2, 3, 1)), lambda b: b)
    assert relative_error(channels_last.transpose(0, 3, 1, 2), expected) < 1e-4


@pytest.mark.parametrize("composite", [n for n in COMPOSITES if n != "epsilon_gamma_box"])
def test_relevance_does_not_grow_with_depth(composite: str) -> None:
    """Twelve times a product, a batch normalisation of rows and a hard swish, as in LeViT: once, this overflowed."""
    block = "c{i} = MatMul(x{i}, w{i})  r{i} = Reshape(c{i}, rows4)  n{i} = BatchNormalization(r{i}, g4, h4, m4, v4) "
    block += (
        "z{i} = Reshape(n{i}, back4)  u{i} = HardSigmoid<alpha=0.16666667, beta=0.5>(z{i})  x{j} = Mul(z{i}, u{i}) "
    )
    body = "".join(block.format(i=i, j=i + 1) for i in range(12)).replace("(x0,", "(x,")
    weights = {f"w{i}": rng(i).normal(size=(4, 4)) for i in range(12)}
    net = model(
        f"m (float[N,3,4] x) => (float[N,3,4] y) {{ {body} y = Identity(x12) }}",
        **{**WEIGHTS, **weights, "back4": np.array([-1, 3, 4])},
    )
    result = onnxplain.explain(net, normal(8, 3, 4), "lrp", composite=composite)
    assert np.isfinite(result.values).all()
    assert (np.abs(result.values).sum((1, 2)) < 100 * np.abs(result.score)).all()


# The signal of a product.

NUMBERS = {"low": 0.0, "high": 6.0, "three": 3.0, "sixth": 1 / 6, "eps": 1e-5, "two": 2.0, "half": 0.5, "unit": 1.0}
CONSTANTS = {name: np.array(number) for name, number in NUMBERS.items()} | {"last": np.array([-1])}
PRODUCTS: dict[str, tuple[str, Any]] = {
    # a function of one value, in steps
    "silu": ("b = Sigmoid(a)  z = Mul(a, b)", Signal(0)),
    "silu, the other way round": ("b = Sigmoid(a)  z = Mul(b, a)", Signal(0)),
    "quick gelu": ("c = Mul(a, two)  b = Sigmoid(c)  z = Mul(a, b)", Signal(0)),
    "gelu": ("c = Div(a, two)  e = Erf(c)  f = Add(e, unit)  h = Mul(a, half)  z = Mul(h, f)", Signal(0)),
    "mish": ("s = Softplus(a)  t = Tanh(s)  z = Mul(a, t)", Signal(0)),
    "hard swish": ("c = Add(a, three)  e = Clip(c, low, high)  f = Mul(a, e)  z = Mul(f, sixth)", None),
    "square": ("z = Mul(a, a)", Signal(0)),
    "root mean square": (
        "q = Mul(a, a)  m = ReduceMean(q, last)  n = Add(m, eps)  s = Sqrt(n)  i = Reciprocal(s)  z = Mul(i, a)",
        Signal(1),
    ),
    "root mean square, without kept axes": (
        "q = Pow(a, two)  m = ReduceMean<keepdims=0>(q, last)  n = Add(m, eps)  s = Sqrt(n)"
        "  i = Reciprocal(s)  j = Unsqueeze(i, last)  z = Mul(a, j)",
        Signal(0),
    ),
    "quotient": ("m = ReduceL2(a, last)  z = Div(a, m)", Uniform()),
    # gates
    "gated linear unit": ("b = MatMul(a, v)  c = Sigmoid(b)  d = MatMul(a, u)  z = Mul(c, d)", Signal(1)),
    "squeeze and excitation": (
        "m = ReduceMean(a, last)  b = MatMul(m, wide)  c = HardSigmoid(b)  z = Mul(a, c)",
        Signal(0),
    ),
    "hard sigmoid in steps": (
        "b = MatMul(a, v)  c = Add(b, three)  e = Clip(c, low, high)  f = Mul(e, sixth)  z = Mul(a, f)",
        Signal(0),
    ),
    "one minus a gate": ("b = MatMul(a, v)  c = Sigmoid(b)  d = Sub(unit, c)  z = Mul(d, a)", Signal(1)),
    "input of an lstm": (
        "b = MatMul(a, v)  c = Sigmoid(b)  d = MatMul(a, u)  t = Tanh(d)  z = Mul(c, t)",
        Signal(1),
    ),
    # products of two signals
    "two gates": ("b = MatMul(a, v)  c = Sigmoid(b)  d = MatMul(a, u)  t = Sigmoid(d)  z = Mul(c, t)", Uniform()),
    "gated silu": (
        "b = MatMul(a, v)  c = Sigmoid(b)  s = Mul(b, c)  d = MatMul(a, u)  z = Mul(s, d)",
        Uniform(),
    ),
    "a layer's input and its output": ("b = MatMul(a, v)  z = Mul(a, b)", Uniform()),
    "six is not one": (
        "b = MatMul(a, v)  e = Clip(b, low, high)  z = Mul(a, e)",
        Uniform(),
    ),
    "squares of a layer": ("b = MatMul(a, v)  t = Transpose<perm=[0,2,1]>(b)  z = MatMul(b, t)", Uniform()),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_signals(name: str) -> None:
    text, expected = PRODUCTS[name]
    net = f"m (float[N,4,4] x) => (float[N,4,4] y) {{ a = MatMul(x, w4)  {text}  y = MatMul(z, o) }}"
    given = {n: rng(i).normal(size=(4, 4)) for i, n in enumerate(("v", "u", "o", "w4"))} | {"wide": normal(1, 4)}
    found = rules(net, **CONSTANTS, **given)
    assert expected is None or found["z"] == expected
    result = onnxplain.explain(model(net, **{**CONSTANTS, **given}), abs(normal(2, 4, 4)), "lrp", composite="attn_lrp")
    total = result.values.sum((1, 2), dtype=np.float64)
    np.testing.assert_allclose(total, result.score, rtol=2e-3)  # what is no bias loses nothing


ATTENTION = """m (float[N,4,4] x) => (float[N,4,4] y) {
    q = MatMul(x, v)  k = MatMul(x, u)  t = Transpose<perm=[0,2,1]>(k)  s = MatMul(q, t)  %s  z = MatMul(e, x)
    y = MatMul(z, o)
}"""


@pytest.mark.parametrize(
    "weights", ["e = Softmax(s)", "f = Softmax(s)  e = Mul(f, one)", "f = Softmax(s)  e = MatMul(f, w4)"]
)
def test_attention_weights_are_constants_in_cp_lrp(weights: str) -> None:
    """So are scaled ones, and those that a layer mixes (talking heads)."""
    given = {n: rng(i).normal(size=(4, 4)) for i, n in enumerate(("v", "u", "o", "w4"))}
    assert rules(ATTENTION % weights, "attn_lrp", one=WEIGHTS["one"], **given)["z"] == Uniform()
    assert rules(ATTENTION % weights, "cp_lrp", one=WEIGHTS["one"], **given)["z"] == Signal(1)
    result = onnxplain.explain(
        model(ATTENTION % weights, one=WEIGHTS["one"], **given), abs(normal(2, 4, 4)), "lrp", composite="cp_lrp"
    )
    np.testing.assert_allclose(result.values.sum((1, 2), dtype=np.float64), result.score, rtol=2e-3)


def test_a_final_softmax_is_no_attention() -> None:
    net = model("m (float[N,4] x) => (float[N,4] y) { a = MatMul(x, v)  y = Softmax(a) }", v=normal(4, 4))
    x = abs(normal(2, 4))
    both = [
        onnxplain.explain(net, x, "lrp", composite=composite, probability=True) for composite in ("attn_lrp", "cp_lrp")
    ]
    assert both[0].values.any()
    np.testing.assert_array_equal(both[0].values, both[1].values)


def test_bias_of_a_layer_behind_rounding_is_the_layers() -> None:
    """What QuantizeLinear and DequantizeLinear leave of a product is what a bias is added to."""
    net = """m (float[N,4] x) => (float[N,5] y) {
        t = Tanh(x)  p = MatMul(t, w)  q = QuantizeLinear(p, scale, zero)  d = DequantizeLinear(q, scale, zero)
        e = Add(d, b)  y = Relu(e)
    }"""
    found = rules(
        net,
        "epsilon_plus",
        w=WEIGHTS["w"],
        b=WEIGHTS["b"],
        scale=np.array(0.05, np.float32),
        zero=np.array(128, np.uint8),
    )
    assert isinstance(found["p"], Folded)
    assert found["p"].around.rounded is not None
    assert AlphaBeta(1.0, 0.0) not in found.values()
    assert {line for name, line in found.items() if name == "e"} == {Pass()}


def test_kinds_of_gemms() -> None:
    """With nothing but its summand explained, a Gemm is a sum of that and a constant."""
    net = """m (float[N,4] x, float[N,4] h) => (float[N,5] y) { t = Tanh(x)  c = MatMul(t, w)  y = Gemm(h, w, c) }"""
    explainer = onnxplain.Explainer(model(net, **WEIGHTS), "lrp", rule="gamma", wrt="x")
    (line,) = [line for line in explainer.report() if line.node.op == "Gemm"][:1]
    assert (line.kind, line.rule) == (Kind.SUM, Norm())
