"""Runs one rule at one node, in ONNX Runtime."""

from __future__ import annotations

import numpy as np

from onnxplain.backward.walk import backward
from onnxplain.graph.emit import Emitter
from onnxplain.rules.base import Rule
from onnxplain.storage.reader import to_graph
from tests.reference import Case, run_ort, single_node
from tests.rules.dense import Array


def relevances(case: Case, rule: Rule, r: Array, free: bool) -> dict[str, Array]:
    """Apply a rule to relevance ``r`` of a node's output; return relevance by input. ``free``: no size is known."""
    model, feeds = single_node(case, free)
    graph = to_graph(model)
    emitter = Emitter(graph)
    seed = emitter.input("r", "float32", graph.value("y0").shape)
    results = backward(graph, emitter, {"y0": seed}, list(feeds), lambda calls: [rule] * len(calls))
    outputs = {f"r_{name}": var for name, var in results.items() if var is not None}
    graph = emitter.graph([*(emitter.var(name) for name in feeds), seed], outputs)
    arrays = run_ort(graph, {**feeds, "r": np.asarray(r, np.float32)})
    return {name: arrays[f"r_{name}"] for name in feeds if f"r_{name}" in arrays}
