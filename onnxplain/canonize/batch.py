"""Fourth pass: one graph for every batch size."""

from __future__ import annotations

from onnxplain.canonize.fold import Light, fold, shaped, with_sizes
from onnxplain.canonize.merge import DifferError, merge
from onnxplain.canonize.prepare import BATCH
from onnxplain.canonize.trial import Trial, close, random_feeds
from onnxplain.errors import ModelError
from onnxplain.ir import Graph

_SIZES = (11, 13)  # two batch sizes that hardly any other dimension has by chance


def any_batch(model: Light, changes: list[str]) -> Graph:
    """Replace the run-time shape arithmetic of a model with a free batch axis by what it comes to.

    The graph is folded at two batch sizes, where all arithmetic on shapes becomes constants, and what differs between
    the two results depends on the batch size. Where they cannot be merged, the graph keeps its arithmetic.
    """
    graph = shaped(model)
    if _settled(graph):
        return graph
    try:
        points = [shaped(fold(with_sizes(model, {BATCH: size}), set(model.weights))) for size in _SIZES]
        merged, calculated = merge(points[0], points[1], _SIZES)
    except (DifferError, ModelError):
        return graph
    if calculated and not _agree(graph, merged):
        return graph
    changes.append("shape arithmetic that depends on nothing but the batch size is worked out")
    return merged


def _settled(graph: Graph) -> bool:
    """Whether no shape is calculated at run time, and all sizes are known or named by the inputs."""
    names = {d for v in graph.inputs for d in v.shape or ()}
    return not any(n.op in ("Shape", "Size") for n in graph.nodes) and all(
        isinstance(d, int) or (d in names and d is not None)
        for v in graph.values.values()
        for d in (v.shape if v.shape is not None else (None,))
    )


def _agree(graph: Graph, merged: Graph) -> bool:
    """Whether both give the same results for one sample, the case that models are most likely to treat apart."""
    feeds = random_feeds(graph.inputs, 1)
    try:
        results = [Trial(g)(feeds) for g in (graph, merged)]
    except Exception:
        return False
    return all(close(a, b) for a, b in zip(*results, strict=True))
