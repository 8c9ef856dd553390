"""Operators that read or write elements by index. The cotangent of a read is a write, and the other way round."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from math import prod
from operator import mul
from typing import Any

import numpy as np

from onnxplain.graph.ir import Shape
from onnxplain.graph.var import Var, concat
from onnxplain.ops.elementwise import product_kind, sum_kind
from onnxplain.ops.table import Call, Cotangent, Kind, OpTable
from onnxplain.ops.traits import Trait

TABLE = OpTable(Kind.MOVEMENT)


def zeros(sizes: Var, dtype: Any, known: Shape | None = None) -> Var:
    """Zeros of the given sizes."""
    return sizes.emitter.op("ConstantOfShape", sizes, dtype=dtype, known=known, value=np.zeros(1, dtype))


def add_at(base: Var, index: Var, updates: Var, axis: int) -> Var:
    """Add ``updates`` to ``base`` at ``index`` along ``axis``; repeated indices add up."""
    # In half precision, the CPU kernel is registered but fails, and sums would lose digits.
    wide = np.dtype(np.float32) if base.dtype.itemsize < 4 else base.dtype
    total = base.emitter.op(
        "ScatterElements", base.cast(wide), index, updates.cast(wide), axis=axis, reduction="add", known=base.shape
    )
    return total.cast(base.dtype)


def count(x: Var, start: int = 0, end: int | None = None) -> Var:
    """Product of the sizes of axes ``start:end`` of x, int64 of shape (1,)."""
    axes = range(x.rank)[start:end]
    sizes = [x.shape[axis] if x.shape else None for axis in axes]
    known = prod(size for size in sizes if isinstance(size, int))
    # Not by ReduceProd, which has no int64 kernel on CUDA.
    free = [x.size(axis) for axis, size in zip(axes, sizes, strict=True) if not isinstance(size, int)]
    return reduce(mul, free, x.emitter.ints([known]))


def ranked(x: Var, rank: int) -> Var:
    """Note the rank of x, which ONNX does not infer for every operator if sizes are free."""
    return x.emitter.refine(x, x.shape or (None,) * rank)


def counter(size: Var) -> Var:
    """The numbers from 0 to size - 1; ``size`` has shape (1,)."""
    emitter, count = size.emitter, None if size.value is None else int(size.value[0])
    scalars = (emitter.const(np.int64(0)), size.reshape([]), emitter.const(np.int64(1)))
    return emitter.op("Range", *scalars, known=(count,))


def positions(x: Var, axes: int) -> Var:
    """Numbers from 0 on in the shape of the first ``axes`` axes of x; an operator picks its index from them."""
    return counter(count(x, 0, axes)).reshape(x.sizes(0, axes), known=x.shape and x.shape[:axes])


def as_rows(x: Var, axes: int) -> Var:
    """Reshape x to a matrix: its first ``axes`` axes become the rows, the others the columns."""
    return x.reshape(concat([x.emitter.ints([-1]), count(x, axes)]))


def row_index(rows: Var, columns: Var) -> Var:
    """Index with which ScatterElements moves whole rows; ``columns``: their length, of shape (1,)."""
    return rows.emitter.op("Expand", rows.reshape([-1, 1]), concat([rows.emitter.ints([1]), columns]))


def unpick(ct: Var, rows: Var, x: Var, axes: int) -> Var:
    """Cotangent of x if the output is the selection ``rows``: flat positions over the first ``axes`` axes of x."""
    columns = count(x, axes)
    updates = ct.reshape(concat([x.emitter.ints([-1]), columns]))
    base = zeros(concat([count(x, 0, axes), columns]), ct.dtype)
    return add_at(base, row_index(rows, columns), updates, 0).reshape_like(x)


def pad(ct: Var, begins: Sequence[Var], ends: Sequence[Var], known: Shape | None) -> Var:
    """Put zeros around ct; one width of shape (1,) per axis and side, negative ones crop."""
    widths = concat([*begins, *ends])
    if widths.value is not None and not widths.value.any():
        return ct.emitter.refine(ct, known) if known else ct
    return ct.emitter.op("Pad", ct, widths, known=known, mode="constant")


def untake(ct: Var, index: Var, x: Var, axis: int) -> Var:
    """Cotangent of x in Gather(x, index, axis) with an index of one axis: ct is added up at the index."""
    emitter, size = x.emitter, x.shape[axis] if x.shape else None
    if index.value is not None and index.value.size:
        order = index.value.astype(np.int64)
        if isinstance(size, int):
            order = order % size
        first, last = int(order[0]), int(order[-1])
        if np.all(np.diff(order) == 1) and (first < 0) == (last < 0):
            zero = [emitter.ints([0])] * x.rank
            begins, ends = list(zero), list(zero)
            if first < 0:
                begins[axis], ends[axis] = x.size(axis) + first, emitter.ints([-1 - last])
            else:
                left = emitter.ints([size - last - 1]) if isinstance(size, int) else x.size(axis) - (last + 1)
                begins[axis], ends[axis] = emitter.ints([first]), left
            return pad(ct, begins, ends, x.shape)
        if isinstance(size, int) and len(set(order.tolist())) == order.size:
            # For each element of x its place in the output; the other elements read one more place, a zero.
            inverse = np.full(size, order.size)
            inverse[order] = np.arange(order.size)
            if order.size < size:
                widths = np.zeros(2 * x.rank, np.int64)
                widths[x.rank + axis] = 1
                ct = emitter.op("Pad", ct, emitter.ints(widths.tolist()), mode="constant")
            return emitter.op("Gather", ct, emitter.ints(inverse.tolist()), axis=axis, known=x.shape)
    column = index.reshape([-1] + [1] * (x.rank - axis - 1))
    index = emitter.op("Expand", column, ct.sizes(), known=ct.shape)
    return add_at(zeros(x.sizes(), ct.dtype, x.shape), index, ct, axis)


@TABLE.vjp("Gather", traits=Trait.MOVES | Trait.LOOKS_UP | Trait.KEEPS_NON_NEGATIVE)
def gather(call: Call, ct: Var) -> list[Var]:
    """As `untake`, with the axes of the index merged into one."""
    x, index = call.x, call.need(1)
    axis = call.attrs["axis"] % x.rank
    known = None if x.shape is None else (*x.shape[:axis], None, *x.shape[axis + 1 :])
    if index.rank == 0:
        ct = call.op("Unsqueeze", ct, call.ints([axis]), known=x.shape and (*x.shape[:axis], 1, *x.shape[axis + 1 :]))
    elif index.rank > 1:
        ct = ct.reshape(concat([x.sizes(0, axis), call.ints([-1]), x.sizes(axis + 1)]), known=known)
    flat = index.reshape([-1]) if index.value is None else call.emitter.const(index.value.reshape(-1))
    return [untake(ct, flat, x, axis)]


@TABLE.vjp("GatherElements", traits=Trait.LOOKS_UP)
def gather_elements(call: Call, ct: Var) -> list[Var]:
    """Adds ct up at the index."""
    index = call.need(1)
    return [add_at(zeros(call.x.sizes(), ct.dtype, call.x.shape), index, ct, call.attrs["axis"])]


@TABLE.vjp("GatherND")
def gather_nd(call: Call, ct: Var) -> list[Var]:
    """As `unpick`, with the rows that GatherND picks of the positions."""
    x, index = call.x, call.need(1)
    axes = x.rank + index.rank - 1 - call.y.rank  # batch_dims and the last size of the index together
    rows = call.op("GatherND", positions(x, axes), index, batch_dims=call.attrs["batch_dims"])
    return [unpick(ct, rows, x, axes)]


def scatter_kind(call: Call) -> Kind:
    """MOVEMENT without a reduction, otherwise the kind of the elementwise sum, product or choice."""
    kinds = {"none": Kind.MOVEMENT, "add": sum_kind(call), "mul": product_kind(call)}
    return kinds.get(call.attrs["reduction"], Kind.MAX_POOL)


@TABLE.vjp("ScatterElements", kind=scatter_kind, traits=Trait.READS)
def scatter_elements(call: Call, ct: Var) -> Sequence[Cotangent]:
    """To the updates ct at the index; to the data ct, with 0 at the index if the updates replace it."""
    x, index, updates = (call.need(i) for i in range(3))
    axis, reduction = call.attrs["axis"], call.attrs["reduction"]
    if reduction not in ("none", "add"):
        to_data, to_updates = _reduced(reduction, x, index, updates, call.y, ct, axis)
        return [to_data, None, to_updates]
    taken = call.op("GatherElements", ct, index, axis=axis, known=updates.shape)
    if reduction == "none":
        blank = zeros(updates.sizes(), ct.dtype, updates.shape)
        ct = call.op("ScatterElements", ct, index, blank, axis=axis, reduction="none", known=x.shape)
    return [ct, None, taken]


@TABLE.vjp("ScatterND", kind=scatter_kind, traits=Trait.READS)
def scatter_nd(call: Call, ct: Var) -> Sequence[Cotangent]:
    """To the updates ct at the index; to the data ct, with 0 at the index if the updates replace it."""
    x, index, updates = (call.need(i) for i in range(3))
    reduction = call.attrs["reduction"]
    if reduction not in ("none", "add"):
        axes = x.rank + index.rank - 1 - updates.rank
        rows = row_index(call.op("GatherND", positions(x, axes), index, batch_dims=0), count(x, axes))
        data, y_rows, ct_rows = (as_rows(v, axes) for v in (x, call.y, ct))
        flat = as_rows(updates, index.rank - 1)
        to_data, to_updates = _reduced(reduction, data, rows, flat, y_rows, ct_rows, 0)
        return [to_data.reshape_like(x), None, to_updates.reshape_like(updates)]
    taken = call.op("GatherND", ct, index, batch_dims=0, known=updates.shape)
    if reduction == "none":
        ct = call.op(
            "ScatterND", ct, index, zeros(updates.sizes(), ct.dtype, updates.shape), reduction="none", known=x.shape
        )
    return [ct, None, taken]


def _reduced(reduction: str, data: Var, index: Var, updates: Var, y: Var, ct: Var, axis: int) -> tuple[Var, Var]:
    """Cotangents of data and updates if ScatterElements multiplies, or takes extremes (ties share ct equally)."""
    emitter = data.emitter

    def take(v: Var) -> Var:
        return emitter.op("GatherElements", v, index, axis=axis, known=updates.shape)

    def times(base: Var, factors: Var) -> Var:
        return emitter.op("ScatterElements", base, index, factors, axis=axis, reduction="mul", known=data.shape)

    nothing = zeros(data.sizes(), data.dtype, data.shape)
    if reduction == "mul":
        # The product of the others is the product of the nonzero ones, or 0 if one of the others is 0.
        zero = updates.equal(0.0).cast(data.dtype)
        nonzero = updates + zero
        zeros_met = take(add_at(nothing, index, zero, axis))
        others = (take(ct * times(data, nonzero)) / nonzero).mask(zeros_met.equal(zero))
        return ct * times(nothing + 1.0, updates), others
    data_won, updates_won = data.equal(y).cast(data.dtype), updates.equal(take(y)).cast(data.dtype)
    share = ct / add_at(data_won, index, updates_won, axis)
    return data_won * share, updates_won * take(share)


@TABLE.vjp("Compress", traits=Trait.DATA_SIZED)
def compress(call: Call, ct: Var) -> list[Var]:
    """Puts ct back at the places that were kept."""
    x, condition = call.x, call.need(1)
    axis = call.attrs.get("axis")
    if axis is None:
        return [unpick(ct, _kept(condition, count(x)), x, x.rank)]
    return [untake(ct, _kept(condition, x.size(axis)), x, axis % x.rank)]


def _kept(condition: Var, size: Var) -> Var:
    """Positions at which a condition holds, among ``size`` ones."""
    if condition.value is not None:
        return size.emitter.ints(np.flatnonzero(condition.value).tolist())
    return size.emitter.op("Compress", counter(size), condition, axis=0)


@TABLE.vjp("Unique", traits=Trait.DATA_SIZED)
def unique(call: Call, ct: Var, *_: Cotangent) -> list[Var]:
    """To the first of equal elements."""
    shapes = [call.y.shape, (None,)]
    first = call.outputs[1] if len(call.outputs) > 1 else None
    if first is None:
        dtypes = [ct.dtype, np.dtype(np.int64)]
        first = call.emitter.ops("Unique", call.x, outputs=2, dtypes=dtypes, shapes=shapes, **call.attrs)[1]
    axis = call.attrs.get("axis")
    if axis is None:
        return [unpick(ct, first, call.x, call.x.rank)]
    return [untake(ct, first, call.x, axis % call.x.rank)]


@TABLE.vjp("Range", kind=sum_kind)
def range_(call: Call, ct: Var) -> Sequence[Cotangent]:
    """For y[k] = start + k delta: the sum of ct to start, that of k ct to delta; the limit only sets the size."""
    step = (ct * counter(ct.size(0)).cast(ct.dtype)).sum() if call.active[2] else None
    return [ct.sum(), None, step]


@TABLE.vjp("OneHot", traits=Trait.LOOKS_UP)
def one_hot(call: Call, ct: Var) -> Sequence[Cotangent]:
    """Sums of ct where the output is off, and where it is on, to the two values."""
    hot = call.op("OneHot", *call.inputs[:2], ct.like([0, 1]), dtype=ct.dtype, known=ct.shape, axis=call.attrs["axis"])
    on = (ct * hot).sum()
    return [None, None, concat([(ct.sum() - on).reshape([1]), on.reshape([1])])]


# Elements that GridSample reads along an axis: their offsets, and the coefficients of their weights, polynomials of the
# position between offsets 0 and 1, lowest power first. The cubic kernel is that of Keys with a = -0.75.
_READS: dict[str, tuple[list[int], list[list[float]]]] = {
    "nearest": ([0], [[1]]),
    "linear": ([0, 1], [[1, -1], [0, 1]]),
    "cubic": (
        [-1, 0, 1, 2],
        [[0, -0.75, 1.5, -0.75], [1, 0, -2.25, 1.25], [0, 0.75, 1.5, -1.25], [0, 0, -0.75, 0.75]],
    ),
}


def grid_kind(call: Call) -> Kind:
    """AVG_POOL on a fixed grid, PRODUCT if the grid is active, too."""
    return Kind.PRODUCT if call.active[1] else Kind.AVG_POOL


@TABLE.vjp("GridSample", kind=grid_kind, traits=Trait.READS | Trait.CONTRACTS)
def grid_sample(call: Call, ct: Var) -> Sequence[Cotangent]:
    """For y = the sum of weight * element over the elements read, one combination of offsets each.

    Shapes: N samples, C channels, R elements read per output, P outputs, and one axis of reads per spatial axis.
    """
    x, grid = call.x, call.need(1)
    axes, mode = x.rank - 2, call.attrs["mode"]
    offsets, coefficients = _READS[mode]
    reads = len(offsets) ** axes
    points = grid.reshape([0, -1, axes])
    index: Var | None = None
    weights, slopes = [], []
    for axis in range(axes):
        across = [0] + [1] * axes + [-1]
        along = [len(offsets) if a == axis else 1 for a in range(axes)] + [1]
        size = x.size(2 + axis).cast(ct.dtype)
        scale = (size - 1.0 if call.attrs["align_corners"] else size) / 2.0
        position = (call.op("Gather", points, call.ints([axes - 1 - axis]), axis=2).reshape(across) + 1.0) * scale
        position = position if call.attrs["align_corners"] else position - 0.5
        base = call.op("Round" if mode == "nearest" else "Floor", position)
        between = position - base
        weight = slope = ct.like(0)
        # Horner's scheme, for the polynomial and for its derivative.
        for column in zip(*(row[::-1] for row in coefficients), strict=True):
            slope, weight = slope * between + weight, weight * between + ct.like(np.reshape(column, along))
        place, inside = _padded(call, base + ct.like(np.reshape(offsets, along)), size)
        weights.append(weight if inside is None else weight * inside)
        slopes.append(scale * (slope if inside is None else slope * inside))
        place = place.cast(np.int64)
        index = place if index is None else index * x.size(2 + axis) + place
    assert index is not None
    index = call.op("Expand", index.reshape([0, 1, -1]), concat([call.ints([1]), x.size(1), call.ints([1])]))
    flat_ct = ct.reshape([0, 0, 1, -1])  # N C 1 P
    to_x = to_grid = None
    if call.active[0]:
        updates = (flat_ct * reduce(mul, weights).reshape([0, 1, reads, -1])).reshape([0, 0, -1])
        base = zeros(concat([x.sizes(0, 2), count(x, 2)]), ct.dtype)
        to_x = add_at(base, index, updates, 2).reshape_like(x)
    if call.active[1] and mode != "nearest":
        read = call.op("GatherElements", x.reshape([0, 0, -1]), index, axis=2).reshape([0, 0, reads, -1])
        seen = (read * flat_ct).sum([1])  # N R P
        changes = [reduce(mul, [*weights[:a], slopes[a], *weights[a + 1 :]]) for a in reversed(range(axes))]
        parts = [(seen * change.reshape([0, reads, -1])).sum([1], keepdims=True) for change in changes]
        to_grid = concat(parts, axis=1).transpose([0, 2, 1]).reshape_like(grid)
    return [to_x, to_grid]


def _padded(call: Call, place: Var, size: Var) -> tuple[Var, Var | None]:
    """The position that GridSample reads for one that may lie outside, and its factor, 0 or 1; None: always 1."""
    last, inside = size - 1.0, None
    if call.attrs["padding_mode"] == "zeros":
        inside = ((place >= 0.0) & (place <= last)).cast(place.dtype)
    elif call.attrs["padding_mode"] == "reflection":
        low = 0.0 if call.attrs["align_corners"] else -0.5
        period = 2.0 * call.op("Max", last - 2 * low, place.like(1))
        away = abs(place - low)
        away = away - call.op("Floor", away / period) * period
        place = call.op("Min", away, period - away) + low
    return call.op("Min", call.op("Max", place, place.like(0)), last), inside
