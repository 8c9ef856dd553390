from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from onnxplain.canonize import canonize
from onnxplain.composites import Composite, Row
from onnxplain.errors import NoRuleError, OptionError, UnsupportedModelError, UnsupportedOperatorError
from onnxplain.ir import Graph, Shape, Value
from onnxplain.methods import make
from onnxplain.ops import OPS, Kind
from onnxplain.program import ask, batched_inputs, compile_program, report, rows
from onnxplain.reader import read
from onnxplain.rules.base import Gradient
from onnxplain.rules.lrp import AlphaBeta, Epsilon, Flat, Pass
from onnxplain.writer import to_proto
from tests.models import IMAGES, MLP, SIGMOID, SOFTMAX, TOKENS, TWO_INPUTS, Tiny, model, weights
from tests.reference import run_ort
from tests.test_methods import OPTIONS


def graph_of(tiny: Tiny | str, **arrays: np.ndarray) -> Graph:
    proto = model(tiny, **arrays) if isinstance(tiny, str) else tiny.proto()
    return canonize(read(proto)).graph


SEVERAL = """several (float[N,3] x, int64[N] label, float scale, float[2] shift)
    => (int64[N] z, float[N,2] y, float[N,3] h) {
    z = Identity(label)
    h = Mul(x, scale)
    g = MatMul(h, w)
    y = Add(g, shift)
}"""


def several() -> Graph:
    return graph_of(SEVERAL, **weights(w=(3, 2)))


# What is asked.


def test_defaults() -> None:
    question = ask(several())
    assert (question.output, question.explained, question.wanted) == ("y", "y", ("x",))
    assert ask(graph_of(TWO_INPUTS)).wanted == ("a", "b")


def test_the_value_before_softmax_and_sigmoid_is_explained() -> None:
    for tiny, name in ((SOFTMAX, "logits"), (SIGMOID, "logit")):
        assert ask(graph_of(tiny)).explained == name
        assert ask(graph_of(tiny), probability=True).explained == "y"
        assert ask(graph_of(tiny)).output == "y"


def test_names() -> None:
    assert ask(several(), output="h").explained == "h"
    assert ask(graph_of(TWO_INPUTS), wrt="b").wanted == ("b",)
    assert ask(graph_of(TWO_INPUTS), wrt=["b", "a", "b"]).wanted == ("b", "a")
    assert ask(graph_of(MLP), at="h").wanted == ("h",)
    assert ask(graph_of(TOKENS), at="embedded").wanted == ("embedded",)


BAD: list[tuple[dict[str, Any], str]] = [
    ({"output": "logits"}, r"no output 'logits'\nKnown: h, y, z"),
    ({"output": "z"}, "output 'z' holds int64, which is no score"),
    ({"output": 3}, "no output 3"),
    ({"wrt": "lable"}, r"no input 'lable'\nDid you mean 'label'"),
    ({"wrt": ["x", "label"]}, "input 'label' holds int64, which has no gradient"),
    ({"wrt": "scale"}, "input 'scale' has no batch axis"),
    ({"wrt": "shift"}, "input 'shift' has no batch axis"),
    ({"wrt": []}, "names no input"),
    ({"wrt": [3]}, "no input 3"),
    ({"at": "hh"}, r"no floating-point tensor 'hh'\nDid you mean 'h'"),
    ({"at": "something_else"}, r"no floating-point tensor 'something_else'\nThe model's 'tensors' lists them"),
    ({"at": "z"}, "no floating-point tensor 'z'"),
    ({"at": "shift"}, "first axis of the tensor is not the batch: shift"),
    ({"at": "h", "wrt": "x"}, "not both"),
]


@pytest.mark.parametrize(("options", "message"), BAD, ids=[m for _, m in BAD])
def test_wrong_names(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        ask(several(), **options)


def value(*shape: Any, name: str = "x") -> Value:
    return Value(name, np.dtype(np.float32), shape)


INPUTS: list[tuple[list[Shape | None], set[str]]] = [
    ([("batch", 3), ("batch",), (5,), ()], {"0", "1"}),
    ([(1, 3), (1, 2), (4, 4), ()], {"0", "1"}),
    ([(4, 3), (8, 2)], {"0"}),
    ([None, (5,)], {"0"}),
    ([(), ()], set()),
    ([], set()),
]


@pytest.mark.parametrize(("shapes", "batched"), INPUTS)
def test_batched_inputs(shapes: list[Shape | None], batched: set[str]) -> None:
    assert batched_inputs([Value(str(i), np.dtype(np.float32), s) for i, s in enumerate(shapes)]) == batched


def test_rows() -> None:
    assert [rows(v) for v in (value("batch", 3), value(4), value())] == ["batch", 4, 1]
    assert rows(Value("x", np.dtype(np.float32), None)) is None


def reshaped(inputs: str, *shape: int, rows: str = "N") -> Graph:
    text = f"m (float[{inputs},6] x) => (float[{rows},6] y) {{ h = Exp(x)  y = Reshape(h, shape) }}"
    return graph_of(text, shape=np.array(shape))


def test_outputs_without_a_row_for_each_sample() -> None:
    for graph in (reshaped("N", -1, 2, rows="A"), reshaped("N", 6, -1, rows="A"), reshaped("2", 3, 4, rows="A")):
        with pytest.raises(UnsupportedModelError, match="first axis of the output is not the batch"):
            ask(graph)
    assert rows(reshaped("N", 1, -1, rows="A").value("y")) == 1
    ask(reshaped("N", 1, -1, rows="A"))  # holds for single samples
    ask(reshaped("1", 1, 6, rows="A"))


def test_models_with_nothing_to_explain() -> None:
    with pytest.raises(UnsupportedModelError, match=r"no floating-point input with a batch axis\n.*at="):
        ask(graph_of(TOKENS))
    with pytest.raises(UnsupportedModelError, match="no floating-point output"):
        ask(graph_of("m (float[N,3] x) => (int64[N] y) { y = ArgMax<axis=1, keepdims=0>(x) }"))


# The program.


@pytest.mark.parametrize("method", OPTIONS)
def test_programs_are_valid_and_say_where_things_are(method: str) -> None:
    graph = graph_of(TWO_INPUTS)
    made = make(method, OPTIONS[method])
    program = compile_program(graph, made, ask(graph))
    onnx.checker.check_model(to_proto(program.graph), full_check=True)
    assert [v.name for v in program.graph.inputs] == ["a", "b", "target"]
    assert program.attributions == {"a": "attribution_a", "b": "attribution_b"}
    outputs = {v.name: v for v in program.graph.outputs}
    attributions = set(program.attributions.values()) if made.composite else set()
    assert set(outputs) == attributions | {program.score, program.resolved}
    for name in attributions:
        assert outputs[name].shape == graph.value(name[-1]).shape
    feeds = {**TWO_INPUTS.feeds(2), "target": np.array([-1, 1])}
    results = run_ort(program.graph, feeds)
    y = TWO_INPUTS.evaluate(feeds)
    np.testing.assert_array_equal(results[program.resolved], [y[0].argmax(), 1])
    np.testing.assert_allclose(results[program.score], y[[0, 1], [y[0].argmax(), 1]], rtol=1e-5)


def test_the_models_outputs_are_kept_where_asked_for() -> None:
    graph = graph_of(SOFTMAX)
    program = compile_program(graph, make("gradient", {}), ask(graph), model_outputs=True)
    assert [v.name for v in program.graph.outputs] == ["y", "attribution", "score", "resolved_target"]


def test_forward_methods_do_not_walk_back() -> None:
    graph = graph_of(IMAGES)
    program = compile_program(graph, make("occlusion", {}), ask(graph))
    assert len(program.graph.nodes) < len(graph.nodes) + 12
    assert not any("backward" in o for n in program.graph.nodes for o in n.outputs)


def test_the_first_layers_activations_are_not_needed_where_a_slice_stops() -> None:
    graph = graph_of(IMAGES)
    here = compile_program(graph, make("gradient", {}), ask(graph, at="p1"))
    everywhere = compile_program(graph, make("gradient", {}), ask(graph))
    assert len(here.graph.nodes) < len(everywhere.graph.nodes) - 5


def test_an_input_that_nothing_leads_to_gets_zeros() -> None:
    graph = graph_of("m (float[N,3] a, float[N,3] b) => (float[N,3] y) { y = Exp(a) }")
    program = compile_program(graph, make("gradient", {}), ask(graph))
    ones = np.ones((1, 3), np.float32)
    results = run_ort(program.graph, {"a": ones, "b": ones, "target": np.array([1])})
    np.testing.assert_array_equal(results["attribution_b"], 0 * ones)
    assert results["attribution_a"][0, 1] > 2


# The report, and what stands in the way.


def test_report() -> None:
    graph = graph_of(IMAGES)
    lines = report(graph, make("lrp", {}).composite, ask(graph))
    assert [line.node.op for line in lines] == ["Gemm", "Flatten", "Relu", "Conv", "MaxPool", "Relu", "Conv"]
    assert [line.kind for line in lines[:4]] == [Kind.DENSE, Kind.MOVEMENT, Kind.ACTIVATION, Kind.CONV]
    rules = [Epsilon(1e-6), Gradient(), Pass(), AlphaBeta(1.0, 0.0), Gradient(), Pass(), Flat()]
    assert [line.rule for line in lines] == rules


def test_operators_without_a_gradient_are_all_named_with_the_methods_that_still_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    graph = graph_of("m (float[N,3] x) => (float[N,3] y) { a = Tanh(x)  b = Exp(a)  y = Sin(b) }")
    for op in ("Tanh", "Sin"):
        monkeypatch.delitem(OPS, op)
    expected = r"for 2 of the nodes on the path: Tanh 'a', Sin 'y'\nMethods that .* still work: occlusion\.$"
    for method in ("gradient", "integrated_gradients", "lrp"):
        with pytest.raises(UnsupportedOperatorError, match=expected):
            compile_program(graph, make(method, {}), ask(graph))
    with pytest.raises(UnsupportedOperatorError, match=expected):
        report(graph, make("lrp", {}).composite, ask(graph))
    compile_program(graph, make("occlusion", {}), ask(graph))


def test_kinds_without_a_rule_are_all_named() -> None:
    text = """m (float[N,2,6,6] x) => (float[N,2,4,4] y) {
        a = Conv(x, w)
        b = Tanh(a)
        c = LRN<size=3>(b)
        y = Sin(c)
    }"""
    graph = graph_of(text, **weights(w=(2, 2, 3, 3)))
    composite = Composite((Row(Kind.CONV, Epsilon()),), "mine")
    with pytest.raises(NoRuleError, match=r"'mine' has no rule for 3 nodes: Tanh 'b' \(ACTIVATION\), LRN .*, Sin 'y'"):
        compile_program(graph, make("lrp", {"composite": composite}), ask(graph))


def test_a_score_that_does_not_depend_on_what_is_explained() -> None:
    text = "m (float[N,3] a, float[N,3] b) => (float[N,3] y) { f = Floor(a)  y = Exp(f)  z = Mul(b, b) }"
    for wrt, why in (("a", "only through operators whose gradient is zero, such as Floor 'f'"), ("b", "not at all")):
        graph = graph_of(text)
        with pytest.raises(UnsupportedModelError, match=rf"'y' depends on {wrt} {why}\n.*occlusion"):
            compile_program(graph, make("gradient", {}), ask(graph, wrt=wrt))
        compile_program(graph, make("occlusion", {}), ask(graph, wrt=wrt))
