"""Gradients of `If`."""

from __future__ import annotations

import numpy as np
import pytest

from onnxplain.backward.walk import active_values, plan
from onnxplain.graph.emit import Emitter
from tests.backward.control.checks import X, check, graph_of

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


BRANCHES = {
    "one branch does not reach": "r = Exp(z) | s = Sin(w2)",
    "one branch is a step": "r = Ceil(z) | s = Mul(z, z)",
    "they reach different tensors": "r = Mul(x, x) | s = Sin(z)",
    "they return what they find": "r = Identity(z) | s = Identity(x)",
    "a weight inside": "k = Constant<value=float[1,3] {0.5, -1.5, 2.0}>()  r = Mul(z, k) | s = Mul(x, w2)",
}


@pytest.mark.parametrize("condition", [True, False])
@pytest.mark.parametrize("branches", BRANCHES.values(), ids=BRANCHES)
def test_branches(branches: str, condition: bool) -> None:
    then, other = branches.split(" | ")
    text = f"""m (float[2,3] x, bool c) => (float[2,3] y) {{
        z = Sin(x)
        h = If(c) <
            then_branch = rise () => (float[2,3] r) {{ {then} }},
            else_branch = fall () => (float[2,3] s) {{ {other} }}
        >
        y = Add(h, z)
    }}"""
    check(text, {"x": X, "c": np.array(condition)}, w2=X)


def test_an_if_nobody_needs_is_left_alone() -> None:
    text = """m (float[N,3] x, bool c) => (float[N,3] y) {
        unused, h = If(c) <
            then_branch = rise () => (float[N,3] a, float[N,3] r) { a = NonZero(x)  r = Exp(x) },
            else_branch = fall () => (float[N,3] b, float[N,3] s) { b = Det(x)  s = Sin(x) }
        >
        y = Exp(h)
    }"""
    graph = graph_of(text)
    assert [c.node.op for c in plan(graph, Emitter(graph), ["y"], ["x"])] == ["Exp", "If", "Exp", "Sin"]
    assert active_values(graph, ["x"]) == {"x", "unused", "h", "y"}
