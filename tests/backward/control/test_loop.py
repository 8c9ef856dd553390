"""Gradients of `Loop`: states, captures, slices, conditions, sizes that grow."""

from __future__ import annotations

import numpy as np
import pytest

from onnxplain.backward.control import as_scans
from tests.backward.control.checks import XS, W, X, check, check_trips, graph_of
from tests.reference import gradient_graph, run_ort

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
    check_trips(LOOP, trips, w=W)


LOOPS = {  # name: (state, its end, scan output), in terms of the state s, the trip i, x, xs, w and the trip's slice t
    "a state that is passed on": "s_out = Identity(s)  z = Mul(s, t)",
    "a state that is read by nobody": "s_out = Sin(t)  z = Mul(t, x)",
    "a state that forgets": "s_out = Identity(w1)  z = Mul(s, t)",
    "a scan output that is the state": "s_out = Mul(s, t)  z = Identity(s)",
    "a slice of another axis": "q = Gather<axis=1>(xs, i)  r = ReduceSum(q, axis)  s_out = Mul(s, r)  z = Mul(r, s)",
    "a slice as a scan output": "s_out = Mul(s, t)  z = Gather<axis=0>(xs, i)",
    "a slice read twice": "q = Gather<axis=0>(xs, i)  p = Mul(q, t)  s_out = Sin(p)  z = Mul(s, q)",
    "a slice, and the whole": "r = ReduceMean<keepdims=0>(xs)  p = Mul(r, t)  s_out = Mul(p, s)  z = Sin(s)",
    "the trip's number as a number": "f = Cast<to=1>(i)  g = CastLike(f, s)  s_out = Mul(s, g)  z = Add(s, t)",
    "one value as state and scan output": "s_out = Mul(s, t)  z = Identity(s_out)",
    "a scan output that needs no state": """
        a = Mul(t, t)
        b, c = Split<axis=0, num_outputs=2>(a)
        d = Concat<axis=0>(c, b)
        e = Transpose<perm=[1, 0]>(d)
        f = MatMul(w1, e)
        g = MatMul(f, w1)
        z = Tanh(g)
        s_out = Mul(s, t)""",
    "sums and norms of each trip": """
        a = Sum(t, w1, t)
        b = Sum(w1, a)
        c = LpNormalization<axis=-1>(b)
        z = Mul(c, x)
        s_out = Mul(s, c)""",
    "numbers and rows of each trip": """
        low = ReduceMin<keepdims=0>(t)
        r = ReduceSum<keepdims=0>(t, axis)
        c = Clip(w1, low)
        d = Mul(c, r)
        z = Mul(d, x)
        s_out = Mul(s, d)""",
    "what no trip changes": "a = Sin(x)  b = MatMul(a, w)  c = Mul(b, t)  s_out = Mul(s, c)  z = Exp(b)",
    "quotients of quotients": """
        a = Exp(t)
        b = Exp(x)
        c = Div(s, a)
        d = Div(c, b)
        e = Mul(d, t)
        f = Mul(e, x)
        g = Div(f, b)
        s_out = Div(g, a)
        z = Div(s, b)""",
}


@pytest.mark.parametrize("trips", [4, 2, 1])
@pytest.mark.parametrize("body", LOOPS.values(), ids=LOOPS)
def test_loops(body: str, trips: int) -> None:
    text = f"""m (float[2,3] x, float[4,2,3] xs, int64 n) => (float[2,3] y) {{
        final, zs = Loop(n, , x) <
            body = step (int64 i, bool on, float[2,3] s) => (bool go, float[2,3] s_out, float[2,3] z) {{
                go = Identity(on)
                t = Gather<axis=0>(xs, i)
                {body}
            }}
        >
        total = ReduceSum<keepdims=0>(zs, axis)
        sin = Sin(total)
        y = Add(sin, final)
    }}"""
    most = 2 if "axis=1>(xs" in body else trips  # it has no more slices
    check_trips(text, min(trips, most), w=W, w1=W[:2], axis=np.array([0]))


def test_a_state_alone() -> None:
    text = """m (float[2,3] x, int64 n) => (float[2,3] y) {
        final = Loop(n, , x) <
            body = step (int64 i, bool on, float[2,3] s) => (bool go, float[2,3] s_out) {
                go = Identity(on)
                s_out = MatMul(s, w)
            }
        >
        y = Sin(final)
    }"""
    check_trips(text, 3, w=W)


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("inner", ["s_out = Mul(s, t)", "q = Sin(s)  s_out = Add(q, t)"])
def test_no_trip_at_all(inner: str, known: bool) -> None:
    text = f"""m (float[N,3] x, float[T,N,3] xs, int64 n) => (float[N,3] y) {{
        final, zs = Loop(n, , x) <
            body = step (int64 i, bool on, float[N,3] s) => (bool go, float[N,3] s_out, float[N,3] z) {{
                go = Identity(on)
                t = Gather<axis=0>(xs, i)
                {inner}
                z = Mul(s, t)
            }}
        >
        total = ReduceSum<keepdims=0>(zs)
        sin = Sin(x)
        h = Mul(sin, final)
        y = Add(h, total)
    }}"""
    n = {"n": np.array(0)}
    graph = graph_of(text.replace(", int64 n", ""), **n) if known else graph_of(text)
    feeds = {"x": X, "xs": XS, "ct_y": np.ones_like(X)} | ({} if known else n)
    results = run_ort(as_scans(gradient_graph(graph, {"y": X}, ["x", "xs"])), feeds)
    np.testing.assert_allclose(results["d_x"], np.sin(X) + X * np.cos(X), rtol=1e-5)
    np.testing.assert_array_equal(results["d_xs"], np.zeros_like(XS))


@pytest.mark.parametrize("start", [False, True])
@pytest.mark.parametrize("go", ["Identity", "Not"])
def test_a_condition_that_is_known(go: str, start: bool) -> None:
    text = f"""m (float[2,3] x, float[4,2,3] xs) => (float[2,3] y) {{
        h = Loop(n, c, x) <
            body = step (int64 i, bool on, float[2,3] s) => (bool go, float[2,3] s_out) {{
                go = {go}(on)
                t = Gather<axis=0>(xs, i)
                a = Mul(s, t)
                s_out = Sin(a)
            }}
        >
        total = ReduceSum<keepdims=0>(xs, axis)
        y = Mul(h, total)
    }}"""
    check(text, {"x": X, "xs": XS}, ["x", "xs"], n=np.array(4), c=np.array(start), axis=np.array([0]))


def test_a_size_that_grows_beside() -> None:
    text = """m (float[1,3] x, int64 n) => (float[1,3] y) {
        y, grown = Loop(n, , x, r) <
            body = step (int64 i, bool on, float[1,3] s, float[K,3] p)
                => (bool go, float[1,3] s_out, float[L,3] p_out) {
                go = Identity(on)
                q = Tanh(p)
                u = Mul(s, q)
                v = ReduceSum(u, axis)
                s_out = Sin(v)
                p_out = Concat<axis=0>(p, r)
            }
        >
    }"""
    feeds = {"x": X[:1]}
    check(text, {**feeds, "n": np.array(3)}, r=W[:1], axis=np.array([0]))
    check(text.replace(", int64 n", ""), feeds, r=W[:1], axis=np.array([0]), n=np.array(3))


@pytest.mark.parametrize("trips", ["n", ""])
def test_a_loop_that_stops_by_itself(trips: str) -> None:
    text = f"""m (float[2,3] x, int64 n, bool c) => (float[2,3] y) {{
        final, count, zs = Loop({trips}, c, x, start) <
            body = step (int64 i, bool on, float[2,3] s, int64 k)
                => (bool go, float[2,3] s_out, int64 k_out, float[2,3] z) {{
                k_out = Add(k, two)
                f = CastLike(k, s)
                s_out = Mul(s, f)
                z = Sin(s_out)
                total = ReduceSum<keepdims=0>(s_out)
                size = Abs(total)
                go = Less(size, limit)
            }}
        >
        sum = ReduceSum<keepdims=0>(zs, axis)
        y = Mul(sum, final)
    }}"""
    constants = {"start": np.array(1), "two": np.array(2), "limit": np.float32(50), "axis": np.array([0])}
    for most in (2, 9):
        check(text, {"x": X, "n": np.array(most), "c": np.array(True)}, **constants)
        check(text.replace(", int64 n, bool c", ""), {"x": X}, **constants, n=np.array(most), c=np.array(True))


@pytest.mark.parametrize("declared", ["float[2,3] s", "float[K,3] s"])  # no matter what is declared
def test_a_state_that_grows(declared: str) -> None:
    text = f"""m (float[2,3] x, float[4,2,3] xs, int64 n) => (float[1,3] y) {{
        final, other = Loop(n, , x, x) <
            body = step (int64 i, bool on, {declared}, float[2,3] o) => (bool go, float[K,3] s_out, float[2,3] o_out) {{
                go = Identity(on)
                t = Gather<axis=0>(xs, i)
                p = Mul(t, o)
                q = Sin(p)
                r = Mul(s, s)
                mean = ReduceMean(r, axis)
                o_out = Mul(o, mean)
                s_out = Concat<axis=0>(r, q)
            }}
        >
        y = ReduceSum(final, axis)
    }}"""
    check_trips(text, 4, back="Loop", axis=np.array([0]))


def test_outputs_that_nobody_asks_for() -> None:
    text = """m (float[2,3] x, float[4,2,3] xs, int64 n) => (float[2,3] y) {
        final, grown, zs, zzs = Loop(n, , x, x) <
            body = step (int64 i, bool on, float[2,3] s, float[M,3] r)
                => (bool go, float[2,3] s_out, float[L,3] r_out, float[2,3] z, float[2,3] zz) {
                go = Identity(on)
                t = Gather<axis=0>(xs, i)
                mean = ReduceMean(r, axis)
                z = Mul(s, t)
                s_out = Mul(z, mean)
                r_out = Concat<axis=0>(r, s)
                zz = Sin(s)
            }
        >
        y = ReduceSum<keepdims=0>(zs, axis)
    }"""
    check(text, {"x": X, "xs": XS, "n": np.array(3)}, ["x", "xs"], axis=np.array([0]))
