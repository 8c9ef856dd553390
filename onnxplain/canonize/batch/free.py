"""The batch axis becomes free: one graph holds for every batch size.

Requires a folded model. Ensures that the graph holds for every batch size, or for the one size that it is bound to.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from onnxplain.canonize.batch.merge import DifferError, alike, merge
from onnxplain.canonize.batch.retarget import StuckError, retargeted
from onnxplain.canonize.batch.trial import close, random_feeds
from onnxplain.canonize.fold import StubbedModel, fold, light, shaped, with_sizes
from onnxplain.errors import ModelError
from onnxplain.graph.ir import BATCH, Graph, Node, unused
from onnxplain.runtime.trial import TrialError, run

_SIZES = (11, 13)  # samples: two batch sizes that other dimensions are unlikely to have


def generalised(model: StubbedModel, fixed: int | None, changes: list[str]) -> tuple[Graph, int | None]:
    """Make a graph that holds for every batch size.

    Parameters
    ----------
    model
        A folded model.
    fixed
        The batch size with which the model was exported; None if its batch axis is free.
    changes
        The list to which changes are appended, in words.

    Returns
    -------
    graph, size
        The graph, and the batch size that it is bound to; None: any.
    """
    return freed(model, fixed, changes) if fixed is not None else any_batch(model, changes)


def any_batch(model: StubbedModel, changes: list[str]) -> tuple[Graph, int | None]:
    """Replace the run-time shape arithmetic of a model with a free batch axis by its results.

    The model is folded at two batch sizes, so that all arithmetic on shapes becomes constants; the differences between
    the two graphs depend on the batch size. If the two cannot be merged, the graph keeps its arithmetic; if even the
    ranks of tensors depend on the batch size, it is bound to one sample.
    """
    graph = shaped(model)
    if _settled(graph):
        return graph, None
    try:
        points = [_at(model, size) for size in _SIZES]
        merged = merge(points[0], points[1], _SIZES)
        if not _asks_for_sizes(graph) or _folds_alike(model, merged) or _agree(graph, merged):
            if _calculates_shapes(graph):
                changes.append("shape arithmetic that depends on the batch size only is worked out")
            return merged, None
    except (DifferError, ModelError, TrialError):
        pass
    single = None if _ranked(graph) else _alone(model)
    if single is None:
        return graph, None
    changes.append("batch axis stays at 1: samples are looped, because the ranks of tensors depend on their number")
    return single, 1


def freed(model: StubbedModel, fixed: int, changes: list[str]) -> tuple[Graph, int | None]:
    """Free the batch axis of a model that was exported at batch ``fixed``, if trial runs confirm the result."""
    graph = shaped(model)
    try:
        points = [retargeted(graph, fixed, size) for size in _SIZES]
        merged = merge(points[0], points[1], _SIZES)
        if not _independent(graph, merged, fixed):
            raise StuckError("samples would influence each other")
    except (StuckError, DifferError, TrialError) as error:
        changes.append(f"batch axis stays at {fixed}: samples are looped, because {error}")
        return graph, fixed
    changes.append(f"batch axis freed (exported at {fixed})")
    return merged, None


def _at(model: StubbedModel, size: int) -> Graph:
    """Make the graph for one batch size."""
    return _with_axes(shaped(fold(with_sizes(model, {BATCH: size}), set(model.weights))))


def _alone(model: StubbedModel) -> Graph | None:
    """Make the graph for one sample; None unless the ranks of all its tensors are known."""
    try:
        graph = _at(model, 1)
    except ModelError:
        return None
    return graph if _ranked(graph) else None


def _with_axes(graph: Graph) -> Graph:
    """Write down the axes that a Squeeze without axes drops: those of size 1 at this batch size."""
    nodes, constants = list(graph.nodes), dict(graph.constants)
    taken = {*graph.constants, *graph.values, *graph.producer}
    for place, node in enumerate(nodes):
        shape = graph.value(node.inputs[0]).shape if _is_bare(node) else None
        if shape is not None and all(isinstance(d, int) for d in shape):
            axes = [a for a, d in enumerate(shape) if d == 1]
            name = unused(f"{node.outputs[0]}/axes", taken)
            constants |= {name: np.array(axes)} if axes else {}
            nodes[place] = replace(node, inputs=(*node.inputs, name)) if axes else replace(node, op="Identity")
    return graph.replace(nodes=tuple(nodes), constants=constants)


def _is_bare(node: Node) -> bool:
    """Whether a node is a Squeeze without axes."""
    return node.op == "Squeeze" and len(node.inputs) == 1


def _settled(graph: Graph) -> bool:
    """Whether no shape is computed at run time, and all sizes are known or those of inputs."""
    names = {d for v in graph.inputs for d in v.shape or ()}
    return not _calculates_shapes(graph) and all(
        isinstance(d, int) or (d in names and d is not None)
        for v in graph.values.values()
        for d in (v.shape if v.shape is not None else (None,))
    )


def _calculates_shapes(graph: Graph) -> bool:
    return any(node.op in ("Shape", "Size") for node in graph.nodes)


def _asks_for_sizes(graph: Graph) -> bool:
    """Whether a graph may treat a single sample differently; a Squeeze without axes drops all axes of size 1."""
    return _calculates_shapes(graph) or any(map(_is_bare, graph.nodes))


def _ranked(graph: Graph) -> bool:
    return all(value.shape is not None for value in graph.values.values())


def _folds_alike(model: StubbedModel, merged: Graph) -> bool:
    """Whether both give the same graph for one sample, the batch size that models most often treat differently."""
    try:
        return alike(_at(light(merged), 1), _at(model, 1))
    except ModelError:
        return False


def _agree(graph: Graph, merged: Graph) -> bool:
    """Whether both give the same numbers for one sample. More models pass this than `_folds_alike`, which is faster."""
    feeds = random_feeds(graph.inputs, 1)
    results = [run(g, [feeds]) for g in (graph, merged)]
    pairs = zip(results[0][0], results[1][0], strict=True)
    return all(a.size == b.size and close(a.reshape(b.shape), b) for a, b in pairs)


def _independent(graph: Graph, merged: Graph, fixed: int) -> bool:
    """Whether the merged graph computes the same for two batches in one run as the fixed graph for each of them."""
    feeds = random_feeds(merged.inputs, 2 * fixed)
    batched = {v.name for v in merged.inputs if v.shape and v.shape[0] == BATCH}
    parts = [{k: v[at : at + fixed] if k in batched else v for k, v in feeds.items()} for at in (0, fixed)]
    expected = run(graph, parts)
    for output, result, *halves in zip(merged.outputs, run(merged, [feeds])[0], *expected, strict=True):
        grown = [i for i, d in enumerate(output.shape or ()) if not isinstance(d, int)]
        results = np.split(result, 2, grown[0]) if grown else [result, result]
        if not all(close(a, b) for a, b in zip(halves, results, strict=True)):
            return False
    return True
