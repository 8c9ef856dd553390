"""Softmax and Sigmoid that are spelled out."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest

from onnxplain.canonize import canonize
from onnxplain.storage.reader import read
from tests.models import model
from tests.reference import rng, run_ort

X = rng(1).normal(size=(2, 5, 4)).astype(np.float32)
SPELLED = {
    "softmax": "m = ReduceMax(x, axis)  d = Sub(x, m)  e = Exp(d)  s = ReduceSum(e, axis)  y = Div(e, s)",
    "softmax without shift": "e = Exp(x)  s = ReduceSum(e, axis)  y = Div(e, s)",
    "softmax of a clipped shift, reshaped": "m = ReduceMax<keepdims=0>(x, axis)  c = Max(m, zero)"
    "  u = Unsqueeze(c, axis)  d = Sub(x, u)  e = Exp(d)  s = ReduceSum<keepdims=0>(e, axis)  t = Unsqueeze(s, axis)"
    "  y = Div(e, t)",
    "softmax, squeezed": "e = Exp(x)  s = ReduceSum(e, axis)  q = Squeeze(s, axis)  t = Unsqueeze(q, axis)"
    "  y = Div(e, t)",
    "sigmoid": "n = Neg(x)  e = Exp(n)  s = Add(one, e)  y = Div(one, s)",
    "sigmoid, reciprocal": "n = Neg(x)  e = Exp(n)  s = Add(e, one)  y = Reciprocal(s)",
}
OTHERS = {
    "something added": "e = Exp(x)  s = ReduceSum(e, axis)  t = Add(s, one)  y = Div(e, t)",
    "another exponential": "e = Exp(x)  f = Exp(e)  s = ReduceSum(f, axis)  y = Div(e, s)",
    "another sum": "n = Neg(x)  e = Exp(n)  s = Add(two, e)  y = Div(one, s)",
    "no sign": "e = Exp(x)  s = Add(one, e)  y = Div(one, s)",
}
NUMBERS = {"axis": np.array([1]), "last": np.array([2])} | {
    n: np.float32(i) for i, n in enumerate(["zero", "one", "two"])
}
CASES = [(nodes, nodes in SPELLED.values()) for nodes in (*SPELLED.values(), *OTHERS.values())]


@pytest.mark.parametrize(("nodes", "found"), CASES, ids=[*SPELLED, *OTHERS])
def test_idioms(nodes: str, found: bool) -> None:
    used = {name: array for name, array in NUMBERS.items() if f"{name})" in nodes or f"({name}," in nodes}
    proto = model(f"m (float[N,5,4] x) => (float[N,5,4] y) {{ {nodes} }}", **used)
    graph = canonize(read(proto)).graph
    assert any(node.op in ("Softmax", "Sigmoid") for node in graph.nodes) == found
    assert (len(graph.nodes) == 1) == found
    expected = onnxruntime.InferenceSession(proto.SerializeToString()).run(None, {"x": X})[0]
    np.testing.assert_allclose(run_ort(graph, {"x": X})["y"], expected, rtol=1e-5)


def test_a_shift_that_differs_along_the_axis_is_kept() -> None:
    nodes = "d = Sub(x, c)  e = Exp(d)  s = ReduceSum(e, axis)  y = Div(e, s)"
    shift = rng(2).normal(size=(5, 1)).astype(np.float32)
    proto = model(f"m (float[N,5,4] x) => (float[N,5,4] y) {{ {nodes} }}", c=shift, axis=NUMBERS["axis"])
    graph = canonize(read(proto)).graph
    assert [node.op for node in graph.nodes] == ["Sub", "Softmax"]


def test_steps_that_others_use_stay() -> None:
    text = "m (float[N,5] x) => (float[N,5] y, float[N,5] e) { e = Exp(x)  s = ReduceSum(e, axis)  y = Div(e, s) }"
    graph = canonize(read(model(text, axis=NUMBERS["axis"]))).graph
    assert sorted(node.op for node in graph.nodes) == ["Exp", "Softmax"]


def test_softmax_as_it_was_before_opset_13() -> None:
    for axis, found in ((2, ["Softmax"]), (-1, ["Softmax"]), (1, ["Shape", "Flatten", "Softmax", "Reshape"])):
        proto = model(f"m (float[N,L,4] x) => (float[N,L,4] y) {{ y = Softmax<axis={axis}>(x) }}")
        proto.opset_import[0].version = 11
        graph = canonize(read(proto)).graph
        assert [node.op for node in graph.nodes] == found
        expected = onnxruntime.InferenceSession(proto.SerializeToString()).run(None, {"x": X})[0]
        np.testing.assert_allclose(run_ort(graph, {"x": X})["y"], expected, rtol=1e-5)
