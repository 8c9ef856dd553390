"""Sequences of tensors, in straight-line code and in loops, and optionals."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import onnxplain as ox
from onnxplain.canonize import canonize
from onnxplain.errors import UnsupportedOperatorError
from onnxplain.storage.reader import read
from onnxplain.storage.writer import to_proto
from tests.backward.control.checks import differences
from tests.models import model, weights
from tests.reference import relative_error, rng, run_ort

X = rng(1).normal(size=(2, 4, 3)).astype(np.float32)
NUMBERS = {"zero": 0, "one": 1, "two": 2, "three": 3, "last": -1, "parts": [1, 2, 1], "axis": [1]}

CASES = {
    "built and joined": "s = SequenceConstruct(a, b)  y = ConcatFromSequence<axis=1>(s)",
    "joined along a new axis": "s = SequenceConstruct(a, b, a)  y = ConcatFromSequence<axis=-1, new_axis=1>(s)",
    "one picked": "s = SequenceConstruct(a, b)  y = SequenceAt(s, last)",
    "inserted and erased": "e = SequenceEmpty()  s = SequenceInsert(e, a)  t = SequenceInsert(s, b, zero)"
    "  u = SequenceInsert(t, a)  v = SequenceErase(u, one)  w = SequenceInsert(v, b, last)  x1 = SequenceErase(w)"
    "  y = ConcatFromSequence<axis=2>(x1)",
    "split into parts": "s = SplitToSequence<axis=1>(a, parts)  p = SequenceAt(s, one)  q = SequenceAt(s, zero)"
    "  y = Mul(p, q)",
    "split into equal parts": "s = SplitToSequence<axis=1>(a, three)  p = SequenceAt(s, zero)  q = SequenceAt(s, one)"
    "  y = Mul(p, q)",
    "unbound": "s = SplitToSequence<axis=1, keepdims=0>(a)  p = SequenceAt(s, two)  q = SequenceAt(s, last)"
    "  y = Mul(p, q)",
    "unbound, sizes kept": "s = SplitToSequence<axis=1>(a)  p = SequenceAt(s, two)  q = SequenceAt(s, last)"
    "  y = Mul(p, q)",
    "unbound and stacked elsewhere": "s = SplitToSequence<axis=1, keepdims=0>(a)"
    "  y = ConcatFromSequence<axis=-1, new_axis=1>(s)",
    "unbound and put in a row": "s = SplitToSequence<axis=1, keepdims=0>(a)  y = ConcatFromSequence<axis=1>(s)",
    "put together again": "s = SplitToSequence<axis=1>(a)  y = ConcatFromSequence<axis=1>(s)",
    "copied": "s = SequenceConstruct(a, b)  t = Identity(s)  y = SequenceAt(t, one)",
    "counted": "s = SplitToSequence<axis=1>(a)  n = SequenceLength(s)  f = CastLike(n, a)  t = SequenceConstruct(a, b)"
    "  m = SequenceLength(t)  g = CastLike(m, a)  h = Mul(a, f)  y = Mul(h, g)",
    "picked by a number that is not known": "s = SplitToSequence<axis=1, keepdims=0>(a)  y = SequenceAt(s, k)",
    "picked, as a slice": "s = SplitToSequence<axis=1>(a)  y = SequenceAt(s, k)",
    "in a branch": "s = SequenceConstruct(a, b)  c = Cast<to=9>(k)  y = If(c) <"
    " then_branch = p () => (float[N,4,3] r) { r = SequenceAt(s, one) },"
    " else_branch = q () => (float[N,4,3] t) { u = SequenceConstruct(a, a)  t = SequenceAt(u, one) } >",
    "collected in a loop": "e = SequenceEmpty()  h = ReduceSum<keepdims=0>(a, axis)  f, s = Loop(three, , h, e) <"
    " body = step (int64 i, bool on, float[N,3] p, seq(float[N,3]) q)"
    " => (bool go, float[N,3] p_out, seq(float[N,3]) q_out) { go = Identity(on)  t = Gather<axis=1>(b, i)"
    "  p_out = Mul(p, t)  q_out = SequenceInsert(q, p_out) } >  y = ConcatFromSequence<axis=1, new_axis=1>(s)",
    "unbound, and collected in two sequences": "e = SequenceEmpty()  d = SplitToSequence<axis=1, keepdims=0>(b)"
    "  h = ReduceSum<keepdims=0>(a, axis)  n = SequenceLength(d)  f, s, g, r = Loop(n, , h, e, h, e) <"
    " body = step (int64 i, bool on, float[N,3] p, seq(float[N,3]) q, float[N,3] o, seq(float[N,3]) l)"
    " => (bool go, float[N,3] p_out, seq(float[N,3]) q_out, float[N,3] o_out, seq(float[N,3]) l_out) {"
    " go = Identity(on)  t = SequenceAt(d, i)  p_out = Mul(p, t)  o_out = Add(o, p)  q_out = SequenceInsert(q, t)"
    "  l_out = SequenceInsert(l, o_out) } >"
    "  j = ConcatFromSequence<axis=1>(s)  z = SequenceAt(r, last)  w = ConcatFromSequence<axis=1>(r)  y = Mul(j, w)",
    "collected from what was collected": "e = SequenceEmpty()  d = SplitToSequence<axis=1, keepdims=0>(b)"
    "  n = SequenceLength(d)  s = Loop(n, , e) < body = one (int64 i, bool on, seq(float[N,3]) q)"
    " => (bool go, seq(float[N,3]) q_out) { go = Identity(on)  t = SequenceAt(d, i)  u = Sin(t)"
    "  q_out = SequenceInsert(q, u) } >  r = Loop(n, , e) < body = two (int64 j, bool on2, seq(float[N,3]) p)"
    " => (bool go2, seq(float[N,3]) p_out) { go2 = Identity(on2)  t2 = SequenceAt(s, j)  u2 = Mul(t2, t2)"
    "  p_out = SequenceInsert(p, u2) } >  y = ConcatFromSequence<axis=1, new_axis=1>(r)",
    "an optional tensor": "o = Optional(a)  h = OptionalHasElement(o)  y = If(h) <"
    " then_branch = p () => (float[N,4,3] r) { g = OptionalGetElement(o)  r = Mul(g, b) },"
    " else_branch = q () => (float[N,4,3] t) { t = Identity(b) } >",
    "an optional sequence": "s = SequenceConstruct(a, b)  o = Optional(s)  c = Identity(o)  g = OptionalGetElement(c)"
    "  p = SequenceAt(g, zero)  q = SequenceAt(g, last)  y = Mul(p, q)",
    "what is not optional": "s = SequenceConstruct(a, b)  h = OptionalHasElement(s)  j = OptionalHasElement(a)"
    "  k2 = And(h, j)  t = OptionalGetElement(s)  e = OptionalGetElement(b)  f = SequenceAt(t, zero)  g = Mul(e, f)"
    "  y = If(k2) < then_branch = p () => (float[N,4,3] r) { r = Sin(g) },"
    " else_branch = q () => (float[N,4,3] u) { u = Identity(b) } >",
    "nothing": "h = OptionalHasElement()  y = If(h) < then_branch = p () => (float[N,4,3] r) { r = Mul(a, b) },"
    " else_branch = q () => (float[N,4,3] t) { t = Identity(b) } >",
    "mapped": "d = SplitToSequence<axis=1, keepdims=0>(b)  s = SequenceMap(d, a) <"
    " body = each (float[N,3] t, float[N,4,3] whole) => (float[N,3] u) { v = ReduceMean<keepdims=0>(whole, axis)"
    "  w = Mul(t, v)  u = Sin(w) } >  y = ConcatFromSequence<axis=1, new_axis=1>(s)",
}


@pytest.mark.parametrize("nodes", CASES.values(), ids=CASES)
def test_gradients(nodes: str) -> None:
    inputs = "float[N,4,3] x, int64 k" if " k)" in nodes or "(k)" in nodes else "float[N,4,3] x"
    text = f"m ({inputs}) => (float[A,B,C] y) {{ a = Sin(x)  b = Exp(x)  {nodes} }}"
    used = {n: np.array(v) for n, v in NUMBERS.items() if f" {n})" in nodes or f"({n}," in nodes or f" {n}," in nodes}
    feeds = {"x": X, "k": np.array(1)} if "int64 k" in text else {"x": X}
    graph = canonize(read(model(text, **used))).graph
    assert not [n.op for n in graph.all_nodes if "Sequence" in n.op or "Optional" in n.op]
    onnx.checker.check_model(to_proto(graph), full_check=True)
    y = run_ort(graph, feeds)["y"]
    target = (0,) * (y.ndim - 2) + (1,)
    ct = np.zeros_like(y)
    ct[(slice(None), *target)] = 1
    typed = text.replace("SequenceEmpty()", "SequenceEmpty<dtype=11>()")
    expected = differences(model(typed, double=True, **used), feeds, ["x"], ct)["x"]
    result = ox.explain(model(text, **used), feeds, target=target)
    assert relative_error(result["x"].values, expected) < 1e-5


def test_weights_and_a_batch_of_one() -> None:
    text = """m (float[1,4,40] x) => (float[1,4] y) {
        z = MatMul(x, w)
        s = SplitToSequence<axis=1, keepdims=0>(z)
        t = SequenceInsert(s, shift)
        y = ConcatFromSequence<axis=1>(s)
    }"""
    w = weights(w=(40, 40), shift=(1, 40))
    canonical = canonize(read(model(text, **w)))
    assert canonical.fixed_batch is None
    assert [n.op for n in canonical.graph.nodes] == ["MatMul", "Reshape"]
    x = rng(2).normal(size=(3, 4, 40)).astype(np.float32)
    values = ox.explain(model(text, **w), x, target=(41,)).values
    np.testing.assert_allclose(values, np.tile(np.eye(4)[1][:, None] * w["w"][:, 1], (3, 1, 1)), rtol=1e-6)


def test_an_optional_of_nothing() -> None:
    text = """m (float[N,4,3] x) => (float[N,4,3] y, optional(float[N,4,3]) o) {
        h = OptionalHasElement(o)
        y = If(h) <
            then_branch = p () => (float[N,4,3] r) { g = OptionalGetElement(o)  r = Exp(g) },
            else_branch = q () => (float[N,4,3] t) { t = Sin(x) }
        >
    }"""
    proto = model(text)
    kind = onnx.helper.make_tensor_type_proto(onnx.TensorProto.FLOAT, ["N", 4, 3])
    proto.graph.node.insert(0, onnx.helper.make_node("Optional", [], ["o"], type=kind))
    assert {n.op for n in canonize(read(proto)).graph.nodes} == {"Optional", "Sin"}
    np.testing.assert_allclose(ox.explain(proto, X, target=(1, 2)).values[:, 1, 2], np.cos(X[:, 1, 2]), rtol=1e-6)


STAY = {
    "tensors of several sizes": "e = SequenceEmpty()  s = Loop(three, , e) <"
    " body = step (int64 i, bool on, seq(float[A,B,C]) q) => (bool go, seq(float[A,B,C]) q_out) {"
    " go = Identity(on)  j = Add(i, one)  u = Unsqueeze(j, zero)  v = Unsqueeze(one, zero)  t = Slice(a, v, u, v)"
    "  q_out = SequenceInsert(q, t) } >  z = ConcatFromSequence<axis=1>(s)",
    "an unknown place": "s = SequenceConstruct(a, b)  z = SequenceAt(s, k)",
    "two sequences to choose from": "c = Cast<to=9>(k)  s = If(c) <"
    " then_branch = p () => (seq(float[N,4,3]) r) { r = SequenceConstruct(a, b) },"
    " else_branch = q () => (seq(float[N,4,3]) t) { t = SequenceConstruct(a, a) } >  z = SequenceAt(s, one)",
    "two optionals to choose from": "c = Cast<to=9>(k)  s = If(c) <"
    " then_branch = p () => (optional(float[N,4,3]) r) { r = Optional(a) },"
    " else_branch = q () => (optional(float[N,4,3]) t) { t = Optional(b) } >  z = OptionalGetElement(s)",
}


@pytest.mark.parametrize("nodes", STAY.values(), ids=STAY)
def test_what_stays_is_named(nodes: str) -> None:
    text = f"m (float[N,4,3] x, int64 k) => (float[A,B] y) {{ a = Sin(x)  b = Exp(x)  {nodes}  y = Reshape(z, rows) }}"
    used = {n: np.array(v) for n, v in NUMBERS.items() if n in ("zero", "one", "three")}
    used["rows"] = np.array([0, 9 if "Loop" in nodes else 12])
    feeds = {"x": X, "k": np.array(1)}
    with pytest.raises(UnsupportedOperatorError, match=r"Sequence|Optional"):
        ox.explain(model(text, **used), feeds, target=1)
    ox.explain(model(text, **used), feeds, "occlusion", target=1, window=1)
