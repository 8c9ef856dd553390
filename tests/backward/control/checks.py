"""Gradients of control flow against central differences of ONNX Runtime's float64 results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnxruntime as ort

from onnxplain.backward.control import as_scans
from onnxplain.canonize.bodies import tidied
from onnxplain.canonize.shapes import inferred
from onnxplain.graph.ir import Graph
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


def check_trips(text: str, trips: int, back: str = "Scan", **weights: Array) -> None:
    """The number of trips is an input, and then known: the way back is a Loop, and then a Scan, or what it is to be."""
    feeds = {name: array for name, array in (("x", X), ("xs", XS)) if f"] {name}" in text}
    free = check(text, {**feeds, "n": np.array(trips)}, list(feeds), **weights)
    known = check(text.replace(", int64 n", ""), feeds, list(feeds), **weights, n=np.array(trips))
    assert [n.op for graph in (free, known) for n in graph.nodes if n.subgraphs] == ["Loop", "Loop", "Loop", back]
