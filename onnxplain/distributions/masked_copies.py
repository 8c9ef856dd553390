"""Masked copies of samples, made inside of the graph that computes their scores.

The inputs of that graph are small, however many copies there are: the samples, the fills that replace their hidden
parts, and, for each copy, a description of the part that is hidden.
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
_WIDER = {"bool": "uint8", "uint16": "int32", "int16": "int32", "uint64": "int64"}  # no provider has Where for the keys
_END = np.iinfo(np.int64).max  # of a slice that takes all rows


def named(what: str, name: str) -> str:
    """Name of the input that holds ``what``, a word, of the tensor ``name``; no two such pairs share a name."""
    return f"copies/{what}/{name}"


def samples_of(name: str) -> str:
    """Name of the input that holds the samples of the tensor ``name``, the batch axis in front."""
    return named("samples", name)


def fill_of(name: str) -> str:
    """Name of the input that holds fills for the tensor ``name``; its rows broadcast to samples."""
    return named("fill", name)


def filler_of(name: str) -> str:
    """Name of the input that holds, for each copy, the number of its row in the input `fill_of`."""
    return named("filler", name)


def kept_as(name: str) -> str:
    """Name that an input or output of the program has in the graph with copies: its own, unless that is one of ours."""
    return named("own", name) if name.startswith("copies/") else name


class Prologue:
    """The nodes in front of a program that make masked copies. The batch axis of all tensors in it is in front.

    Attributes
    ----------
    emitter
        Writes the nodes.
    inputs
        The inputs written so far, by name.
    sample, plan
        For each copy, the number of its sample and of its plan: int64, shape (copies,).
    """

    def __init__(self) -> None:
        self.emitter = Emitter()
        self.inputs: dict[str, Var] = {}
        self.sample, self.plan = (self.per_copy(name, np.int64, ()) for name in (SAMPLE, PLAN))

    def shared(self, name: str, dtype: Any, shape: Shape | None) -> Var:
        """An input that is the same for all copies of all samples; its name is reserved in the graph."""
        if name not in self.inputs:
            self.emitter.reserve([Node("Identity", (), (name,))])
            self.emitter.values[name] = Value(name, np.dtype(dtype), shape)
            self.inputs[name] = self.emitter.var(name)
        return self.inputs[name]

    def per_copy(self, name: str, dtype: Any, shape: Shape) -> Var:
        """An input with a row of this shape for each copy."""
        return self.shared(name, dtype, (BATCH, *shape))

    def per_sample(self, name: str, dtype: Any, shape: Shape) -> Var:
        """An input with a row for each sample, gathered to a row for each copy."""
        return _gathered(self.shared(name, dtype, (None, *shape)), self.sample, BATCH)

    def per_plan(self, name: str, dtype: Any, shape: Shape) -> Var:
        """An input with a row for each plan, gathered to a row for each copy."""
        return _gathered(self.shared(name, dtype, (None, *shape)), self.plan, BATCH)

    def broadcast(self, name: str, dtype: Any, shape: Shape, row: Var) -> Var:
        """An input, gathered to the row number ``row`` for each copy; a single row stays single, to save memory."""
        rows = self.shared(name, dtype, (None, *shape))
        single = rows.sizes(0, 1).equal(1)
        end = where(single, self.emitter.ints([1]), self.emitter.ints([_END]))
        needed = self.emitter.op("Slice", row, self.emitter.ints([0]), end, known=(None,))
        return _gathered(rows, needed, None)


Mask = Callable[[Prologue, str, Var, Var], Var]
"""(prologue, name of a tensor, its samples, fills) -> its masked copies."""


def with_copies(
    graph: Graph, axes: Mapping[str, int], per_copy: Collection[str], masked: Collection[str], mask: Mask
) -> Graph:
    """Put nodes that make masked copies in front of a program.

    Parameters
    ----------
    graph
        The program.
    axes
        Name of each of its inputs that has a batch axis -> that axis.
    per_copy
        Names of the inputs that are given for each copy: targets.
    masked
        Names of the inputs that are masked. The copies of other inputs with a batch axis are equal to their samples.
    mask
        Writes the masked copies.

    Returns
    -------
    Graph
        Inputs: ``per_copy``, the inputs without a batch axis, the samples of each of the others, and the inputs of the
        `Prologue`. Outputs: the program's. Inputs and outputs of the program are named by `kept_as`.
    """
    prologue = Prologue()
    emitter, operands = prologue.emitter, {}
    outputs = [v.name for v in graph.outputs]
    emitter.reserve([Node("Identity", (), tuple(kept_as(n) for n in (*outputs, *(v.name for v in graph.inputs))))])
    for value in graph.inputs:
        axis = axes.get(value.name)
        if axis is None or value.name in per_copy:
            operands[value.name] = prologue.shared(kept_as(value.name), value.dtype, value.shape)
        else:
            operands[value.name] = _copies(prologue, value, axis, mask if value.name in masked else None)
    results = emitter.inline(graph, operands, outputs)
    return emitter.graph(list(prologue.inputs.values()), dict(zip(map(kept_as, outputs), results, strict=True)))


def _copies(prologue: Prologue, value: Value, axis: int, mask: Mask | None) -> Var:
    """Copies of an input with a batch axis, masked or as they are, the batch axis in its place."""
    if value.shape is None:
        raise UnsupportedModelError(f"the rank of the tensor is unknown until it runs, and masking needs it: {value}")
    emitter, name = prologue.emitter, value.name
    shape = (*value.shape[:axis], *value.shape[axis + 1 :])
    if mask:
        x = prologue.broadcast(samples_of(name), value.dtype, shape, prologue.sample)
        filler = prologue.per_copy(filler_of(name), np.int64, ())
        fill = prologue.broadcast(fill_of(name), value.dtype, (None,) * len(shape), filler)
        copies = mask(prologue, name, x, fill)
        sizes = [d for d in shape if isinstance(d, int)]
        if len(sizes) == len(shape):  # otherwise ONNX Runtime has to infer them, and may miss its fastest layout
            copies = copies.reshape([-1, *sizes])
    else:
        copies = prologue.per_sample(samples_of(name), value.dtype, shape)
    copies = emitter.refine(copies, (value.shape[axis], *shape))
    return copies.transpose([*range(1, axis + 1), 0, *range(axis + 1, len(value.shape))])


def _gathered(rows: Var, numbers: Var, count: Dim) -> Var:
    """Rows by number, ``count`` of them."""
    known = (count, *(rows.shape or ())[1:])
    if rows.dtype.kind != "O":
        return rows.emitter.op("Gather", rows, numbers, known=known, axis=0)
    # Of texts, ONNX Runtime's Gather (1.31) returns only the first element of each row.
    return rows.emitter.op("GatherND", rows, numbers.reshape([-1, 1]), known=known, batch_dims=0)


def keep_where(kept: Var, x: Var, fill: Var) -> Var:
    """Elements of x where ``kept`` is True, and of the fill elsewhere; x may be of any dtype."""
    wide = _WIDER.get(x.dtype.name, x.dtype)
    return where(kept, x.cast(wide), fill.cast(wide)).cast(x.dtype)


def take_columns(table: Var, columns: Var) -> Var:
    """Elements of each row of a table, shape (copies, K), at the numbers in ``columns``, shape (copies, ...)."""
    flat = columns.reshape([0, -1])
    # GatherElements takes a fifth of the time of Gather.
    elements = table.emitter.op("GatherElements", table, flat, known=flat.shape, axis=1)
    return elements.reshape(columns.sizes(), columns.shape)


def compact(array: Array, first: int = 0) -> Array:
    """View of an array in which each axis along which it was broadcast has size 1, from the axis ``first`` on."""
    kept = (slice(None) if stride or axis < first else slice(1) for axis, stride in enumerate(array.strides))
    return array[tuple(kept)]
