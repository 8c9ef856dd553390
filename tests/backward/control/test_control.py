"""Gradients of bodies in bodies, of `Scan`, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from onnxplain.backward.walk import plan
from onnxplain.errors import UnsupportedOperatorError
from onnxplain.graph.emit import Emitter
from onnxplain.ops import OPS
from tests.backward.control.checks import XS, W, X, check, graph_of
from tests.reference import rng

NESTED = {
    "an If in a Loop": """
        y = Loop(n, , x) <
            body = step (int64 i, bool on, float[2,3] s) => (bool go, float[2,3] s_out) {
                go = Identity(on)
                t = Gather<axis=0>(xs, i)
                odd = Cast<to=9>(i)
                s_out = If(odd) <
                    then_branch = rise () => (float[2,3] r) { q = Mul(s, t)  r = Mul(q, x) },
                    else_branch = fall () => (float[2,3] f) { f = Sin(s) }
                >
            }
        >""",
    "a Loop in an If": """
        h = Sin(x)
        y = If(c) <
            then_branch = rise () => (float[2,3] r) {
                r = Loop(n, , h) <
                    body = step (int64 i, bool on, float[2,3] s) => (bool go, float[2,3] s_out) {
                        go = Identity(on)
                        t = Gather<axis=0>(xs, i)
                        u = MatMul(s, w)
                        q = Mul(t, x)
                        s_out = Add(u, q)
                    }
                >
            },
            else_branch = fall () => (float[2,3] f) { f = Mul(x, x) }
        >""",
    "a Loop in a Loop": """
        y = Loop(n, , x) <
            body = outer (int64 i, bool on, float[2,3] s) => (bool go, float[2,3] s_out) {
                go = Identity(on)
                t = Gather<axis=0>(xs, i)
                s_in = Tanh(s)
                s_out, zs = Loop(n, , s_in) <
                    body = inner (int64 j, bool on2, float[2,3] p) => (bool go2, float[2,3] p_out, float[2,3] z) {
                        go2 = Identity(on2)
                        u = Gather<axis=0>(xs, j)
                        q = Mul(p, t)
                        p_out = Add(q, u)
                        z = Mul(p, s)
                    }
                >
            }
        >""",
    "an If in an If": """
        h = Sin(x)
        y = If(c) <
            then_branch = rise () => (float[2,3] r) {
                k = Exp(h)
                r = If(c) <
                    then_branch = rise2 () => (float[2,3] r2) { r2 = Mul(k, x) },
                    else_branch = fall2 () => (float[2,3] f2) { f2 = Sin(k) }
                >
            },
            else_branch = fall () => (float[2,3] f) {
                f = If(c) <
                    then_branch = rise3 () => (float[2,3] r3) { r3 = Identity(x) },
                    else_branch = fall3 () => (float[2,3] f3) { f3 = Mul(h, x) }
                >
            }
        >""",
}


@pytest.mark.parametrize("condition", [True, False])
@pytest.mark.parametrize("nodes", NESTED.values(), ids=NESTED)
def test_bodies_in_bodies(nodes: str, condition: bool) -> None:
    inputs = "float[2,3] x, float[4,2,3] xs, int64 n, bool c"
    used = [i for i in inputs.split(", ") if i.split()[1] + "," in nodes.replace(")", ",")]
    text = f"m ({', '.join(used)}) => (float[2,3] y) {{ {nodes} }}"
    feeds = {"x": X, "xs": XS, "n": np.array(3), "c": np.array(condition)}
    feeds = {i.split()[1]: feeds[i.split()[1]] for i in used}
    wanted = [n for n in ("x", "xs") if n in feeds and (condition or n == "x" or "If(c)" not in nodes)]
    check(text, feeds, wanted, **({"w": W} if "w)" in nodes else {}))


@pytest.mark.parametrize("back", [0, 1])
@pytest.mark.parametrize("axis", [0, -1, 1])
def test_scans_of_every_axis_and_direction(axis: int, back: int) -> None:
    shape = {0: (2, 3, 4), 1: (3, 2, 4), -1: (3, 4, 2)}[axis]  # two slices of 3 x 4
    text = f"""m (float{list(shape)} x, float[3,4] h) => (float[3,4] y) {{
        final, kept, zs, us = Scan<num_scan_inputs=2,
            scan_input_axes=[{axis},{axis}], scan_input_directions=[{back},0],
            scan_output_axes=[0,{axis}], scan_output_directions=[{1 - back},{back}],
            body = step (float[3,4] s, float[3,4] k, float[3,4] a, float[3,4] b)
                => (float[3,4] s_out, float[3,4] k_out, float[3,4] z, float[3,4] u) {{
                ab = Mul(a, k)
                s_out = Add(s, ab)
                k_out = Identity(k)
                z = Mul(s, b)
                u = Sin(s_out)
            }}
        >(h, h, x, x)
        p = Gather<axis=0>(zs, first)
        q = Gather<axis={axis}>(us, first)
        pq = Mul(p, q)
        r = Mul(final, kept)
        y = Add(pq, r)
    }}"""
    feeds = {"x": rng(1).normal(size=shape).astype(np.float32), "h": rng(2).normal(size=(3, 4)).astype(np.float32)}
    check(text, feeds, ["x", "h"], first=np.array(0))


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
