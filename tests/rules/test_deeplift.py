"""DeepLIFT's own rules against the paper, and what they give in networks of every kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import onnxplain as ox
from onnxplain.backward.recurrent import as_loops
from onnxplain.canonize import canonize
from onnxplain.composites import DEEPLIFT_RULES
from onnxplain.errors import OptionError, UnsupportedModelError
from onnxplain.graph.ir import Multiple
from onnxplain.programs.reference import paired
from onnxplain.questions.question import ask
from onnxplain.rules import deeplift as rules
from onnxplain.rules.deeplift import Linear, Rescale, RevealCancel, Through
from onnxplain.storage.reader import read
from tests.models import BRANCHES, IMAGES, MLP, REPEATED, RESIDUAL, TOKENS, Tiny, model, weights
from tests.reference import relative_error, rng, run_ort
from tests.rules.paper import ACTIVATIONS, Array, Layer, contributions

TOLERANCE = 1e-4  # float32 rounding through a few layers

DENSE = """net (float[N, 6] x) => (float[N, 4] y) {
    z1 = Gemm<transB=1>(x, w1, b1)
    h1 = F(z1)
    p2 = MatMul(h1, v2)
    z2 = Add(p2, b2)
    h2 = F(z2)
    z3 = Gemm<transB=1, alpha=-2.0>(h2, v3, b3)
    h3 = F(z3)
    y = Gemm<transB=1>(h3, w4, b4)
}"""
CONV = """net (float[N, 2, 6, 5] x) => (float[N, 4] y) {
    z1 = Conv<pads=[1, 1, 1, 1], strides=[2, 1]>(x, w1, b1)
    h1 = F(z1)
    c2 = Conv<group=2>(h1, w2)
    z2 = BatchNormalization(c2, gamma, beta, mean, variance)
    h2 = F(z2)
    flat = Flatten(h2)
    y = Gemm<transB=1>(flat, w3, b3)
}"""


def dense(seed: int = 0) -> tuple[dict[str, Array], list[tuple[Array, Array]]]:
    arrays = weights(seed, w1=(8, 6), b1=(8,), w2=(7, 8), b2=(7,), w3=(5, 7), b3=(5,), w4=(4, 5), b4=(4,))
    pairs = [(arrays[f"w{i}"].astype(np.float64), arrays[f"b{i}"].astype(np.float64)) for i in (1, 2, 3, 4)]
    arrays |= {"v2": arrays.pop("w2").T.copy(), "v3": arrays.pop("w3") * -0.5}
    return arrays, pairs


def conv(seed: int = 0) -> tuple[dict[str, Array], list[tuple[Array, Array]]]:
    """The convolutions as matrices: what they make of every unit vector."""
    arrays = weights(seed, w1=(4, 2, 3, 3), b1=(4,), w2=(4, 2, 2, 2), w3=(4, 32), b3=(4,))
    arrays |= {n: rng(seed + k).normal(size=4).astype(np.float32) for k, n in enumerate(("gamma", "beta", "mean"))}
    arrays["variance"] = rng(seed + 9).uniform(0.5, 2, 4).astype(np.float32)
    w = {n: torch.tensor(a, dtype=torch.float64) for n, a in arrays.items()}

    def first(x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x.reshape(-1, 2, 6, 5), w["w1"], w["b1"], (2, 1), 1).flatten(1)

    def second(h: torch.Tensor) -> torch.Tensor:
        z = F.conv2d(h.reshape(-1, 4, 3, 5), w["w2"], groups=2)
        return F.batch_norm(z, w["mean"], w["variance"], w["gamma"], w["beta"]).flatten(1)

    pairs = []
    for function, size in ((first, 60), (second, 60)):
        b = function(torch.zeros(1, size, dtype=torch.float64))
        pairs.append(((function(torch.eye(size, dtype=torch.float64)) - b).T.numpy(), b[0].numpy()))
    return arrays, [*pairs, (arrays["w3"].astype(np.float64), arrays["b3"].astype(np.float64))]


NETS: dict[str, tuple[str, Callable[..., Any], tuple[int, ...]]] = {
    "dense": (DENSE, dense, (6,)),
    "conv": (CONV, conv, (2, 6, 5)),
}


def explained(text: str, arrays: dict[str, Array], x: Array, **options: Any) -> ox.Attribution:
    return ox.explain(model(text, **arrays), x, "deeplift", **options)


@pytest.mark.parametrize("rule", ["rescale", "reveal_cancel"])
@pytest.mark.parametrize("f", ACTIVATIONS)
@pytest.mark.parametrize("net", NETS)
def test_rules_are_the_papers(net: str, f: str, rule: str) -> None:
    text, make, shape = NETS[net]
    arrays, pairs = make()
    layers: list[Layer] = [layer for pair in pairs[:-1] for layer in (pair, ACTIVATIONS[f])] + [pairs[-1]]
    x, x0 = rng(1).normal(size=(3, *shape)).astype(np.float32), rng(2).normal(size=shape).astype(np.float32)
    x[1].flat[:3] = x0.flat[:3]  # inputs that do not change
    target = np.array([2, 0, 3])
    result = explained(text.replace("F(", f"{f}("), arrays, x, rule=rule, baseline=x0, target=target)
    flat = [contributions(layers, v.ravel(), x0.ravel(), t, rule) for v, t in zip(x, target, strict=True)]
    assert relative_error(result.values, np.stack(flat).reshape(x.shape)) < TOLERANCE
    assert np.all(abs(result.residual) < 1e-5)


def test_the_rules_differ_and_an_error_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison above fails for the other rule, and for a layer that ignores the two parts."""
    arrays, _ = dense()
    x = rng(1).normal(size=(3, 6)).astype(np.float32)
    text = DENSE.replace("F(", "Relu(")
    right = explained(text, arrays, x, rule="reveal_cancel", target=0)
    assert relative_error(explained(text, arrays, x, rule="rescale", target=0).values, right.values) > 0.1
    monkeypatch.setattr(rules.Halves, "of", lambda self, call: None)
    wrong = explained(text, arrays, x, rule="reveal_cancel", target=0)
    assert relative_error(wrong.values, right.values) > 0.05
    assert abs(wrong.residual).max() > 1e-3


def test_the_authors_own_example() -> None:
    """From the tests of kundajelab/deeplift: Dy- = 0.5 (-1 - 4), Dy+ = 0.5 (3 + 6)."""
    text = """net (float[N, 4] x) => (float[N, 1] y) {
        z = Gemm(x, w, b)
        y = Relu(z)
    }"""
    w = np.array([[1.0], [-2.0], [-3.0], [4.0]])
    x = np.array([[-1, -1, 1, 1]], np.float32)
    result = explained(text, {"w": w, "b": np.array([1.0])}, x, rule="reveal_cancel")
    multipliers = np.array([2.5 / 4, 4.5 / 6, 2.5 / 4, 4.5 / 6])
    np.testing.assert_allclose(result.values, multipliers * w.T * x, rtol=1e-6)


AND = {
    "spelled out": "d = Sub(a, b) r = Relu(d) y = Sub(a, r)",
    "as a layer": "x = Concat<axis=1>(a, b) d = MatMul(x, w) r = Relu(d) y = Sub(a, r)",
    "the operator": "y = Min(a, b)",
}


@pytest.mark.parametrize("form", AND)
def test_min_gives_half_to_each(form: str) -> None:
    """Section 3.4 of the paper: a - max(0, a - b), where gradients and Rescale see one of the two only."""
    text = f"net (float[N, 1] a, float[N, 1] b) => (float[N, 1] y) {{ {AND[form]} }}"
    proto = model(text, w=np.array([[1.0], [-1.0]]))
    feeds = {"a": np.array([[3], [1], [2]], np.float32), "b": np.array([[1], [5], [2]], np.float32)}
    result = ox.explain(proto, feeds, "deeplift", rule="reveal_cancel")
    for name in ("a", "b"):
        np.testing.assert_allclose(result[name].values, np.array([[0.5], [0.5], [1.0]]), rtol=1e-6)
    if form != "the operator":
        seen = ox.explain(proto, feeds, "deeplift", rule="rescale")
        np.testing.assert_allclose([seen["a"].values[0, 0], seen["b"].values[0, 0]], [0, 1], atol=1e-6)


def test_six_modes() -> None:
    """The Linear rule alone changes nothing; RevealCancel needs it."""
    arrays, _ = dense()
    x = rng(1).normal(size=(3, 6)).astype(np.float32)
    text = DENSE.replace("F(", "Tanh(")
    found = {rule: explained(text, arrays, x, rule=rule, baseline=0.5).values for rule in DEEPLIFT_RULES}
    for one, other in (("no_rule", "linear"), ("rescale", "linear_rescale"), ("reveal_cancel", "linear_reveal_cancel")):
        np.testing.assert_array_equal(found[one], found[other])
    gradient = ox.explain(model(text, **arrays), x, "gradient").values
    assert relative_error(found["no_rule"], gradient * (x - np.float32(0.5))) < 1e-6
    assert explained(text, arrays, x, rule="no_rule").residual is None
    with pytest.raises(OptionError, match="Did you mean 'rescale'"):
        ox.Explainer(model(text, **arrays), "deeplift", rule="rescal")


def test_the_report_says_where_there_is_nothing_to_cancel() -> None:
    """RevealCancel needs a linear layer or a sum in front; what scales, shifts or moves may lie between."""
    text = """net (float[N, 2, 6] x) => (float[N, 4] y) {
        r = Relu(x)
        p = MatMul(r, w1)
        a = Add(p, b1)
        b = Mul(a, s)
        c = Reshape(b, shape)
        d = Tanh(c)
        e = Exp(d)
        f = Flatten(e)
        y = MatMul(f, w2)
    }"""
    arrays = {**weights(w1=(6, 8), b1=(8,), s=(8,), w2=(16, 4)), "shape": np.array([0, 4, 4])}
    explainer = ox.Explainer(model(text, **arrays), "deeplift", rule="reveal_cancel")
    found = {line.node.op: type(line.rule) for line in explainer.report()}
    assert (found["Relu"], found["Tanh"], found["Exp"]) == (Rescale, RevealCancel, Rescale)
    assert (found["MatMul"], found["Add"], found["Mul"], found["Reshape"]) == (Linear, Through, Through, Through)
    x = rng().normal(size=(3, 2, 6)).astype(np.float32)
    assert np.all(abs(explainer(x).residual) < 1e-5)
    joined = {**arrays, "w1": arrays["w1"] * arrays["s"], "b1": arrays["b1"] * arrays["s"], "s": np.ones(8)}
    assert relative_error(explained(text, joined, x, rule="reveal_cancel").values, explainer(x).values) < TOLERANCE


# Completeness.

TRANSFORMER = """block (float[N, 5, 8] x) => (float[N, 3] y) {
    n1 = LayerNormalization<axis=-1>(x, g1, b1)
    q = MatMul(n1, wq)
    k = MatMul(n1, wk)
    v = MatMul(n1, wv)
    qs = Reshape(q, heads)
    ks = Reshape(k, heads)
    vs = Reshape(v, heads)
    qh = Transpose<perm=[0, 2, 1, 3]>(qs)
    kt = Transpose<perm=[0, 2, 3, 1]>(ks)
    vh = Transpose<perm=[0, 2, 1, 3]>(vs)
    s = MatMul(qh, kt)
    ss = Mul(s, scale)
    sm = Add(ss, mask)
    a = Softmax<axis=-1>(sm)
    o = MatMul(a, vh)
    ot = Transpose<perm=[0, 2, 1, 3]>(o)
    of = Reshape(ot, width)
    p = MatMul(of, wo)
    r1 = Add(x, p)
    mu = ReduceMean<keepdims=1>(r1, last)
    c = Sub(r1, mu)
    sq = Pow(c, two)
    var = ReduceMean<keepdims=1>(sq, last)
    ve = Add(var, epsilon)
    sd = Sqrt(ve)
    n2 = Div(c, sd)
    u = MatMul(n2, w1)
    ur = Div(u, root)
    erf = Erf(ur)
    e1 = Add(erf, one)
    ue = Mul(u, e1)
    ug = Mul(ue, half)
    t = MatMul(n2, w2)
    gate = Sigmoid(t)
    silu = Mul(t, gate)
    h = Mul(ug, silu)
    f = MatMul(h, w3)
    r2 = Add(r1, f)
    m = ReduceMean<keepdims=0>(r2, first)
    y = MatMul(m, w4)
}"""
PARTS = {
    **weights(3, g1=(8,), b1=(8,), wq=(8, 8), wk=(8, 8), wv=(8, 8), wo=(8, 8), w1=(8, 12), w2=(8, 12), w3=(12, 8)),
    **weights(4, w4=(8, 3)),
    "heads": np.array([0, 0, 2, 4]),
    "width": np.array([0, 0, 8]),
    "last": np.array([-1]),
    "first": np.array([1]),
    **{n: np.array(v, np.float32) for n, v in {"scale": 0.5, "two": 2, "epsilon": 1e-5, "one": 1, "half": 0.5}.items()},
    "root": np.array(2**0.5, np.float32),
    "mask": np.where(np.tri(5) > 0, 0, -np.inf).astype(np.float32),
}


@pytest.mark.parametrize("rule", ["rescale", "reveal_cancel"])
@pytest.mark.parametrize("baseline", [0.0, -0.7])
def test_transformers_are_complete(rule: str, baseline: float) -> None:
    x = rng(5).normal(size=(4, 5, 8)).astype(np.float32)
    result = explained(TRANSFORMER, PARTS, x, rule=rule, baseline=baseline)
    assert np.isfinite(result.values).all()
    assert np.all(abs(result.residual) < 1e-5 * abs(result.values).sum((1, 2)))
    scores = ox.explain(model(TRANSFORMER, **PARTS), x * 0 + np.float32(baseline), target=result.target).score
    np.testing.assert_allclose(result.values.sum((1, 2)), result.score - scores, rtol=1e-4, atol=1e-5)


def test_a_baseline_next_to_the_input_gives_the_gradient() -> None:
    """Differences of all sizes down to none: no digit is lost in quotients of small differences."""
    x = rng(5).normal(size=(4, 5, 8)).astype(np.float32)
    step = rng(6).normal(size=x.shape)
    gradient = ox.explain(model(TRANSFORMER, **PARTS), x, "gradient", target=1).values
    for rule in ("rescale", "reveal_cancel"):
        for size in (1e-3, 1e-5, 1e-6):
            x0 = (x - size * step).astype(np.float32)
            result = explained(TRANSFORMER, PARTS, x, rule=rule, baseline=x0, target=1)
            assert relative_error(result.values, gradient * (x - x0)) < 3 * size + 1e-3
        nothing = explained(TRANSFORMER, PARTS, x, rule=rule, baseline=x, target=1)
        np.testing.assert_array_equal(nothing.values, x * 0)


def test_deep_networks_are_complete() -> None:
    lines = [f"z{i} = Conv<pads=[1, 1, 1, 1]>(h{i - 1}, w{i}, b{i})  h{i} = Relu(z{i})" for i in range(1, 31)]
    text = f"""deep (float[N, 3, 8, 8] h0) => (float[N, 4] y) {{
        {" ".join(lines)}
        m = GlobalAveragePool(h30)
        f = Flatten(m)
        y = MatMul(f, last)
    }}"""
    shapes = {f"w{i}": (6, 6 if i > 1 else 3, 3, 3) for i in range(1, 31)}
    arrays = {n: a * np.float32(2**0.5) for n, a in weights(1, **shapes, last=(6, 4)).items()}
    arrays |= {n: 0.1 * a for n, a in weights(2, **{f"b{i}": (6,) for i in range(1, 31)}).items()}
    x = rng(2).normal(size=(3, 3, 8, 8)).astype(np.float32)
    for rule in ("rescale", "reveal_cancel"):
        result = explained(text, arrays, x, rule=rule)
        assert np.all(abs(result.residual) < 1e-4 * abs(result.values).sum((1, 2, 3)))


RECURRENT = """net (float[N, 7, 3] x) => (float[N, 4] y) {
    t = Transpose<perm=[1, 0, 2]>(x)
    s, h = OP<hidden_size=5>(t, w, r, b)
    z = Squeeze(h, axis)
    y = MatMul(z, v)
}"""


@pytest.mark.parametrize(("op", "gates"), [("LSTM", 4), ("GRU", 3), ("RNN", 1)])
@pytest.mark.parametrize("rule", ["rescale", "reveal_cancel"])
def test_recurrent_networks_are_complete(op: str, gates: int, rule: str) -> None:
    arrays = weights(1, w=(1, gates * 5, 3), r=(1, gates * 5, 5), b=(1, gates * 10), v=(5, 4))
    x = rng(3).normal(size=(3, 7, 3)).astype(np.float32)
    options = {"rule": rule, "baseline": 0.3}
    result = explained(RECURRENT.replace("OP", op), {**arrays, "axis": np.array([0])}, x, **options)
    assert np.all(abs(result.residual) < 1e-5 * (1 + abs(result.values).sum((1, 2))))
    x0 = np.full_like(x, 0.3)
    proto = model(RECURRENT.replace("OP", op), **arrays, axis=np.array([0]))
    scores = ox.explain(proto, x0, target=result.target).score
    np.testing.assert_allclose(result.values.sum((1, 2)), result.score - scores, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("steps", ["7", "T"])
@pytest.mark.parametrize(("op", "gates"), [("LSTM", 4), ("GRU", 3), ("RNN", 1)])
@pytest.mark.parametrize("rule", ["rescale", "reveal_cancel"])
def test_a_loop_at_a_reference_of_one_row(op: str, gates: int, rule: str, steps: str) -> None:
    """It is a Loop of its own, where that of a baseline for each sample is the input's."""
    arrays = weights(1, w=(1, gates * 5, 3), r=(1, gates * 5, 5), b=(1, gates * 10), v=(5, 4)) | {"axis": np.array([0])}
    x, x0 = rng(3).normal(size=(2, 3, 7, 3)).astype(np.float32)
    text = RECURRENT.replace("OP", op).replace("7", steps)
    one, rows = (
        explained(text, arrays, x, rule=rule, baseline=baseline) for baseline in (x0[:1], np.repeat(x0[:1], 3, 0))
    )
    assert relative_error(one.values, rows.values) < TOLERANCE
    graph = canonize(read(model(text, **arrays))).graph
    graph = as_loops(graph, ["x"], ["y"])
    loops = [n for n in paired(graph, ask(graph), x0[:1]).graph.nodes if n.op == "Loop"]
    assert len(loops) == (1 if steps == "7" else 2)


# Control flow.


def test_branches_hold_both() -> None:
    for mode in (0, 1):
        x = BRANCHES.x(3)
        result = ox.explain(BRANCHES.proto(), {"x": x, "mode": np.array(mode)}, "deeplift", rule="reveal_cancel")
        text = MLP.text if mode else MLP.text.replace("Relu", "Tanh")
        expected = explained(text, MLP.weights, x, rule="rescale", target=result.target)
        assert relative_error(result.values, expected.values) < TOLERANCE  # the layer is outside, so nothing cancels
        assert np.all(abs(result.residual) < 1e-5)


def test_a_way_that_depends_on_the_input_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="another branch at the baseline"):
        ox.explain(REPEATED.proto(), REPEATED.x(2), "deeplift")
    text = "m (float[N] x) => (float[K] y) { k = NonZero(x) f = Transpose(k) g = GatherND(x, f) y = Exp(g) }"
    with pytest.raises(UnsupportedModelError, match="NonZero"):
        ox.explain(model(text), np.ones(3, np.float32), "deeplift")


# References.


def test_references_of_a_fixed_baseline_are_constants() -> None:
    for tiny in (IMAGES, RESIDUAL):
        graph = canonize(read(tiny.proto())).graph
        pair = paired(graph, ask(graph), 0.5)
        copies = set(pair.names.values())
        assert len(copies) >= len(graph.nodes)
        assert copies.isdisjoint(pair.graph.reachable_from(["x"]))
        rows = paired(graph, ask(graph), None)
        assert set(rows.inputs) == {"x"}


MERGED = """net (float[N, 6, 4] x) => (float[N, 5] y) {
    steps_first = Transpose<perm=[1, 0, 2]>(x)
    rows = Reshape(steps_first, to_rows)
    wide = Gemm(rows, w1, b1)
    active = Tanh(wide)
    heads = Reshape(active, to_heads)
    samples_first = Transpose<perm=[1, 2, 0, 3]>(heads)
    apart = Reshape(samples_first, to_parts)
    shares = Softmax(apart)
    flat = Reshape(shares, to_flat)
    y = MatMul(flat, w2)
}"""


def test_samples_on_an_axis_with_others_have_a_reference_of_one_row() -> None:
    """As steps and heads of attention do, in front of the batch and behind it."""
    sizes = {"to_rows": [-1, 4], "to_heads": [6, -1, 2, 4], "to_parts": [-1, 6, 4], "to_flat": [-1, 48]}
    arrays = weights(w1=(4, 8), b1=(8,), w2=(48, 5)) | {name: np.array(size) for name, size in sizes.items()}
    graph = canonize(read(model(MERGED, **arrays))).graph
    assert {Multiple(6), Multiple(2)} <= {d for value in graph.values.values() for d in value.shape or ()}
    x, x0 = rng().normal(size=(2, 3, 6, 4)).astype(np.float32)
    pair = paired(graph, ask(graph), x0[:1])
    at_reference = run_ort(pair.graph.pruned([pair.names["active"], pair.names["shares"]]), {"x": x})
    full = run_ort(graph.pruned(["active", "shares"]), {"x": np.repeat(x0[:1], 3, 0)})
    for name, values in full.items():
        assert relative_error(at_reference[pair.names[name]], values) < TOLERANCE
    one, rows = (explained(MERGED, arrays, x, baseline=b) for b in (x0[:1], np.repeat(x0[:1], 3, 0)))
    assert relative_error(one.values, rows.values) < TOLERANCE
    assert np.all(abs(one.residual) < 1e-5)


def test_windows_on_the_axis_of_the_batch() -> None:
    """As in windowed attention."""
    text = """net (float[N, 6, 4] x) => (float[N, 5] y) {
        a = Reshape(x, rows)
        b = Gemm(a, w1, b1)
        c = Relu(b)
        d = Transpose(c)
        e = Softmax<axis=0>(d)
        f = Transpose(e)
        g = Reshape(f, samples)
        y = MatMul(g, w2)
    }"""
    arrays = weights(w1=(4, 8), b1=(8,), w2=(48, 5))
    arrays |= {"rows": np.array([-1, 4]), "samples": np.array([-1, 48])}
    x, x0 = rng().normal(size=(2, 3, 6, 4)).astype(np.float32)
    shared = explained(text, arrays, x, baseline=x0[:1], target=2)
    each = explained(text, arrays, x, baseline=np.repeat(x0[:1], 3, 0), target=2)
    assert relative_error(shared.values, each.values) < 1e-6
    assert np.all(abs(shared.residual) < 1e-5)


def test_baselines_for_each_sample_and_several() -> None:
    x, x0 = IMAGES.x(3), IMAGES.x(3, seed=7)
    explain = lambda **options: ox.explain(IMAGES.proto(), x, "deeplift", rule="reveal_cancel", target=1, **options)
    one_by_one = [explain(baseline=b) for b in x0]
    each = explain(baseline=x0)
    expected = np.stack([one_by_one[k].values[k] for k in range(3)])
    assert relative_error(each.values, expected) < TOLERANCE
    several = explain(baselines=x0)
    assert relative_error(several.values, np.mean([r.values for r in one_by_one], axis=0)) < TOLERANCE
    assert np.all(abs(several.residual) < 1e-5)
    chunked = explain(baselines=x0, memory=1)
    np.testing.assert_allclose(chunked.values, several.values, atol=1e-6)
    assert several.values.dtype == np.float32
    assert several.target.dtype == np.int64


@pytest.mark.parametrize("options", [{"baseline": 0.2}, {"baselines": [0.2, -0.3]}], ids=["one", "several"])
def test_tokens_have_tokens_for_baselines(options: dict[str, Any]) -> None:
    tokens = np.array([[1, 2, 3, 4, 5], [0, 1, 0, 6, 2]])
    with pytest.raises(OptionError, match="the input 'x' of dtype int64 cannot hold a baseline"):
        ox.explain(TOKENS.proto(), tokens, "deeplift", **options)
    ids = {name: np.asarray(value) for name, value in {"baseline": 3, "baselines": [3, 6]}.items() if name in options}
    result = ox.explain(TOKENS.proto(), tokens, "deeplift", target=0, **ids)
    assert result.values.shape == tokens.shape
    scores = [TOKENS.evaluate({"x": tokens * 0 + k})[:, 0] for k in np.atleast_1d(next(iter(ids.values())))]
    change = TOKENS.evaluate({"x": tokens})[:, 0] - np.mean(scores, axis=0)
    np.testing.assert_allclose(result.values.sum(1), change, atol=1e-5)
    np.testing.assert_allclose(result.values[tokens == 3], 0, atol=1e-6 if "baseline" in options else 1.0)


def test_internal_tensors_have_baselines_of_their_own() -> None:
    x = RESIDUAL.x(2)
    for baseline in (0.1, np.full((2, 4, 6, 6), 0.1), np.full((1, 4, 1, 1), 0.1)):
        result = ox.explain(RESIDUAL.proto(), x, "deeplift", at="r1", baseline=baseline, target=2)
        assert result.values.shape == (2, 4, 6, 6)
        tail = Tiny(
            RESIDUAL.text.replace("float[N,3,6,6] x", "float[N,4,6,6] r1")
            .replace("c1 = Conv<pads=[1,1,1,1]>(x, w1, b1)", "")
            .replace("r1 = Relu(c1)", ""),
            {n: a for n, a in RESIDUAL.weights.items() if n not in ("w1", "b1")},
            {"r1": (4, 6, 6)},
            (4,),
        )
        change = RESIDUAL.evaluate({"x": x}) - tail.evaluate({"r1": np.full((2, 4, 6, 6), 0.1)})
        np.testing.assert_allclose(result.values.sum((1, 2, 3)), change[:, 2], atol=1e-5)


def test_bad_baselines() -> None:
    x = IMAGES.x(2)
    for options in ({"baseline": np.ones(3)}, {"baseline": np.ones((3, 2, 9, 8))}, {"baselines": np.ones((3, 5))}):
        with pytest.raises(OptionError, match="does not fit"):
            ox.explain(IMAGES.proto(), x, "deeplift", **options)
    with pytest.raises(OptionError, match="not both"):
        ox.Explainer(IMAGES.proto(), "deeplift", baseline=1.0, baselines=np.ones((2, 1)))
    with pytest.raises(OptionError, match="at least one"):
        ox.Explainer(IMAGES.proto(), "deeplift", baselines=np.ones((0, 1)))


@pytest.mark.parametrize(("low", "high"), [(0.0, 6.0), (-1.0, 2.0)])
def test_clip_between_all_pairs_of_places(low: float, high: float) -> None:
    """Rise over run, and for no run the derivative, which is 0 at the bounds."""
    bounds = {"low": np.array(low), "high": np.array(high)}
    places = np.array([-9, low - 1e-3, low, low + 1e-6, 0.5, 1.5, high - 1e-6, high, high + 1e-3, 40], np.float32)
    proto = model("m (float[N,1] x) => (float[N,1] y) { y = Clip(x, low, high) }", **bounds)
    x, x0 = (a.reshape(-1, 1) for a in np.meshgrid(places, places))
    result = ox.explain(proto, x, "deeplift", target=0, baseline=x0)
    rise = np.clip(x, low, high).astype(np.float64) - np.clip(x0, low, high)
    np.testing.assert_allclose(result.values, rise, rtol=1e-5, atol=49 * 2**-23)  # slopes are rounded at 1, steps to 49
    # What the multiplier is where x = x0 shows in a layer before, whose two parts cancel.
    text = "m (float[N,2] x) => (float[N,1] y) { s = ReduceSum(x, one) y = Clip(s, low, high) }"
    cancelling = model(text, **bounds, one=np.array([1]))
    both = np.concatenate([places[:, None] + 8, np.full((len(places), 1), -8, np.float32)], axis=1)
    there = np.concatenate([places[:, None], np.zeros((len(places), 1), np.float32)], axis=1)
    kept = both.sum(axis=1) == places
    found = ox.explain(cancelling, both[kept], "deeplift", target=0, baseline=there[kept]).values
    inside = ((places > low) & (places < high))[kept]
    np.testing.assert_allclose(found, inside[:, None] * np.array([8.0, -8.0]), rtol=1e-6)
    assert 0 < inside.sum() < len(inside)
