from __future__ import annotations

import numpy as np
import pytest

from onnxplain.graph.ir import BATCH, Dim, Graph, Multiple, Node, Value, is_float, rows_per_sample
from onnxplain.storage.reader import shape_of
from onnxplain.storage.writer import value_proto

F32 = np.dtype(np.float32)


def value(name: str) -> Value:
    return Value(name, F32, ("batch", 2))


def diamond() -> Graph:
    """x -> a -> b -> y, x -> c -> y, and d, which is not read."""
    nodes = (
        Node("Relu", ("x",), ("a",)),
        Node("Mul", ("a", "w"), ("b",)),
        Node("Neg", ("x",), ("c",)),
        Node("Add", ("b", "c"), ("y",)),
        Node("Abs", ("a",), ("d",)),
    )
    values = {n: value(n) for n in ("x", "a", "b", "c", "d", "y")}
    constants = {"w": np.ones(2, np.float32), "unused": np.ones(3, np.float32)}
    return Graph((values["x"],), (values["y"],), nodes, constants, values)


def branching() -> Graph:
    """An If whose branches read a tensor and a constant from outside, and a name of their own."""
    inner = Node("Add", ("a", "own"), ("t",))
    then = Graph((), (value("t"),), (inner,), {"own": np.ones(2, np.float32)}, {"t": value("t")}, "then")
    other = Graph((), (value("a"),), (), {}, {}, "else")
    nodes = (Node("Relu", ("x",), ("a",)), Node("If", ("c",), ("y",), {"then_branch": then, "else_branch": other}))
    values = {"x": value("x"), "c": Value("c", np.dtype(bool), ()), "a": value("a"), "y": value("y")}
    return Graph((values["x"], values["c"]), (values["y"],), nodes, {}, values)


@pytest.mark.parametrize(
    ("dtype", "answer"),
    [(np.dtype(t), t.startswith("f")) for t in ("float16", "float32", "float64", "int64", "bool", "uint8")],
)
def test_is_float(dtype: np.dtype, answer: bool) -> None:
    assert is_float(dtype) is answer
    assert Value("x", dtype, None).is_float is answer


def test_bfloat16_is_float() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    assert is_float(np.dtype(ml_dtypes.bfloat16))


def test_str() -> None:
    assert str(Value("x", F32, ("batch", 3, None))) == "x: float32 [batch x 3 x ?]"
    assert str(Value("x", F32, None)) == "x: float32 [?]"
    assert str(Node("Sum", ("a", ""), ("y",), {"k": 2})) == "y = Sum(a,  | k=2)"
    assert str(diamond()).splitlines()[0] == "graph graph(x: float32 [batch x 2])"
    assert "then_branch=<graph>" in str(branching())


def test_label_names_operator_and_node() -> None:
    assert Node("Conv", ("x",), ("y",), name="stem").label == "Conv 'stem'"
    assert Node("Conv", ("x",), ("y",)).label == "Conv 'y'"
    assert Node("Gelu", ("x",), ("y",), domain="com.microsoft").label == "com.microsoft.Gelu 'y'"


def test_producer_and_users() -> None:
    graph = diamond()
    assert graph.producer["b"].op == "Mul"
    assert "x" not in graph.producer
    assert [n.op for n in graph.users["a"]] == ["Mul", "Abs"]
    assert [n.op for n in Graph((), (), (Node("Mul", ("x", "x"), ("y",)),), {}, {}).users["x"]] == ["Mul"]


def test_value_of_a_constant() -> None:
    assert diamond().value("w") == Value("w", F32, (2,))


def test_reachable_and_needed() -> None:
    graph = diamond()
    assert graph.reachable_from(["a"]) == {"a", "b", "d", "y"}
    assert graph.needed_for(["b"]) == {"b", "a", "w", "x"}


def test_pruned_keeps_the_interface_and_what_it_needs() -> None:
    pruned = diamond().pruned(["c", "w"])
    assert [n.op for n in pruned.nodes] == ["Neg"]
    assert [v.name for v in pruned.inputs] == ["x"]
    assert [v.name for v in pruned.outputs] == ["c", "w"]
    assert set(pruned.constants) == {"w"}
    assert set(pruned.values) == {"x", "c"}


def test_subgraphs_read_from_outside() -> None:
    graph = branching()
    node = graph.nodes[1]
    assert node.subgraphs[0].captured == ("a",)
    assert node.subgraphs[1].captured == ("a",)  # an output that nothing inside computes
    assert set(node.reads) == {"c", "a"}
    assert graph.needed_for(["y"]) == {"y", "c", "a", "x"}
    assert "y" in graph.reachable_from(["x"])


def there_and_back(layers: int) -> Graph:
    """A chain of nodes, and a chain back that reads a mask and a turned weight per layer, all masks computed first."""
    there = [Node("Mul", (f"a{k}", "w"), (f"a{k + 1}",)) for k in range(layers)]
    masks = [Node("Greater", (f"a{k + 1}", "w"), (f"m{k}",)) for k in range(layers)]
    turned = [Node("Transpose", ("w",), (f"t{k}",)) for k in range(layers)]
    back = [Node("Sum", (f"b{k + 1}", f"m{k}", f"t{k}"), (f"b{k}",)) for k in reversed(range(layers))]
    start = Node("Identity", (f"a{layers}",), (f"b{layers}",))
    nodes = (*there, start, *masks, *turned, *back)
    values = {name: value(name) for name in ("a0", *(n.outputs[0] for n in nodes))}
    return Graph((values["a0"],), (values["b0"],), nodes, {"w": np.ones(2, np.float32)}, values)


def most_waiting(graph: Graph) -> int:
    """The greatest number of ready nodes, of which ONNX Runtime always runs the first, after it has run one on a0."""
    place = {name: i for i, node in enumerate(graph.nodes) for name in node.outputs}
    done, waiting, most = set[int](), set(range(len(graph.nodes))), 0
    needs = [{place[n] for n in node.reads if n in place} for node in graph.nodes]
    while waiting:
        ready = [i for i in sorted(waiting) if needs[i] <= done]
        most = max(most, len(ready)) if any("a0" in graph.nodes[i].reads for i in done) else most
        done.add(ready[0])
        waiting.remove(ready[0])
    return most


def test_scheduled_leaves_few_waiting() -> None:
    graph = there_and_back(20)
    scheduled = graph.scheduled()
    assert most_waiting(graph) > 20
    assert most_waiting(scheduled) <= 3
    assert sorted(map(str, scheduled.nodes)) == sorted(map(str, graph.nodes))


@pytest.mark.parametrize("graph", [diamond(), branching(), there_and_back(3)])
def test_scheduled_keeps_the_order_of_reading(graph: Graph) -> None:
    known = {v.name for v in graph.inputs} | set(graph.constants)
    for node in graph.scheduled().nodes:
        assert known.issuperset(filter(None, node.reads))
        known.update(node.outputs)


def test_sizes_that_grow_with_the_batch_are_written_and_read() -> None:
    dims: tuple[Dim, ...] = (BATCH, Multiple(12), "tokens", 3, None, "subbatch", "batch_1")
    assert [rows_per_sample(d) for d in dims] == [1, 12, None, None, None, None, None]
    value = Value("x", np.dtype(np.float32), dims)
    assert str(value) == "x: float32 [batch x 12*batch x tokens x 3 x ? x subbatch x batch_1]"
    assert shape_of(value_proto(value)) == dims
