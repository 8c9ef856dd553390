from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx.reference import ReferenceEvaluator

from onnxplain.backward.walk import active_values, backward, plan
from onnxplain.errors import UnsupportedOperatorError
from onnxplain.graph.emit import Emitter
from onnxplain.graph.ir import Graph
from onnxplain.ops import OPS
from onnxplain.ops.table import Call
from onnxplain.rules.base import Gradient
from onnxplain.storage.reader import to_graph
from onnxplain.storage.writer import to_proto
from tests.models import BRANCHES, Array, model, weights
from tests.reference import gradient_graph, relative_error, rng, run_ort

X = rng().normal(size=(2, 3)).astype(np.float32)
TABLE = rng(1).normal(size=(3, 3)).astype(np.float32)


def graph_of(text: str, **weights: Array) -> Graph:
    return to_graph(onnx.shape_inference.infer_shapes(model(text, **weights), data_prop=True))


def gradients(graph: Graph, wanted: Sequence[str], feeds: Mapping[str, Array], outputs: Sequence[str] = ("y",)) -> dict:
    """Gradient of the outputs' sums, each times its place in the list (from 1)."""
    shapes = run_ort(graph.pruned(list(outputs)), feeds)
    cotangents = {o: np.full(shapes[o].shape, i + 1, np.float32) for i, o in enumerate(outputs)}
    written = gradient_graph(graph, cotangents, wanted)
    results = run_ort(written, {**feeds, **{f"ct_{name}": array for name, array in cotangents.items()}})
    return {name: results.get(f"d_{name}") for name in wanted}


def differences(text: str, feeds: Mapping[str, Array], outputs: Sequence[str] = ("y",), **weights: Array) -> dict:
    """The same by central differences of the float64 reference evaluator."""
    run = ReferenceEvaluator(model(text, double=True, **weights)).run
    feeds = {n: a.astype(np.float64) for n, a in feeds.items()}
    step = 1e-6

    def loss(point: Mapping[str, Array]) -> float:
        return sum((i + 1) * float(np.sum(array)) for i, array in enumerate(run(list(outputs), dict(point))))

    gradients = {name: np.zeros(array.shape) for name, array in feeds.items()}
    for name, array in feeds.items():
        for index in np.ndindex(array.shape):
            ends = []
            for sign in (1, -1):
                moved = array.copy()
                moved[index] += sign * step
                ends.append(loss({**feeds, name: moved}))
            gradients[name][index] = (ends[0] - ends[1]) / (2 * step)
    return gradients


CASES = {
    "several users of a value": "y = Add(p, q)  p = Mul(h, h)  q = Sin(h)  h = MatMul(x, w)",
    "the same input twice": "h = Mul(x, x)  y = Add(h, h)",
    "an output that is read on": "h = Tanh(x)  y = Exp(h)  z = Mul(y, y)",
    "broadcast on both sides": "one = ReduceSum(x, axes)  h = Mul(one, x)  y = Add(h, x)",
    "a branch that nothing depends on": "c = Cos(w)  s = ReduceSum(c, axes)  h = MatMul(x, w)  y = Mul(h, h)",
    "through steps, whose gradient is zero": "f = Floor(x)  h = Mul(f, x)  y = Add(h, f)",
    "a chain of movement": "t = Transpose<perm=[1,0]>(x)  h = MatMul(w, t)  y = Sigmoid(h)",
}


def text_of(body: str, output: str = "float[A,B] y", inputs: str = "float[N,3] x") -> str:
    lines = body.split("  ")
    done: list[str] = []  # in topological order, which "several users" is not
    while lines:
        names = {line.split(" = ")[0].split(",")[0] for line in lines}
        ready = [s for s in lines if not any(a.strip() in names for a in s.split("(")[1].rstrip(")").split(","))]
        done += ready
        lines = [line for line in lines if line not in ready]
    return f"m ({inputs}) => ({output}) {{ {'  '.join(done)} }}"


@pytest.mark.parametrize("body", CASES.values(), ids=CASES)
def test_gradients_of_whole_graphs(body: str) -> None:
    text, weights = text_of(body), {"w": TABLE, "axes": np.array([1])}
    weights = {n: a for n, a in weights.items() if n in body}
    result = gradients(graph_of(text, **weights), ["x"], {"x": X})["x"]
    assert relative_error(result, differences(text, {"x": X}, **weights)["x"]) < 1e-5


def test_several_outputs_and_several_inputs() -> None:
    text = """m (float[N,3] a, float[N,3] b) => (float[N,3] y, float[N,3] z) {
        y = Mul(a, b)
        s = Sin(y)
        z = Add(s, a)
    }"""
    feeds = {"a": X, "b": X[::-1].copy()}
    result = gradients(graph_of(text), ["a", "b"], feeds, ["y", "z"])
    expected = differences(text, feeds, ["y", "z"])
    for name in feeds:
        assert relative_error(result[name], expected[name]) < 1e-5


def test_a_node_with_several_outputs_of_which_some_are_used() -> None:
    text = "m (float[N,3] x) => (float[N,1] y) { a, b, c = Split<axis=1, num_outputs=3>(x)  y = Mul(a, c) }"
    result = gradients(graph_of(text), ["x"], {"x": X})["x"]
    np.testing.assert_allclose(result, np.stack([X[:, 2], 0 * X[:, 1], X[:, 0]], axis=1), rtol=1e-6)


def test_an_output_without_a_name_in_the_middle() -> None:
    # LayerNormalization's outputs are Y, Mean and InvStdDev; nobody asks for Mean here.
    text = """m (float[N,3] x) => (float[N,3] y) {
        n, , inv = LayerNormalization<axis=1>(x, scale)
        y = Mul(n, x)
    }"""
    graph = graph_of(text, scale=np.ones(3, np.float32))
    assert graph.nodes[0].outputs[1] == ""
    (call, *_) = reversed(plan(graph, Emitter(graph), ["y"], ["x"]))
    assert [None if o is None else o.name for o in call.outputs] == ["n", None, "inv"]
    result = gradients(graph, ["x"], {"x": X})["x"]
    assert relative_error(result, differences(text, {"x": X}, scale=np.ones(3, np.float32))["x"]) < 1e-4


def test_an_internal_tensor_is_a_place_to_stop() -> None:
    text = "m (float[N,3] x) => (float[N,3] y) { h = Tanh(x)  g = MatMul(h, w)  y = Add(g, h) }"
    graph = graph_of(text, w=TABLE)
    emitter = Emitter(graph)
    assert [c.node.op for c in plan(graph, emitter, ["y"], ["h"])] == ["Add", "MatMul"]
    result = gradients(graph, ["h"], {"x": X})["h"]
    np.testing.assert_allclose(result, np.ones_like(X) @ TABLE.T + 1, rtol=1e-5)
    both = gradients(graph, ["h", "x"], {"x": X})  # a walk that goes on behind it
    np.testing.assert_allclose(both["h"], result)
    np.testing.assert_allclose(both["x"], result * (1 - np.tanh(X) ** 2), rtol=1e-4)


def test_no_gradient_arrives_where_only_steps_lead() -> None:
    graph = graph_of("m (float[N,3] x) => (float[N,3] y) { f = Round(x)  y = Mul(f, f) }")
    assert active_values(graph, ["x"]) == {"x"}
    assert gradient_graph(graph, {"y": X}, ["x"]).outputs == ()


def test_weights_and_their_branches_cost_nothing() -> None:
    text = """m (float[N,3] x) => (float[N,3] y) {
        c = Cos(w)
        h = MatMul(x, c)
        unused = Exp(h)
        y = Relu(h)
    }"""
    graph = graph_of(text, w=TABLE)
    calls = plan(graph, Emitter(graph), ["y"], ["x"])
    assert [c.node.op for c in calls] == ["Relu", "MatMul"]
    assert [c.active for c in calls] == [(True,), (True, False)]
    backwards = gradient_graph(graph, {"y": X}, ["x"])
    products = [n.op for n in backwards.nodes if n.op in ("MatMul", "Gemm")]
    assert products == ["MatMul", "Gemm"]  # forward, and to x; none to the weight


@pytest.mark.parametrize("activation", ["Relu(c1)", "Clip(c1, low, high)"])
def test_gradients_stay_in_the_blocked_layout_of_convolutions(activation: str, tmp_path: Path) -> None:
    text = """m (float[N,3,8,8] x) => (float[N,64,8,8] y) {
        c0 = Conv <pads = [1,1,1,1]> (x, w0)  a0 = Relu(c0)
        c1 = Conv <pads = [1,1,1,1]> (a0, w)  a1 = %s
        c2 = Conv <pads = [1,1,1,1]> (a1, w)  a2 = Relu(c2)
        y = Conv <pads = [1,1,1,1]> (a2, w)
    }"""
    shapes = {"w0": (64, 3, 3, 3), "w": (64, 64, 3, 3)}
    bounds = {"low": np.float32(0), "high": np.float32(6)}
    graph = graph_of(text % activation, **weights(**shapes), **bounds)
    counted = [
        layouts(graph, tmp_path),
        layouts(gradient_graph(graph, {"y": np.ones((1, 64, 8, 8), np.float32)}, ["x"]), tmp_path),
    ]
    if not counted[0]["Conv"]:
        pytest.skip("ONNX Runtime has no blocked layout for this processor")
    ends = [(count["ReorderInput"], count["ReorderOutput"]) for count in counted]
    assert ends == [(0, 1), (1, 1)]  # in: the cotangent of y, out: y, or the gradient; the photo needs no rearranging


def layouts(graph: Graph, folder: Path) -> Counter[str]:
    """Operators on blocked tensors, and those that rearrange them, as ONNX Runtime places them."""
    options = ort.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(folder / "optimized.onnx"), 4
    ort.InferenceSession(to_proto(graph).SerializeToString(), options, providers=["CPUExecutionProvider"])
    nodes = onnx.load(folder / "optimized.onnx").graph.node
    return Counter(node.op_type for node in nodes if node.domain == "com.microsoft.nchwc")


def test_rules_are_known_before_anything_is_written() -> None:
    graph = graph_of("m (float[N,3] x) => (float[N,3] y) { h = Tanh(x)  y = Exp(h) }")
    emitter = Emitter(graph)
    seen: list[str] = []

    def assign(calls: Sequence[Call]) -> list[Gradient]:
        seen.extend(c.node.op for c in calls)
        assert len(emitter.nodes) == 2
        return [Gradient()] * len(calls)

    backward(graph, emitter, {"y": emitter.var("h")}, ["x"], assign)
    assert seen == ["Exp", "Tanh"]


def test_all_operators_without_a_gradient_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    text = """m (float[N,3] x) => (float[N,3] y) {
        [first] a = Tanh(x)
        b = Sin(a)
        c = Exp(b)
        aside = Sin(w)
        y = Add(c, aside)
        [beyond] z = Tanh(y)
    }"""
    for op in ("Tanh", "Sin"):
        monkeypatch.delitem(OPS, op)
    graph = graph_of(text, w=TABLE[:1])
    with pytest.raises(UnsupportedOperatorError, match=r"for 2 of the nodes on the path: Tanh 'first', Sin 'b'$"):
        plan(graph, Emitter(graph), ["y"], ["x"])
    with pytest.raises(UnsupportedOperatorError, match=r"for 1 of .*: Sin 'b'$"):
        plan(graph, Emitter(graph), ["y"], ["a"])


def test_operators_of_other_domains_have_no_gradient() -> None:
    proto = model("m (float[N,3] x) => (float[N,3] y) { h = Tanh(x)  y = com.acme.Tanh(h) }")
    proto.opset_import.add(domain="com.acme", version=1)
    info = onnx.helper.make_tensor_value_info("h", onnx.TensorProto.FLOAT, ["N", 3])
    proto.graph.value_info.append(info)
    graph = to_graph(proto)
    with pytest.raises(UnsupportedOperatorError, match=r"com\.acme\.Tanh 'y'"):
        plan(graph, Emitter(graph), ["y"], ["x"])


def test_control_flow_is_no_obstacle_behind() -> None:
    graph = to_graph(onnx.shape_inference.infer_shapes(BRANCHES.proto()))
    assert [c.node.op for c in plan(graph, Emitter(graph), ["y"], ["h"])] == ["Gemm"]


def test_a_value_that_only_a_subgraph_reads_is_active() -> None:
    graph = to_graph(onnx.shape_inference.infer_shapes(BRANCHES.proto()))
    assert "h" in active_values(graph, ["z"])  # If reads z inside its branches only
