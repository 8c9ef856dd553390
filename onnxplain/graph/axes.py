"""Batch axes: which axis of a tensor counts the samples."""

from __future__ import annotations

from collections.abc import Sequence

from onnxplain.graph.ir import BATCH, Dim, Graph, Value, rows_per_sample


def batch_axes(inputs: Sequence[Value]) -> dict[str, int]:
    """Name of an input with a batch axis -> the axis.

    Inputs with a free batch axis have one; if no input has, those with the smallest first size. All other inputs are
    parameters, the same for all samples.
    """
    free = {v.name: v.shape.index(BATCH) if v.shape else 0 for v in inputs if v.shape is None or BATCH in v.shape}
    fixed = {v.name: v.shape[0] for v in inputs if v.shape and isinstance(v.shape[0], int)}
    return free or {name: 0 for name, size in fixed.items() if size == min(fixed.values())}


def rows(value: Value) -> Dim:
    """Size of the first axis; 1 for a scalar, None where the rank is unknown."""
    return None if value.shape is None else value.shape[0] if value.shape else 1


def batch_axis(graph: Graph, name: str) -> int | None:
    """The batch axis of a tensor; None if it has none.

    In a model for one sample at a time, any axis of size 1 serves. A first axis of unknown size counts as the batch
    axis, unless the model is fixed to some number of samples: the size may then be another number.
    """
    value = graph.value(name)
    axes = batch_axes(graph.inputs)
    batch = next((v.shape[axes[v.name]] for v in graph.inputs if v.name in axes and v.shape), BATCH)
    if value.shape is not None and batch in value.shape and (isinstance(batch, str) or batch == 1):
        return value.shape.index(batch)
    first = rows(value)
    if isinstance(first, int):
        return 0 if first == batch or (first == 1 and batch == BATCH) else None
    return 0 if first is None or (isinstance(batch, str) and not rows_per_sample(first)) else None
