"""Branches that shapes decide."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

import onnxplain as ox
from onnxplain.canonize import canonize
from onnxplain.errors import OnnxplainError, UnsupportedModelError
from onnxplain.graph.ir import Graph
from onnxplain.storage.reader import graphs_of, read
from tests.export.test_explainer import bare
from tests.models import Array, model
from tests.reference import relative_error, rng, run_ort

W = rng(1).normal(size=(4, 3)).astype(np.float32)
X = rng(2).normal(size=(2, 4, 1)).astype(np.float32)


def ops(graph: Graph) -> list[str]:
    return [op for n in graph.nodes for op in (n.op, *(inner for body in n.subgraphs for inner in ops(body)))]


def canonical(text: str, sizes: dict[str, int] | None = None, **weights: Array) -> Graph:
    return canonize(read(model(text, **weights)), sizes).graph


INTS = {"zero": 0, "one": 1, "two": 2, "three": 3, "four": 4, "zeros": [0], "ones": [1]}
CONDITIONS = {  # of an x of N x 4 x 1
    "the rank": ("s = Shape(x)  r = Size(s)  c = Equal(r, three)", True),
    "a size": ("s = Shape(x)  d = Gather(s, two)  c = Less(d, three)", True),
    "as torch writes it": ("s = Shape(x)  d = Gather(s, ones)  e = Squeeze(d, zeros)  c = Equal(e, three)", False),
    "a part of the shape": ("s = Shape<start=1>(x)  d = Gather(s, zero)  c = GreaterOrEqual(d, three)", True),
    "a number as a truth": ("s = Shape(x)  d = Gather(s, one)  c = Cast<to=9>(d)", True),
    "logic": (
        "s = Shape(x)  d = Gather(s, one)  p = Greater(d, three)  q = Not(p)  r = Or(q, p)  c = And(r, q)",
        False,
    ),
    "arithmetic": ("s = Shape(x)  d = Size(s)  p = Add(d, one)  q = Mul(p, two)  c = LessOrEqual(q, three)", False),
    "sizes": (
        "s = Shape(x)  d = Gather(s, ones)  e = Concat<axis=0>(d, d)  f = Gather(e, one)  c = Equal(f, four)",
        True,
    ),
    "the size of x": ("s = Size(x)  c = Equal(s, three)", None),
    "the batch": ("s = Shape(x)  d = Gather(s, zero)  c = Equal(d, one)", None),
    "sizes, the batch among them": ("s = Shape(x)  d = Slice(s, zeros, ones)  c = Equal(d, one)", None),
    "the input": ("s = ReduceSum<keepdims=0>(x)  z = Sub(s, s)  c = Greater(s, z)", None),
}


@pytest.mark.parametrize(("nodes", "decision"), CONDITIONS.values(), ids=CONDITIONS)
def test_conditions(nodes: str, decision: bool | None) -> None:
    text = f"""m (float[N,4,1] x) => (float[N,4,1] y) {{
        {nodes}
        y = If(c) <
            then_branch = rise () => (float[N,4,1] up) {{ up = Sin(x) }},
            else_branch = fall () => (float[N,4,1] down) {{ down = Cos(x) }}
        >
    }}"""
    used = {n: np.array(v) for n, v in INTS.items() if any(f" {n}{end}" in nodes for end in ",)")}
    graph = canonical(text, **used)
    expected = {True: {"Sin"}, False: {"Cos"}, None: {"If", "Sin", "Cos"}}[decision]
    assert {"If", "Sin", "Cos"}.intersection(ops(graph)) == expected
    for samples in (1, 2):
        feeds = {"x": X[:samples]}
        runs = [run_ort(graph, feeds)["y"], onnx_result(model(text, **used), feeds)]
        assert relative_error(*runs) < 1e-6


def onnx_result(proto: onnx.ModelProto, feeds: dict[str, Array]) -> Array:
    return ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, feeds)[0]


SQUEEZE = """m (float[N,3,T] x) => (float[N,5] y) {
    s = Shape(x)
    d = Gather(s, two)
    c = Equal(d, one)
    h = If(c) <
        then_branch = rise () => (float[N,3] same) { same = Squeeze(x, axis) },
        else_branch = fall () => (float[N,3,T] same) { same = Identity(x) }
    >
    r = Shape(h)
    n = Size(r)
    flat = Equal(n, two)
    g = If(flat) <
        then_branch = rise2 () => (float[N,3] same2) { same2 = Sin(h) },
        else_branch = fall2 () => (float[N,3] same2) { same2 = ReduceSum<keepdims=0>(h, axis) }
    >
    y = Gemm(h, w)
    z = Add(g, g)
}"""
SQUEEZE_INTS = {"one": np.array(1), "two": np.array(2), "axis": np.array([2])}


def test_a_branch_that_can_never_run_gives_way() -> None:
    proto = model(SQUEEZE, w=W[:3].reshape(3, 3), **SQUEEZE_INTS)
    result = canonize(read(proto))
    graph = result.graph
    (remaining,) = (n for n in graph.nodes if n.op == "If")
    assert graph.value(remaining.outputs[0]).shape[1:] == (3,)
    assert any("If 'h': its else_branch can never run" in change for change in result.changes)
    assert any("1 of 2 If nodes" in change for change in result.changes)
    x = rng(3).normal(size=(2, 3, 1)).astype(np.float32)
    np.testing.assert_allclose(run_ort(graph, {"x": x})["y"], x[:, :, 0] @ W[:3], rtol=1e-5)
    with pytest.raises(Exception, match="indices element out of data bounds"):
        run_ort(graph, {"x": np.ones((2, 3, 2), np.float32)})


def test_it_is_explained_and_exported(tmp_path: Path) -> None:
    proto = model(SQUEEZE, w=W[:3].reshape(3, 3), **SQUEEZE_INTS)
    x = rng(3).normal(size=(2, 3, 1)).astype(np.float32)
    explainer = ox.Explainer(proto, "gradient", output="y")
    np.testing.assert_allclose(explainer(x, target=1).values[:, :, 0], np.tile(W[:3, 1], (2, 1)), rtol=1e-5)
    explainer.export(tmp_path / "a.onnx")
    result = bare(tmp_path / "a.onnx", {"x": x, "target": np.array([1, 2])})["attribution"]
    np.testing.assert_allclose(result[:, :, 0], W[:3, 1:3].T, rtol=1e-5)


def test_a_rank_that_stays_unknown_is_an_error() -> None:
    text = """m (float[N,3] x, bool c) => (float y) {
        h = If(c) <
            then_branch = rise () => (float[N,3] up) { up = Identity(x) },
            else_branch = fall () => (float[N,3,1] down) { down = Unsqueeze(x, axis) }
        >
        t = Sin(h)
        y = ReduceSum<keepdims=0>(t)
    }"""
    with pytest.raises(UnsupportedModelError, match="the number of axes is unknown at If 'h'"):
        ox.Explainer(model(text, axis=np.array([2])), "gradient", wrt="x")


TWO_RATES = """m (float[N,T] x, int64 rate) => (float[N,3] y) {
    fast = Equal(rate, four)
    y = If(fast) <
        then_branch = rise () => (float[N,3] up) { up = MatMul(x, w) },
        else_branch = fall () => (float[N,3] down) { t = Slice(w, zeros, twos)  h = MatMul(x, t)  down = Sin(h) }
    >
}"""


def test_branches_for_inputs_of_different_sizes() -> None:
    """With the sizes of one branch, ONNX Runtime refuses to load the other one."""
    proto = model(TWO_RATES, w=W, four=np.array(4), zeros=np.array([0]), twos=np.array([2]))
    explainer = ox.Explainer(proto, "gradient", wrt="x")
    four, two = np.ones((2, 4), np.float32), np.ones((2, 2), np.float32)
    np.testing.assert_allclose(explainer({"x": four, "rate": np.array(4)}, target=1).values, [W[:, 1]] * 2, rtol=1e-5)
    expected = np.cos(W[:2].sum(axis=0))[1] * W[:2, 1]
    np.testing.assert_allclose(explainer({"x": two, "rate": np.array(2)}, target=1).values, [expected] * 2, rtol=1e-5)
    with pytest.raises(OnnxplainError, match="failed to run"):
        explainer({"x": four, "rate": np.array(2)}, target=1)


def test_branches_with_the_same_names() -> None:
    inner = """If({c}) <
        then_branch = r () => (float[N,4,1] out) {{
            t = Sin({x})
            k = Constant<value=float[1] {{{k}}}>()
            out = Mul(t, k)
        }},
        else_branch = f () => (float[N,4,1] out) {{
            t = Cos({x})
            k = Constant<value=float[1] {{{k}}}>()
            out = Add(t, k)
        }}
    >"""
    text = f"""m (float[N,4,1] x, bool p) => (float[N,4,1] y) {{
        s = Shape(x)
        d = Gather(s, one)
        yes = Equal(d, four)
        no = Not(yes)
        a = {inner.format(c="yes", x="x", k="2.0")}
        b = {inner.format(c="no", x="a", k="3.0")}
        e = If(p) <
            then_branch = outer () => (float[N,4,1] out) {{
                i = {inner.format(c="no", x="b", k="5.0")}
                out = Mul(i, i)
            }},
            else_branch = other () => (float[N,4,1] out) {{ out = Identity(b) }}
        >
        y = If(yes) <
            then_branch = twice () => (float[N,4,1] same) {{ same = Identity(e) }},
            else_branch = none () => (float[N,4,1] same) {{ same = Identity(x) }}
        >
    }}"""
    graph = canonical(text, one=np.array(1), four=np.array(4))
    assert ops(graph).count("If") == 1
    b = np.cos(np.sin(X) * 2) + 3
    for p, expected in ((True, (np.cos(b) + 5) ** 2), (False, b)):
        np.testing.assert_allclose(run_ort(graph, {"x": X, "p": np.array(p)})["y"], expected, rtol=1e-5)


def test_what_a_branch_hands_on_is_copied() -> None:
    text = """m (float[N,4,1] x) => (float[N,4,1] y, float[N,4,1] z, float[4,3] v) {
        s = Shape(x)
        d = Gather(s, one)
        c = Equal(d, four)
        p, q, r = If(c) <
            then_branch = rise () => (float[N,4,1] t, float[N,4,1] t, float[4,3] k) { t = Sin(x) },
            else_branch = fall () => (float[N,4,1] o, float[N,4,1] u, float[4,3] l) { o = Cos(x) u = Exp(x) l = Exp(w) }
        >
        y = Identity(p)
        z = Exp(q)
        v = Identity(r)
    }"""
    proto = model(text, one=np.array(1), four=np.array(4), w=W)
    list(graphs_of(proto.graph))[1].initializer.append(onnx.numpy_helper.from_array(W, "k"))
    result = run_ort(canonize(read(proto)).graph, {"x": X})
    np.testing.assert_allclose(result["y"], np.sin(X), rtol=1e-6)
    np.testing.assert_allclose(result["z"], np.exp(np.sin(X)), rtol=1e-6)
    np.testing.assert_array_equal(result["v"], W)
