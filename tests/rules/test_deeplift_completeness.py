"""DeepLIFT's completeness: contributions sum to the change of the score, in whole networks."""

from __future__ import annotations

import numpy as np
import pytest

import onnxplain as ox
from onnxplain.backward.recurrent import as_loops
from onnxplain.canonize import canonize
from onnxplain.errors import UnsupportedModelError
from onnxplain.programs.reference import paired
from onnxplain.questions.question import ask
from onnxplain.storage.reader import read
from tests.models import BRANCHES, MLP, REPEATED, model, weights
from tests.reference import relative_error, rng
from tests.rules.explained import TOLERANCE, explained

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
