from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from onnxplain.backward.control import as_scans
from onnxplain.backward.walk import active_values, plan
from onnxplain.canonize.bodies import tidied
from onnxplain.canonize.shapes import inferred
from onnxplain.errors import UnsupportedOperatorError
from onnxplain.graph.emit import Emitter
from onnxplain.graph.ir import Graph
from onnxplain.ops import OPS
from onnxplain.storage.reader import to_graph
from onnxplain.storage.writer import to_proto
from tests.models import Array, model
from tests.reference import gradient_graph, relative_error, rng, run_ort

X = rng().normal(size=(2, 3)).astype(np.float32)
XS = rng(3).normal(size=(4, 2, 3)).astype(np.float32)
W = (0.6 * rng(1).normal(size=(3, 3))).astype(np.float32)


def graph_of(text: str, **weights: Array) -> Graph:
    graph = to_graph(inferred(model(text, **weights)))
    return tidied(graph) if "Scan" in text else graph


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
    np.testing.assert_array_equal(run_ort(as_scans(graph.pruned(["y"])), feeds)["y"], y)
    ct = rng(5).normal(size=y.shape).astype(np.float32)
    written = gradient_graph(graph, {"y": ct}, wanted)
    truth = differences(model(text, double=True, **weights), feeds, wanted, ct)
    for lowered in (written, as_scans(written)):
        onnx.checker.check_model(to_proto(lowered), full_check=True)
        results = run_ort(lowered, {**feeds, "ct_y": ct})
        for name, expected in truth.items():
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


def check_trips(text: str, trips: int, back: str = "Scan", **weights: Array) -> None:
    """The number of trips is an input, and then known: the way back is a Loop, and then a Scan, or what it is to be."""
    feeds = {name: array for name, array in (("x", X), ("xs", XS)) if f"] {name}" in text}
    free = check(text, {**feeds, "n": np.array(trips)}, list(feeds), **weights)
    known = check(text.replace(", int64 n", ""), feeds, list(feeds), **weights, n=np.array(trips))
    assert [n.op for graph in (free, known) for n in graph.nodes if n.subgraphs] == ["Loop", "Loop", "Loop", back]


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
