from __future__ import annotations

import numpy as np
import onnx
import pytest

from onnxplain.canonize import canonize
from onnxplain.composites import Composite, Row
from onnxplain.errors import NoRuleError, UnsupportedModelError, UnsupportedOperatorError
from onnxplain.graph.ir import Graph
from onnxplain.methods import make
from onnxplain.ops import OPS, Kind
from onnxplain.programs.assembly import compile_program, report
from onnxplain.questions.question import ask
from onnxplain.rules.base import Gradient
from onnxplain.rules.lrp import AlphaBeta, Epsilon, Flat
from onnxplain.rules.sums import Pass
from onnxplain.storage.reader import read
from onnxplain.storage.writer import to_proto
from tests.methods.tiny import OPTIONS
from tests.models import IMAGES, SOFTMAX, TWO_INPUTS, Tiny, model, weights
from tests.reference import run_ort


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


# The program.


@pytest.mark.parametrize("method", OPTIONS)
def test_programs_are_valid_and_say_where_things_are(method: str) -> None:
    graph = graph_of(TWO_INPUTS)
    made = make(method, OPTIONS[method])
    program = compile_program(graph, made, ask(graph))
    onnx.checker.check_model(to_proto(program.graph), full_check=True)
    assert [v.name for v in program.graph.inputs] == ["a", "b", "target"]
    assert program.names.attributions == {"a": "attribution_a", "b": "attribution_b"}
    found = program.names.cotangents or program.names.attributions
    outputs = {v.name: v for v in program.graph.outputs}
    attributions = set(found.values()) | set(program.names.values.values()) if made.composite else set()
    numbers = {program.names.score, program.names.resolved, program.names.baseline_score} - {None}
    assert set(outputs) == attributions | numbers
    for name in attributions:
        assert outputs[name].shape == graph.value(name[-1]).shape
    feeds = {**TWO_INPUTS.feeds(2), "target": np.array([-1, 1])}
    results = run_ort(program.graph, feeds)
    y = TWO_INPUTS.evaluate(feeds)
    np.testing.assert_array_equal(results[program.names.resolved], [y[0].argmax(), 1])
    np.testing.assert_allclose(results[program.names.score], y[[0, 1], [y[0].argmax(), 1]], rtol=1e-5)


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
    expected = r"for 2 of the nodes on the path: Tanh 'a', Sin 'y'\nMethods that .* still work: occlusion, .*\.$"
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
