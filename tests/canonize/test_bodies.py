"""Shapes inside of control flow, and the tidying of bodies."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from onnxplain.canonize.bodies import tidied
from onnxplain.canonize.shapes import inferred
from onnxplain.graph.ir import Graph, Node
from onnxplain.storage.reader import graphs_of, to_graph
from tests.models import Array, model
from tests.reference import relative_error, rng, run_ort

X = rng().normal(size=(2, 3)).astype(np.float32)
BIG = rng(1).normal(size=(3, 400)).astype(np.float32)


def graph_of(text: str, **weights: Array) -> Graph:
    return to_graph(inferred(model(text, **weights)))


def loop(state: str, end: str, nodes: str, inputs: str = "float[N,3] x") -> str:
    """A Loop with one state, wrongly declared, which is the model's output."""
    return f"""m ({inputs}, int64 n) => (float[A] y) {{
        y = Loop(n, , x) <
            body = step (int64 i, bool on, float[7] {state}) => (bool go, float[9,9] {end}) {{
                go = Identity(on)
                {nodes}
            }}
        >
    }}"""


def body_of(graph: Graph, op: str = "Loop") -> Graph:
    return next(n for n in graph.nodes if n.op == op).subgraphs[0]


def test_a_state_keeps_its_shape() -> None:
    graph = graph_of(loop("s", "e", "t = Relu(s)  e = Tanh(t)").replace("float[A] y", "float[A,B] y"))
    body = body_of(graph)
    assert [body.value(n).shape for n in ("i", "on", "s", "t", "e")] == [(), (), *[("N", 3)] * 3]


@pytest.mark.parametrize(
    ("nodes", "shape"),
    [
        ("e = Concat<axis=0>(s, x)", (None, 3)),
        ("e = Concat<axis=1>(s, x)", ("N", None)),
        ("e = Transpose(s)", (None, None)),
        ("e = Unsqueeze(s, zero)", None),
    ],
)
def test_a_state_that_changes_its_shape(nodes: str, shape: tuple[object, ...] | None) -> None:
    body = body_of(graph_of(loop("s", "e", nodes), zero=np.array([0])))

    def named(value: str) -> tuple[object, ...] | None:
        dims = body.value(value).shape  # onnx makes up names for sizes that are not known
        return dims and tuple(None if str(d).startswith("unk__") else d for d in dims)

    assert named("s") == shape
    if "Transpose" not in nodes:
        assert body.value("s").shape != body.value("e").shape or shape is None


def test_states_of_loops_in_loops_and_behind_each_other() -> None:
    text = """m (float[N,3] x, int64 n) => (float[A] y) {
        a = Loop(n, , x) <
            body = outer (int64 i, bool on, float[7] s) => (bool go, float[9,9] e) {
                go = Identity(on)
                t = Tanh(s)
                e = Loop(n, , t) <
                    body = inner (int64 j, bool on2, float[7] p) => (bool go2, float q) {
                        go2 = Identity(on2)
                        q = Sin(p)
                    }
                >
            }
        >
        y, grown = Loop(n, , a, a) <
            body = last (int64 k, bool on3, float f, float g) => (bool go3, float h, float l) {
                go3 = Identity(on3)
                h = Cos(f)
                l = Concat<axis=1>(g, f)
            }
        >
    }"""
    graph = graph_of(text)
    outer, last = graph.nodes[0].subgraphs[0], graph.nodes[1].subgraphs[0]
    inner = body_of(outer)
    assert {g.value(n).shape for g, n in ((outer, "s"), (outer, "e"), (inner, "p"), (inner, "q"), (last, "h"))} == {
        ("N", 3)
    }
    assert graph.value("y").shape == ("N", 3)
    assert len(graph.value("grown").shape) == 2
    assert graph.value("grown").shape[0] == "N"


def test_constants_around_a_body_tell_shapes() -> None:
    text = """m (float[N,3] x, bool c) => (float[A] y) {
        y = If(c) <
            then_branch = rise () => (float a) { k = ReduceSum(x, axes)  a = Reshape(k, target) },
            else_branch = fall () => (float b) { b = Reshape(x, target) }
        >
    }"""
    proto = inferred(model(text, axes=np.array([1]), target=np.array([-1, 1, 3])))
    graph = to_graph(proto)
    assert [b.value(b.outputs[0].name).shape[1:] for b in graph.nodes[0].subgraphs] == [(1, 3)] * 2
    assert body_of(graph, "If").value("k").shape == ("N", 1)
    assert [len(g.initializer) for g in graphs_of(proto.graph)] == [2, 0, 0]


TWINS = """m (float[N,3] x, bool c) => (float[N,400] y) {
    h = If(c) <
        then_branch = rise () => (float[N,400] out) { t = Relu(x)  out = MatMul(t, w) },
        else_branch = fall () => (float[N,400] out) {
            t = Sin(x)
            out = If(c) <
                then_branch = rise2 () => (float[N,400] in) { u = MatMul(t, w)  in = Tanh(u) },
                else_branch = fall2 () => (float[N,400] in) { u = MatMul(x, w)  in = Tanh(u) }
            >
        }
    >
    y = Exp(h)
}"""


def with_constants(graph: onnx.GraphProto, **constants: Array) -> None:
    graph.initializer.extend(onnx.numpy_helper.from_array(a, n) for n, a in constants.items())


def defined(graph: Graph) -> list[str]:
    names = [*(v.name for v in graph.inputs), *graph.constants, *graph.producer]
    return names + [n for node in graph.nodes for body in node.subgraphs for n in defined(body)]


def test_names_become_unique_and_large_constants_move_out() -> None:
    proto = model(TWINS)
    for i, body in enumerate(list(graphs_of(proto.graph))[1:]):
        if any("w" in node.input for node in body.node):
            with_constants(body, w=BIG * (i + 1))
    before = to_graph(inferred(proto))
    assert len(defined(before)) > len(set(defined(before)))
    after = tidied(before)
    assert len(defined(after)) == len(set(defined(after)))
    assert sorted(float(a.flat[0] / BIG.flat[0]) for a in after.constants.values()) == [1, 3, 4]
    assert all(not body.constants for node in after.nodes for body in node.subgraphs)
    for condition in (True, False):
        feeds = {"x": X, "c": np.array(condition)}
        assert relative_error(run_ort(after, feeds)["y"], run_ort(before, feeds)["y"]) == 0


def test_a_body_computes_what_it_returns() -> None:
    proto = model(
        """m (float[N,3] x, bool c) => (float[3,400] y) {
            h = If(c) <
                then_branch = rise () => (float[3,400] w) { unused = Relu(x) },
                else_branch = fall () => (float[3,400] b) { t = Sin(v)  b = Cos(t) }
            >
            y = Exp(h)
        }""",
        v=BIG,
    )
    with_constants(list(graphs_of(proto.graph))[1], w=BIG)
    graph = tidied(to_graph(inferred(proto)))
    body = body_of(graph, "If")
    assert body.producer[body.outputs[0].name].op == "Identity"
    result = run_ort(graph, {"x": X, "c": np.array(True)})["y"]
    assert relative_error(result, np.exp(BIG)) < 1e-6


def test_constant_states_are_read_from_outside() -> None:
    text = """m (float[N,3] x, float[N,3] p, int64 n) => (float[N,3] y, float[N,3] q) {
        y, q, zs = Loop(n, , x, p) <
            body = step (int64 i, bool on, float[N,3] s, float[N,3] k)
                => (bool go, float[N,3] e, float[N,3] k_out, float z) {
                go = Identity(on)
                l = Identity(k)
                k_out = Identity(l)
                e = Mul(s, k)
                z = If(go) <
                    then_branch = rise () => (float a) { a = ReduceSum(k) },
                    else_branch = fall () => (float b) { b = ReduceSum(s) }
                >
            }
        >
    }"""
    before = graph_of(text)
    after = tidied(before)
    loops = [n for n in after.nodes if n.op == "Loop"]
    assert [len(n.inputs) for n in loops] == [3]
    assert Node("Identity", ("p",), ("q",)) in after.nodes
    assert "p" in body_of(after).captured
    feeds = {"x": X, "p": X[::-1].copy(), "n": np.array(3)}
    for name, array in run_ort(before, feeds).items():
        np.testing.assert_array_equal(run_ort(after, feeds)[name], array)


def test_graphs_without_bodies_stay_the_same() -> None:
    graph = graph_of("m (float[N,3] x) => (float[N,3] y) { y = Relu(x) }")
    assert tidied(graph) is graph
