"""Recurrent layers written out: the same numbers, the same gradients, and relevance that is conserved."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import pytest

from onnxplain.backward.control import as_scans
from onnxplain.backward.recurrent import as_loops
from onnxplain.backward.walk import backward
from onnxplain.canonize import canonize
from onnxplain.composites import Composite, everywhere
from onnxplain.composites.lrp import epsilon_plus
from onnxplain.graph.emit import Emitter
from onnxplain.graph.ir import Graph
from onnxplain.storage.reader import read, to_graph
from onnxplain.storage.writer import to_proto
from tests.models import Array, model, weights
from tests.ops.test_recurrent import DIRECTIONS, GATES, LENGTHS, NUMBERS, VARIANTS, case, names
from tests.ops.test_recurrent import FUNCTIONS as ACTIVATIONS
from tests.reference import Case, relative_error, rng, run_ort, single_node


def check(made: Case) -> None:
    """ONNX Runtime's kernel and the loop calculate the same, with sizes known or free."""
    for free in (False, True):
        proto, feeds = single_node(made, free)
        graph = to_graph(proto)
        loop = as_loops(graph, list(feeds), [v.name for v in graph.outputs])
        assert not [node.op for node in loop.all_nodes if node.op in (*GATES, "Scan")]
        onnx.checker.check_model(to_proto(loop), full_check=True)
        expected = run_ort(graph, feeds)
        for written in (loop, as_scans(loop)):
            for name, result in run_ort(written, feeds).items():
                assert relative_error(result, expected[name]) < 1e-4, name  # some kernels approximate tanh
        assert "Loop" not in {node.op for node in as_scans(loop).all_nodes}


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["all", "lengths"])
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("variant", VARIANTS, ids=names)
def test_directions(variant: Mapping[str, Any], direction: str, lengths: Array | None) -> None:
    check(case(**variant, direction=direction, lengths=lengths))


@pytest.mark.parametrize("given", [{"bias": False}, {"initial": False}, {"clip": 0.5}, {"steps": 1}], ids=str)
@pytest.mark.parametrize("variant", VARIANTS, ids=names)
def test_operands(variant: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    check(case(**variant, **given, direction="bidirectional"))


@pytest.mark.parametrize("op", GATES)
def test_sequence_of_no_steps(op: str) -> None:
    check(case(op, direction="bidirectional", lengths=np.array([0, 7, 4], np.int32)))


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("op", GATES)
def test_activations(op: str, name: str) -> None:
    per_way = {"RNN": 1, "GRU": 2, "LSTM": 3}[op]
    sorts = ("alpha", "beta")[: NUMBERS.get(name, 0)]
    numbers = {f"activation_{sort}": [0.8, 0.6, 0.7][:per_way] for sort in sorts}
    check(case(op, activations=[name] * per_way, scale=0.3, **numbers))


CLASSIFIER = """classifier (float[N,T,4] x) => (float[N,3] y) {
    time_first = Transpose<perm=[1,0,2]>(x)
    all, state = %s<hidden_size=6, direction="%s"%s>(time_first, w, r%s)
    samples_first = Transpose<perm=[1,0,2]>(state)
    flat = Flatten(samples_first)
    y = MatMul(flat, v)
}"""


def classifier(op: str, direction: str, bias: bool = False) -> Graph:
    ways, rows = 2 if direction == "bidirectional" else 1, GATES[op] * 6
    shapes = {"w": (ways, rows, 4), "r": (ways, rows, 6), "v": (6 * ways, 3), "b": (ways, 2 * rows)}
    if not bias:
        del shapes["b"]
    reset = ", linear_before_reset=1" if op == "GRU" else ""
    text = CLASSIFIER % (op, direction, reset, ", b" if bias else "")
    return canonize(read(model(text, **weights(**shapes)))).graph


def relevance(graph: Graph, composite: Composite, x: Array) -> tuple[Array, Array]:
    """The relevance of each sample's steps for its output 1, and that output."""
    graph = as_loops(graph, ["x"], ["y"])
    emitter = Emitter(graph)
    y = emitter.var("y")
    seeds = {"y": y * np.array([0.0, 1.0, 0.0])}
    found = backward(graph, emitter, seeds, ["x"], composite.assign)["x"]
    assert found is not None
    results = run_ort(emitter.graph([emitter.var("x")], {"relevance": found, "y": y}), {"x": x})
    return results["relevance"], results["y"][:, 1]


X = rng(3).normal(size=(2, 9, 4)).astype(np.float32)


@pytest.mark.parametrize("rule", ["zero", "epsilon", "gamma"])
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("op", GATES)
def test_relevance_is_conserved(op: str, direction: str, rule: str) -> None:
    found, score = relevance(classifier(op, direction), everywhere(rule), X)
    np.testing.assert_allclose(found.sum((1, 2), dtype=np.float64), score, rtol=1e-3)


def share(part: Array, whole: Array, r: Array) -> Array:
    """The relevance of a part of a sum."""
    return part * r / (whole + np.where(whole >= 0, 1e-6, -1e-6))


@pytest.mark.parametrize("bias", [False, True])
def test_relevance_of_an_lstm(bias: bool) -> None:
    """LRP-0, what a gate lets through gets all; step by step in float64. What a bias contributes is lost."""
    graph = classifier("LSTM", "forward", bias)
    found, score = relevance(graph, everywhere("zero"), X)
    lstm = next(n for n in graph.nodes if n.op == "LSTM")
    w, r, *b = (graph.constants[n][0].astype(np.float64) for n in lstm.inputs[1:])
    v = graph.constants["v"].astype(np.float64)[:, 1]
    b_x, b_h = b[0].reshape(2, -1) if b else (0, 0)
    for x, truth, y in zip(X.astype(np.float64), found, score, strict=True):
        h, c = np.zeros(6), np.zeros(6)
        steps = []
        for step in x:
            a_x, a_h = w @ step + b_x, r @ h + b_h
            i, o, f, n = np.split(a_x + a_h, 4)
            i, o, f, n = 1 / (1 + np.exp(-i)), 1 / (1 + np.exp(-o)), 1 / (1 + np.exp(-f)), np.tanh(n)
            before, kept, new = h, f * c, i * n
            c = kept + new
            h = o * np.tanh(c)
            steps.append((before, a_x, a_h, kept, new, h))
        assert h @ v == pytest.approx(y, rel=1e-5)
        by_h, by_c, expected = h * v, np.zeros(6), np.zeros_like(x)
        for t, (before, a_x, a_h, kept, new, _) in reversed(list(enumerate(steps))):
            by_kept, by_new = (share(part, kept + new, by_c + by_h) for part in (kept, new))
            by_a = np.concatenate([np.zeros(18), by_new])
            by_x, by_state = (share(part, a_x + a_h, by_a) for part in (a_x, a_h))
            expected[t] = x[t] * (w.T @ (by_x / a_x))
            by_h = before * (r.T @ (by_state / np.where(a_h == 0, 1, a_h)))
            by_c = by_kept
        assert relative_error(truth, expected) < 1e-4
        assert (abs(expected.sum() / y - 1) < 1e-3) != bias


def test_layers_that_are_not_on_the_way_stay() -> None:
    graph = classifier("LSTM", "forward")
    assert as_loops(graph, ["flat"], ["y"]).nodes == graph.nodes
    assert as_loops(graph, ["x"], ["time_first"]).nodes == graph.nodes
    assert as_loops(graph, ["x"], ["y"]).nodes != graph.nodes


def test_in_a_branch() -> None:
    text = """m (float[N,T,4] x) => (float[N,3] y) {
        total = ReduceSum<keepdims=0>(x)
        up = Cast<to=9>(total)
        time_first = Transpose<perm=[1,0,2]>(x)
        state = If(up) <
            then_branch = p () => (float[1,N,6] h) { , h = GRU<hidden_size=6>(time_first, w, r) },
            else_branch = q () => (float[1,N,6] k) { , k = GRU<hidden_size=6, direction="reverse">(time_first, w, r) }
        >
        samples_first = Transpose<perm=[1,0,2]>(state)
        flat = Flatten(samples_first)
        y = MatMul(flat, v)
    }"""
    made = weights(w=(1, 18, 4), r=(1, 18, 6), v=(6, 3))
    graph = canonize(read(model(text, **made))).graph
    found, score = relevance(graph, epsilon_plus(), X)
    np.testing.assert_allclose(found.sum((1, 2), dtype=np.float64), score, rtol=1e-3)
