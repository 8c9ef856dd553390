"""`Emitter`: equal nodes and constants, names, whole graphs and bodies."""

from __future__ import annotations

import numpy as np
import onnx

from onnxplain.graph.emit import Emitter
from onnxplain.graph.ir import Graph, Node, Value
from onnxplain.storage.reader import to_graph
from onnxplain.storage.writer import to_proto
from tests.models import model
from tests.reference import rng, run_ort

X = np.array([[1, -2, 3], [4, 5, -6]], np.float32)


def ops(emitter: Emitter) -> list[str]:
    return [node.op for node in emitter.nodes]


# Equal things are written once.


def test_equal_nodes_are_written_once() -> None:
    emitter = Emitter()
    x = emitter.input("x", "float32", (2, 3))
    assert (x + 1).name == (x + 1.0).name
    assert (x - 1).name != (1 - x).name
    assert emitter.op("Softmax", x, axis=1).name != emitter.op("Softmax", x, axis=0).name
    assert emitter.op("Clip", x).name == emitter.op("Clip", x, None, None).name
    assert ops(emitter) == ["Add", "Sub", "Sub", "Softmax", "Softmax", "Clip"]


def test_nodes_of_the_graph_are_used_again() -> None:
    graph = to_graph(inferred("m (float[N,2] x) => (float[N,2] y) { h = Relu(x)  y = Mul(h, h) }"))
    emitter = Emitter(graph)
    x = emitter.var("x")
    assert emitter.op("Relu", x).name == "h"
    assert (emitter.var("h") * emitter.var("h")).name == "y"
    assert len(emitter.nodes) == 2


def test_equal_constants_are_kept_once() -> None:
    emitter = Emitter()
    names = [emitter.const(np.float32(0)), emitter.const(np.zeros((), np.float32)), emitter.const(0.0)]
    assert names[0].name == names[1].name != names[2].name  # the last is a float64
    assert emitter.const(np.float32(-0.0)).name != names[0].name
    assert emitter.const(np.zeros(1, np.float32)).name != names[0].name
    assert emitter.ints([1, 2]).name == emitter.const(np.array([1, 2])).name
    large = np.zeros(5000, np.float32)
    assert emitter.const(large).name != emitter.const(large).name  # comparing those would cost more than it saves


def test_arrays_among_attributes_are_compared_by_content() -> None:
    emitter = Emitter()
    shape = emitter.ints([2])
    filled = [emitter.op("ConstantOfShape", shape, dtype="float32", value=np.array([v], np.float32)) for v in (1, 1, 2)]
    assert filled[0].name == filled[1].name != filled[2].name


# Names.


def inferred(text: str, **weights: np.ndarray) -> onnx.ModelProto:
    return onnx.shape_inference.infer_shapes(model(text, **weights), data_prop=True)


def test_fresh_names_avoid_everything_there_is() -> None:
    graph = to_graph(
        inferred("m (float[N,2] Add) => (float[N,2] y) { const = Relu(Add)  y = Mul(const, Add_1) }", Add_1=X)
    )
    emitter = Emitter(graph)
    names = [emitter.fresh("Add") for _ in range(3)]
    assert len({*names, "Add", "Add_1", "const", "y"}) == 7
    assert emitter.const(np.float32(1)).name not in ("const", "Add", "Add_1", "y")
    assert emitter.input("Add", "float32", ()).name not in (*names, "Add", "Add_1")


def test_names_inside_subgraphs_are_taken() -> None:
    then = Graph((), (Value("Add", np.dtype("f4"), ()),), (Node("Neg", ("x",), ("Add",)),), {"const": X}, {})
    node = Node("If", ("c",), ("y",), {"then_branch": then})
    emitter = Emitter(Graph((), (), (node,), {}, {}))
    assert emitter.fresh("Add") != "Add"
    assert emitter.const(X).name != "const"
    assert emitter.fresh("y") != "y"


def test_scopes_lead_names_but_not_those_of_constants() -> None:
    emitter = Emitter()
    x = emitter.input("x", "float32", ())
    with emitter.within("conv1/backward"):
        assert (x * 2).name == "conv1/backward/Mul"
        assert emitter.const(np.float32(5)).name.startswith("const")
    assert (x * 3).name == "Mul"


def test_bodies_share_the_register_of_names() -> None:
    emitter = Emitter()
    x = emitter.input("x", "float32", (2,))
    body = Emitter(outer=emitter)
    inner = Emitter(outer=body)
    names = [x + 1, body.var("x") + 1, inner.var("x") + 1, emitter.op("Add", x, x)]
    constants = [e.const(np.float32(7)) for e in (emitter, body, inner)]
    assert len({v.name for v in (*names, *constants)}) == 7
    assert inner.var("x").shape == (2,)


def test_bodies_avoid_the_names_of_the_graph_around_them() -> None:
    graph = to_graph(inferred("m (float[N,2] state) => (float[N,2] y) { Add = Relu(state)  y = Neg(Add) }"))
    body = Emitter(outer=Emitter(graph))
    state = body.input("state", "float32", ("N", 2))
    assert state.name != "state"
    assert (state + 1).name != "Add"


def test_refine() -> None:
    emitter = Emitter()
    x = emitter.input("x", "float32", None)
    assert emitter.refine(x, (2, 3)).shape == (2, 3)
    assert emitter.var("x").static_shape == (2, 3)


# Whole graphs.


def test_graph_drops_unneeded_nodes_and_renames_outputs() -> None:
    emitter = Emitter()
    x = emitter.input("x", "float32", (2, 3))
    y = x * 2
    _ = x / 5
    graph = emitter.graph([x], {"y": y, "same": y, y.name: y, "given": x})
    assert sorted(n.op for n in graph.nodes) == ["Identity", "Identity", "Identity", "Mul"]
    assert len(graph.constants) == 1
    results = run_ort(graph, {"x": X})
    assert list(results) == ["y", "same", "Mul", "given"]
    for name in ("y", "same", "Mul"):
        np.testing.assert_array_equal(results[name], 2 * X)


def test_inline_renames_and_shares() -> None:
    table = rng().normal(size=(3, 3)).astype(np.float32)
    text = "m (float[N,3] x) => (float[N,3] y) { [stem] h = MatMul(x, w)  y = Add(h, b) }"
    graph = to_graph(inferred(text, w=table, b=X[:1]))  # ONNX Runtime accepts no two nodes of one name
    emitter = Emitter(graph.pruned(["h"]))  # has x, h and the very array of w, but not b
    given = emitter.var("h") * 2
    (y,) = emitter.inline(graph, {"x": given}, ["y"])
    result = emitter.graph([emitter.var("x")], {"h": emitter.var("h"), "result": y})
    assert sum(array is graph.constants["w"] for array in result.constants.values()) == 1
    assert [n.name for n in result.nodes].count("stem") == 1
    onnx.checker.check_model(to_proto(result), full_check=True)
    arrays = run_ort(result, {"x": X})
    np.testing.assert_allclose(arrays["result"], 2 * (X @ table) @ table + X[:1], rtol=1e-4)


BRANCH = """m (float[2,3] x) => (float[2,3] y) {
    h = Relu(x)
    total = ReduceSum<keepdims=0>(x)
    zero = Constant<value_float=0.0>()
    up = Greater(total, zero)
    y = If(up) <
        then_branch = rise () => (float[2,3] t) { k = Neg(h)  t = Mul(k, s) },
        else_branch = fall () => (float[2,3] e) { e = Identity(h) }
    >
}"""


def test_inline_renames_inside_subgraphs_too() -> None:
    graph = to_graph(inferred(BRANCH, s=np.float32(3)))
    emitter = Emitter()
    taken = emitter.input("k", "float32", (2, 3))  # a name that a branch uses inside
    (first,) = emitter.inline(graph, {"x": taken}, ["y"])
    (second,) = emitter.inline(graph, {"x": first}, ["y"])
    result = emitter.graph([taken], {"first": first, "second": second})
    onnx.checker.check_model(to_proto(result), full_check=True)
    arrays = run_ort(result, {"k": X})
    branch = lambda x: -3 * np.maximum(x, 0) if x.sum() > 0 else np.maximum(x, 0)
    np.testing.assert_array_equal(arrays["first"], branch(X))
    np.testing.assert_array_equal(arrays["second"], branch(branch(X)))


def test_a_loop_body_reads_values_and_constants_from_outside() -> None:
    emitter = Emitter()
    x = emitter.input("x", "float32", ("n", 3))
    doubled = x * 2
    body = Emitter(outer=emitter)
    index, go_on = body.input("index", "int64", ()), body.input("go_on", bool, ())
    state = body.input("state", "float32", ("n", 3))
    result = state + body.var(doubled.name) * 0.5 + 1
    inside = body.graph([index, go_on, state], {"go_on_out": go_on, "state_out": result}, "body")
    assert inside.captured == (doubled.name,)
    (y,) = emitter.ops(
        "Loop", emitter.const(np.array(3)), None, x, outputs=1, dtypes=[x.dtype], shapes=[x.shape], body=inside
    )
    graph = emitter.graph([x], {"y": y})
    onnx.checker.check_model(to_proto(graph), full_check=True)
    np.testing.assert_array_equal(run_ort(graph, {"x": X})["y"], X + 3 * (X + 1))


def test_missing_inputs_keep_their_place() -> None:
    emitter = Emitter()
    x = emitter.input("x", "float32", (2, 3))
    low, high = emitter.op("Clip", x, x.like(0), None), emitter.op("Clip", x, None, x.like(2))
    assert [n.inputs[1:] for n in emitter.nodes] == [("const",), ("", "const_1")]
    arrays = run_ort(emitter.graph([x], {"low": low, "high": high}), {"x": X})
    np.testing.assert_array_equal(arrays["high"], np.minimum(X, 2))
    np.testing.assert_array_equal(arrays["low"], np.maximum(X, 0))
