"""Masked copies of samples, made by the graph that finds their scores.

What goes in is small, however many copies there are: the samples themselves, what stands where they are hidden, and,
for each copy, a description of what is hidden there.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np

from onnxplain.errors import UnsupportedModelError
from onnxplain.graph.emit import Emitter
from onnxplain.graph.ir import BATCH, Dim, Graph, Node, Shape, Value
from onnxplain.graph.var import Var, where

Array = np.ndarray[Any, Any]

SAMPLE, PLAN = "copies/sample", "copies/plan"
_CHOSEN = {"bool": "uint8", "uint16": "int32", "int16": "int32", "uint64": "int64"}  # no provider has Where for these
_ALL = np.iinfo(np.int64).max


def named(what: str, name: str) -> str:
    """Name of the input that tells ``what``, a word, of a tensor; no two words and tensors have the same."""
    return f"copies/{what}/{name}"


def samples_of(name: str) -> str:
    """Name of the input that holds the samples of the tensor ``name``, the batch axis in front."""
    return named("samples", name)


def fill_of(name: str) -> str:
    """Name of the input with what stands where the tensor is hidden; it broadcasts to samples."""
    return named("fill", name)


def filler_of(name: str) -> str:
    """Name of the input with the row of that, per copy."""
    return named("filler", name)


def kept_as(name: str) -> str:
    """Name of what an input or an output of the program is here: its own, unless it looks like one of those above."""
    return named("own", name) if name.startswith("copies/") else name


class Prologue:
    """What is written in front of a program. The batch axis of all tensors in it is in front.

    Attributes
    ----------
    emitter
        Writes it.
    inputs
        Those that there are so far, by name.
    sample, plan
        Per copy: the row of its sample, and of what its plan tells.
    """

    def __init__(self) -> None:
        self.emitter = Emitter()
        self.inputs: dict[str, Var] = {}
        self.sample, self.plan = (self.per_copy(name, np.int64, ()) for name in (SAMPLE, PLAN))

    def shared(self, name: str, dtype: Any, shape: Shape | None) -> Var:
        """An input that is the same for all copies of all samples; nothing else that is written has its name."""
        if name not in self.inputs:
            self.emitter.reserve([Node("Identity", (), (name,))])
            self.emitter.values[name] = Value(name, np.dtype(dtype), shape)
            self.inputs[name] = self.emitter.var(name)
        return self.inputs[name]

    def per_copy(self, name: str, dtype: Any, shape: Shape) -> Var:
        """An input with a row for each copy, of this shape."""
        return self.shared(name, dtype, (BATCH, *shape))

    def per_sample(self, name: str, dtype: Any, shape: Shape) -> Var:
        """The rows, for each copy, of an input that has one for each sample."""
        return _rows(self.shared(name, dtype, (None, *shape)), self.sample, BATCH)

    def per_plan(self, name: str, dtype: Any, shape: Shape) -> Var:
        """The rows, for each copy, of an input that has one for each plan."""
        return _rows(self.shared(name, dtype, (None, *shape)), self.plan, BATCH)

    def broadcast(self, name: str, dtype: Any, shape: Shape, row: Var) -> Var:
        """The rows of an input for each copy; if it has one only, just that, which need not be repeated in memory."""
        rows = self.shared(name, dtype, (None, *shape))
        alone = rows.sizes(0, 1).equal(1)
        end = where(alone, self.emitter.ints([1]), self.emitter.ints([_ALL]))
        needed = self.emitter.op("Slice", row, self.emitter.ints([0]), end, known=(None,))
        return _rows(rows, needed, None)


Masked = Callable[[Prologue, str, Var, Var], Var]  # (prologue, name, samples, fill) -> masked copies


def with_copies(
    graph: Graph, axes: Mapping[str, int], per_copy: Collection[str], masked: Collection[str], mask: Masked
) -> Graph:
    """Put in front of a program what makes masked copies.

    Parameters
    ----------
    graph
        The program.
    axes
        Its inputs that have a batch axis -> which it is.
    per_copy
        Those that are given for each copy: targets.
    masked
        Those that are masked; of the others with a batch axis, copies are like their samples.
    mask
        Writes masked copies.

    Returns
    -------
    Graph
        Inputs: ``per_copy``; those without a batch axis; of each of the others the samples; and what `Prologue` names.
        Outputs: the program's. See `kept_as` for the names of what is the program's.
    """
    prologue = Prologue()
    emitter, given = prologue.emitter, {}
    outputs = [v.name for v in graph.outputs]
    emitter.reserve([Node("Identity", (), tuple(kept_as(n) for n in (*outputs, *(v.name for v in graph.inputs))))])
    for value in graph.inputs:
        name, axis = value.name, axes.get(value.name)
        if axis is None or name in per_copy:
            given[name] = prologue.shared(kept_as(name), value.dtype, value.shape)
            continue
        if value.shape is None:
            raise UnsupportedModelError(f"nobody knows how many axes the tensor has before it runs: {value}")
        shape = (*value.shape[:axis], *value.shape[axis + 1 :])
        if name in masked:
            x = prologue.broadcast(samples_of(name), value.dtype, shape, prologue.sample)
            filler = prologue.per_copy(filler_of(name), np.int64, ())
            fill = prologue.broadcast(fill_of(name), value.dtype, (None,) * len(shape), filler)
            copies = mask(prologue, name, x, fill)
            sizes = [d for d in shape if isinstance(d, int)]
            if len(sizes) == len(shape):  # or ONNX Runtime, which has to infer them, may not find its fastest layout
                copies = copies.reshape([-1, *sizes])
        else:
            copies = prologue.per_sample(samples_of(name), value.dtype, shape)
        copies = emitter.refine(copies, (value.shape[axis], *shape))
        given[name] = copies.transpose([*range(1, axis + 1), 0, *range(axis + 1, len(value.shape))])
    results = emitter.inline(graph, given, outputs)
    return emitter.graph(list(prologue.inputs.values()), dict(zip(map(kept_as, outputs), results, strict=True)))


def _rows(rows: Var, numbers: Var, count: Dim) -> Var:
    known = (count, *(rows.shape or ())[1:])
    if rows.dtype.kind != "O":
        return rows.emitter.op("Gather", rows, numbers, known=known, axis=0)
    # of texts, ONNX Runtime's Gather (1.31) returns only the first of each row
    return rows.emitter.op("GatherND", rows, numbers.reshape([-1, 1]), known=known, batch_dims=0)


def chosen(kept: Var, x: Var, fill: Var) -> Var:
    """Elements of x where a mask holds, and of the fill where it does not; of any type."""
    wide = _CHOSEN.get(x.dtype.name, x.dtype)
    return where(kept, x.cast(wide), fill.cast(wide)).cast(x.dtype)


def looked_up(table: Var, columns: Var) -> Var:
    """What each row of a table, (copies, K), has in the columns with these numbers, (copies, ...)."""
    flat = columns.reshape([0, -1])
    found = table.emitter.op("GatherElements", table, flat, known=flat.shape, axis=1)  # five times as fast as Gather
    return found.reshape(columns.sizes(), columns.shape)


def compact(array: Array, first: int = 0) -> Array:
    """One place of each axis, from ``first`` on, along which an array was broadcast, and all places of the others."""
    kept = (slice(None) if stride or axis < first else slice(1) for axis, stride in enumerate(array.strides))
    return array[tuple(kept)]
