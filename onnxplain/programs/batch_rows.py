"""`Rows`: where the samples of a batch are in the tensors of a graph, as long as samples are not mixed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from onnxplain.backward import CONTROL
from onnxplain.graph.ir import Graph, Node, Shape, Value, rows_per_sample
from onnxplain.graph.var import Var, concat


@dataclass(frozen=True)
class Rows:
    """The rows of a tensor along the batch axis: each sample has ``size`` rows, in ``blocks`` blocks.

    Each block has rows of all samples, one sample after the other: the layout of a Reshape that makes one axis of
    (blocks, batch, rows).
    """

    axis: int
    size: int = 1
    blocks: int = 1

    def repeated(self, row: Var, like: Var) -> Var:
        """Repeat the rows of one sample for all samples of ``like``."""
        if self.size == 1:
            return row
        emitter, sizes = row.emitter, [row.size(axis) for axis in range(row.rank)]
        parts = [self.blocks, 1, self.size // self.blocks]
        apart = row.reshape(concat([*sizes[: self.axis], emitter.ints(parts), *sizes[self.axis + 1 :]]))
        count = like.size(self.axis) / self.size
        ones = [emitter.ints([1] * (self.axis + 1)), count, emitter.ints([1] * (row.rank - self.axis))]
        return emitter.op("Expand", apart, concat(ones)).reshape_like(like)


Found = dict[str, Rows | None]  # None for integers, whose rows are not needed
Lookup = Callable[[str], Value | None]


def rows_of_samples(graph: Graph, tensors: Iterable[str], needed: set[str]) -> Found | None:
    """Find the rows of all ``needed`` values that depend on some tensors; None if samples may be mixed.

    They may if other inputs take part, if samples share an axis in an unknown layout, or if a size is unknown.
    """
    found = {name: _rows(graph.value(name)) for name in tensors}
    if any(rows != Rows(rows.axis if rows else 0) for rows in found.values()):
        return None
    return found if _follow(graph, found, needed, graph.values.get) else None


def grows(value: Value | None) -> bool:
    """Whether a value's sizes depend on the number of samples, or may, because its shape is unknown."""
    return value is not None and (value.shape is None or any(rows_per_sample(d) for d in value.shape))


def per_sample(shape: Shape) -> Shape:
    """The shape with the rows of one sample."""
    return tuple(rows_per_sample(d) or d for d in shape)


def _rows(value: Value) -> Rows | None:
    shape = value.shape or (None,)
    sizes = {axis: size for axis, d in enumerate(shape) if (size := rows_per_sample(d)) is not None}
    return Rows(*sizes.popitem()) if len(sizes) == 1 and None not in shape else None


def _follow(graph: Graph, found: Found, needed: set[str], lookup: Lookup) -> bool:
    """Add the values that depend on ``found`` to it; return whether samples are not mixed."""
    for node in graph.nodes:
        if found.keys().isdisjoint(node.reads) or needed.isdisjoint(node.outputs):
            continue
        if any(grows(lookup(name)) for name in node.reads if name not in found):
            return False
        if node.op in CONTROL and not (node.op == "Loop" and _trips(node, found, lookup)):
            return False
        for name in filter(None, node.outputs):
            value = graph.value(name)
            found[name] = _moved(node, value, found, lookup) if value.is_float else None
            if value.is_float and found[name] is None:
                return False
    return True


def _moved(node: Node, value: Value, found: Found, lookup: Lookup) -> Rows | None:
    """The rows of an output."""
    rows = _rows(value)
    read = [found[name] for name in node.reads if found.get(name)]
    given = {(r.size, r.blocks) for r in read if r}
    if rows is None:
        return None
    if node.op in ("Flatten", "Reshape") and given:
        x, before = found[node.inputs[0]], lookup(node.inputs[0])
        if x is None or before is None or before.shape is None or value.shape is None:
            return None
        blocks, rest = divmod(_product(before.shape[: x.axis]) * x.blocks, _product(value.shape[: rows.axis]))
        return None if rest or rows.size % blocks else Rows(rows.axis, rows.size, blocks)
    (size, blocks), *others = given or {(1, 1)}
    return None if others or size != rows.size else Rows(rows.axis, size, blocks)


def _product(dims: Sequence[object]) -> int:
    return math.prod(d for d in dims if isinstance(d, int))


def _trips(node: Node, found: Found, lookup: Lookup) -> bool:
    """Whether the trips of a Loop do not mix samples, and their number does not depend on the samples."""
    body: Graph = node.attrs["body"]
    if not node.each_slice and not found.keys().isdisjoint(node.inputs[:2]):
        return False

    def inside(name: str) -> Value | None:
        return body.values.get(name) or lookup(name)

    starts = {v for v, i in zip(body.inputs[2:], node.inputs[2:], strict=True) if i in found}
    while True:
        states = {v.name: _rows(v) for v in starts}
        if any(rows is None or rows.size > 1 for rows in states.values()):
            return False
        here = states | {name: found[name] for name in body.captured if name in found}
        if not _follow(body, here, set(body.producer), inside) or body.outputs[0].name in here:
            return False
        more = {v for v, end in zip(body.inputs[2:], body.outputs[1:], strict=False) if end.name in here} - starts
        if not more:
            return True
        starts |= more
