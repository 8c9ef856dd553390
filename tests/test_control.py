from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from onnxplain.backward import plan
from onnxplain.canonize.shapes import inferred
from onnxplain.emit import Emitter
from onnxplain.errors import UnsupportedOperatorError
from onnxplain.ir import Graph
from onnxplain.ops import OPS
from onnxplain.reader import to_graph
from onnxplain.writer import to_proto
from tests.models import Array, model
from tests.reference import gradient_graph, relative_error, rng, run_ort

X = rng().normal(size=(2, 3)).astype(np.float32)
XS = rng(3).normal(size=(4, 2, 3)).astype(np.float32)
W = (0.6 * rng(1).normal(size=(3, 3))).astype(np.float32)


def graph_of(text: str, **weights: Array) -> Graph:
    return to_graph(inferred(model(text, **weights)))


def differences(proto: onnx.ModelProto, feeds: Mapping[str, Array], wanted: Sequence[str], ct: Array) -> dict:
    """Central differences of ONNX Runtime's float64 results; the reference evaluator's Loop is wrong."""
    run = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"]).run
    point = {n: a.astype(np.float64) if a.dtype.kind == "f" else a for n, a in feeds.items()}
    results = {}
    for name in wanted:
        results[name] = np.zeros(feeds[name].shape)
        for index in np.ndindex(feeds[name].shape):
            ends = []
            for step in (1e-5, -1e-5):
                moved = point[name].copy()
                moved[index] += step
                ends.append(np.sum(run(["y"], {**point, name: moved})[0] * ct))
            results[name][index] = (ends[0] - ends[1]) / 2e-5
    return results


def check(text: str, feeds: Mapping[str, Array], wanted: Sequence[str] = ("x",), **weights: Array) -> Graph:
    """Assert that the gradients of a random projection of y are right; return the graph that calculates them."""
    weights = weights or {"w": W}
    graph = graph_of(text, **weights)
    y = run_ort(graph.pruned(["y"]), feeds)["y"]
    ct = rng(5).normal(size=y.shape).astype(np.float32)
    written = gradient_graph(graph, {"y": ct}, wanted)
    onnx.checker.check_model(to_proto(written), full_check=True)
    results = run_ort(written, {**feeds, "ct_y": ct})
    for name, expected in differences(model(text, double=True, **weights), feeds, wanted, ct).items():
        assert np.any(expected)
        assert relative_error(results[f"d_{name}"], expected) < 1e-5, name
    return written


IF = """m (float[N,3] x, bool c) => (float[N,3] y) {
    z = MatMul(x, w)
    h, k = If(c) <
        then_branch = rise () => (float[N,3] r, float[N,3] rr) { r = Tanh(z)  rr = Mul(r, x) },
        else_branch = fall () => (float[N,3] s, float[N,3] t) { s = Sin(z)  t = Identity(s) }
    >
    sum = Add(h, z)
    y = Mul(sum, k)
}"""


@pytest.mark.parametrize("condition", [True, False])
def test_both_branches(condition: bool) -> None:
    check(IF, {"x": X, "c": np.array(condition)})


LOOP = """m (float[N,3] x, float[T,N,3] xs, int64 n) => (float[N,3] y) {
    final, ys = Loop(n, , x) <
        body = step (int64 i, bool on, float[N,3] s) => (bool go, float[N,3] s_out, float[N,3] z) {
            go = Identity(on)
            xi = Gather<axis=0>(xs, i)
            t = MatMul(s, w)
            u = Add(t, xi)
            v = Mul(u, x)
            s_out = Tanh(v)
            z = Sin(u)
        }
    >
    axis = Constant<value=int64[1] {0}>()
    total = ReduceSum<keepdims=0>(ys, axis)
    y = Mul(total, final)
}"""


@pytest.mark.parametrize("trips", [4, 3, 1])
def test_states_captures_slices_and_scan_outputs(trips: int) -> None:
    check(LOOP, {"x": X, "xs": XS, "n": np.array(trips)}, ["x", "xs"])


def test_unsupported_operators_in_bodies_are_named_with_all_others(monkeypatch: pytest.MonkeyPatch) -> None:
    text = """m (float[N,3] x, bool c) => (float[N,3] y) {
        a = Exp(x)
        h = If(c) <
            then_branch = rise () => (float[N,3] r) { [inside] r = Tanh(a) },
            else_branch = fall () => (float[N,3] s) { q = Sin(a)  s = Sin(q)  aside = Tanh(q) }
        >
        y = Tanh(h)
    }"""
    for op in ("Tanh", "Sin"):
        monkeypatch.delitem(OPS, op)
    graph = graph_of(text)
    expected = r"for 4 of the nodes on the path: Sin 'q', Sin 's', Tanh 'inside', Tanh 'y'$"
    with pytest.raises(UnsupportedOperatorError, match=expected):
        plan(graph, Emitter(graph), ["y"], ["x"])
