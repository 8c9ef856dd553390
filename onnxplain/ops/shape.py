"""Operators that move, copy or drop elements and change none. Cotangents move back, and those of copies add up."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from onnxplain.errors import UnsupportedOperatorError
from onnxplain.graph.var import Var, concat, where
from onnxplain.ops.index import add_at, pad, positions, unpick, zeros
from onnxplain.ops.table import Call, Cotangent, Kind, OpTable
from onnxplain.ops.traits import Trait

TABLE = OpTable(Kind.MOVEMENT)
MOVES = Trait.MOVES | Trait.KEEPS_NON_NEGATIVE


@TABLE.vjp("Identity", traits=MOVES | Trait.PASSES)
def identity(call: Call, ct: Var) -> list[Var]:
    """Passes ct on."""
    return [ct]


@TABLE.vjp("Cast", traits=Trait.PASSES | Trait.KEEPS_NON_NEGATIVE | Trait.ON_INTEGERS)
@TABLE.vjp("CastLike", traits=Trait.PASSES | Trait.ON_INTEGERS)
def cast(call: Call, ct: Var) -> list[Var]:
    """Casts ct to the dtype of x."""
    return [ct.cast(call.x.dtype)]


@TABLE.vjp("Dropout", traits=Trait.KEEPS_NON_NEGATIVE)
def dropout(call: Call, ct: Var, *_: Cotangent) -> list[Var]:
    """Passes ct on: dropout does nothing at inference."""
    training = call.input(2)
    if training is not None and (training.value is None or training.value.any()):
        raise UnsupportedOperatorError(f"{call.node.label} drops at random (training_mode): it has no fixed gradient")
    return [ct]


@TABLE.vjp("Reshape", "Flatten", "Squeeze", "Unsqueeze", traits=MOVES | Trait.RESHAPES)
def reshape(call: Call, ct: Var) -> list[Var]:
    """Reshapes ct to the shape of x."""
    return [ct.reshape_like(call.x)]


@TABLE.vjp("Transpose", traits=MOVES)
def transpose(call: Call, ct: Var) -> list[Var]:
    """Permutes the axes of ct back."""
    perm = call.attrs.get("perm") or range(call.x.rank)[::-1]
    return [ct.transpose(np.argsort(perm).tolist())]


@TABLE.vjp("Expand", broadcast=True, traits=MOVES)
def expand(call: Call, ct: Var) -> list[Var]:
    """Passes ct on; the walk sums it over the repeats."""
    return [ct]


@TABLE.vjp("Tile", traits=MOVES)
def tile(call: Call, ct: Var) -> list[Var]:
    """Reshape ct to (r0, d0, r1, d1, ...) and sum over the repeats r; axes that are surely not repeated have no r."""
    repeats = call.need(1)
    counts = _numbers(repeats, ())
    sizes: list[Var] = []
    summed: list[int] = []
    for axis in range(call.x.rank):
        if counts is None or counts[axis] != 1:
            summed.append(len(sizes))
            if counts is None:
                sizes.append(call.op("Slice", repeats, call.ints([axis]), call.ints([axis + 1])))
            else:
                sizes.append(call.ints([counts[axis]]))
        sizes.append(call.x.size(axis))
    if not summed:
        return [ct]
    shape = concat(sizes)
    known = None if shape.value is None else tuple(shape.value.tolist())
    return [ct.reshape(shape, known=known or (None,) * len(sizes)).sum(summed)]


@TABLE.vjp("Concat", traits=Trait.ALONG_AXIS | Trait.KEEPS_NON_NEGATIVE)
def concat_(call: Call, ct: Var) -> Sequence[Var]:
    """Splits ct into the parts."""
    parts = [part for part in call.inputs if part is not None]
    axis = call.attrs["axis"]
    if len(parts) == 1:
        return [ct]
    sizes = concat([part.size(axis) for part in parts])
    return call.emitter.ops("Split", ct, sizes, outputs=len(parts), shapes=[part.shape for part in parts], axis=axis)


@TABLE.vjp("Split", traits=MOVES | Trait.ALONG_AXIS)
def split(call: Call, *cts: Cotangent) -> list[Var]:
    """Joins the cotangents of the parts, zeros for those without one."""
    pairs = zip((o for o in call.outputs if o is not None), cts, strict=True)  # no output of Split is optional
    parts = [zeros(y.sizes(), y.dtype, y.shape) if ct is None else ct for y, ct in pairs]
    return [concat(parts, axis=call.attrs["axis"])]


@TABLE.vjp("Slice", traits=MOVES)
def slice_(call: Call, ct: Var) -> list[Var]:
    """Puts ct back at the positions that were taken, zeros elsewhere."""
    padded = _padded_slice(call, ct)
    if padded is not None:
        return [padded]
    rows = call.op("Slice", positions(call.x, call.x.rank), *call.inputs[1:])
    return [unpick(ct, rows, call.x, call.x.rank)]


def _padded_slice(call: Call, ct: Var) -> Var | None:
    """The cotangent as a Pad, which is cheap; None unless the arguments are constants or all steps are 1."""
    x, starts, ends = call.x, call.need(1), call.need(2)
    count = starts.shape[0] if starts.shape else None
    axes = _numbers(call.input(3), range(count) if isinstance(count, int) else ())
    steps = _numbers(call.input(4), [1] * x.rank)
    if axes is None or steps is None or len(axes) != count:
        return None
    before, after = [call.ints([0])] * x.rank, [call.ints([0])] * x.rank
    flipped: list[int] = []
    strided: dict[int, tuple[int, int]] = {}
    for k, (axis, step) in enumerate(zip([a % x.rank for a in axes], steps, strict=False)):
        size = x.size(axis)
        if size.value is not None and starts.value is not None and ends.value is not None:
            length = int(size.value[0])
            # ONNX clamps a start before the first element to 0; Python would take nothing then if the step is negative.
            taken = range(length)[max(int(starts.value[k]), -length) : int(ends.value[k]) : step]
            first = min(taken, default=0)
            before[axis] = call.ints([first])
            after[axis] = call.ints([length - first - len(taken) * abs(step)])
            if step < 0:
                flipped.append(axis)
            if abs(step) > 1:
                strided[axis] = len(taken), abs(step)
        elif step == 1:
            start = call.op("Slice", starts, call.ints([k]), call.ints([k + 1])).cast(np.int64)
            before[axis] = call.op("Max", where(start < 0, size + start, start), call.ints([0]))
            after[axis] = size - ct.size(axis) - before[axis]
        else:
            return None
    if flipped:
        last, down = call.ints([-1] * len(flipped)), call.ints([np.iinfo(np.int64).min] * len(flipped))
        ct = call.op("Slice", ct, last, down, call.ints(flipped), last, known=ct.shape)
    return pad(_spread(ct, strided), before, after, x.shape)


def _spread(ct: Var, strided: dict[int, tuple[int, int]]) -> Var:
    """Put stride - 1 zeros behind every element: pad a new axis, then merge it; axis -> (size, stride)."""
    if not strided:
        return ct
    axes = sorted(strided)
    added = [axis + 1 + k for k, axis in enumerate(axes)]
    rank = ct.rank + len(axes)
    widths = np.zeros(2 * rank, np.int64)
    widths[[rank + axis for axis in added]] = [strided[axis][1] - 1 for axis in axes]
    emitter = ct.emitter
    spread = emitter.op("Pad", emitter.op("Unsqueeze", ct, emitter.ints(added)), emitter.const(widths), mode="constant")
    sizes = [emitter.ints([math.prod(strided[a])]) if a in strided else ct.size(a) for a in range(ct.rank)]
    return spread.reshape(concat(sizes), known=(None,) * ct.rank)


@TABLE.vjp("Pad", traits=Trait.KEEPS_NON_NEGATIVE)
def pad_(call: Call, ct: Var) -> Sequence[Cotangent]:
    """Crops ct; what reflection, repetition or wrapping has copied is added to its source."""
    x, pads, axes, mode = call.x, call.need(1), call.input(3), call.attrs["mode"]
    if mode == "constant":
        back = -pads if pads.value is None else call.emitter.const(-pads.value)
        inner = call.op("Pad", ct, back, None, axes, mode=mode, known=x.shape)
        value = call.input(2)
        if value is None or not call.active[2]:
            return [inner]
        return [inner, None, (ct.sum() - inner.sum()).reshape_like(value)]
    widths, padded = _numbers(pads, ()), _numbers(axes, range(x.rank))
    if widths is not None and padded is not None:
        pairs = zip(padded, widths[: len(padded)], widths[len(padded) :], strict=True)
        moved = {axis % x.rank: (begin, end) for axis, begin, end in pairs if begin or end}
        sizes = {axis: int(known[0]) for axis in moved if (known := x.size(axis).value) is not None}
        if len(sizes) == len(moved):
            for axis, size in sizes.items():
                ct = _unpad(ct, axis, size, *moved[axis], mode)
            return [ct]
    # CUDA has a Pad of float64, but none of integers; float64 is exact up to 2^53.
    counted = positions(x, x.rank).cast(np.float64)
    rows = call.op("Pad", counted, pads, None, axes, mode=mode).cast(np.int64)
    return [unpick(ct, rows, x, x.rank)]


def _unpad(ct: Var, axis: int, size: int, begin: int, end: int, mode: str) -> Var:
    """Undo Pad by reflection, repetition or wrapping along an axis: the borders are added to their sources."""
    left, right = max(begin, 0), max(end, 0)
    kept = np.arange(size)[max(-begin, 0) : size - max(-end, 0)]
    source = np.pad(kept, (left, right), mode)  # type: ignore[call-overload]  # one of np.pad's modes, but only a str
    border = np.r_[:left, source.size - right : source.size]
    emitter = ct.emitter
    before, after = ([emitter.ints([-w * (a == axis)]) for a in range(ct.rank)] for w in (begin, end))
    middle = pad(ct, before, after, None if ct.shape is None else (*ct.shape[:axis], size, *ct.shape[axis + 1 :]))
    if not border.size:
        return middle
    updates = emitter.op("Gather", ct, emitter.const(border), axis=axis)
    column = source[border].reshape([-1] + [1] * (ct.rank - axis - 1))
    return add_at(middle, emitter.op("Expand", emitter.const(column), updates.sizes()), updates, axis)


@TABLE.vjp("CenterCropPad")
def center_crop_pad(call: Call, ct: Var) -> list[Var]:
    """The operator with the sizes of x."""
    axes = call.attrs.get("axes")
    sizes = call.x.sizes() if axes is None else concat([call.x.size(axis) for axis in axes])
    return [call.op("CenterCropPad", ct, sizes, known=call.x.shape, **call.attrs)]


@TABLE.vjp("DepthToSpace", traits=MOVES | Trait.CHANNELS_FIRST)
def depth_to_space(call: Call, ct: Var) -> list[Var]:
    """SpaceToDepth, or its steps in the order of mode CRD."""
    block = call.attrs["blocksize"]
    if call.attrs["mode"] == "DCR":
        return [call.op("SpaceToDepth", ct, known=call.x.shape, blocksize=block)]
    x, y, edge = call.x, call.y, call.ints([block])
    blocks = concat([x.size(0), y.size(1), x.size(2), edge, x.size(3), edge])
    return [ct.reshape(blocks).transpose([0, 1, 3, 5, 2, 4]).reshape_like(x)]


@TABLE.vjp("SpaceToDepth", traits=MOVES | Trait.CHANNELS_FIRST)
def space_to_depth(call: Call, ct: Var) -> list[Var]:
    """DepthToSpace in mode DCR."""
    return [call.op("DepthToSpace", ct, known=call.x.shape, blocksize=call.attrs["blocksize"], mode="DCR")]


@TABLE.vjp("Trilu", "ReverseSequence")
def again(call: Call, ct: Var) -> list[Var]:
    """The operator applied to ct: a reversal undoes itself, and a triangle keeps the same elements."""
    return [call.op(call.node.op, ct, *call.inputs[1:], known=call.x.shape, **call.attrs)]


@TABLE.vjp("Col2Im")
def col2im(call: Call, ct: Var) -> list[Var]:
    """Each element of a column goes to one place of the padded image, so ct is gathered with a constant index."""
    image, block = _numbers(call.input(1), ()), _numbers(call.input(2), ())
    if image is None or block is None:
        raise UnsupportedOperatorError(f"{call.node.label} gets its sizes at run time: no gradient is known for that")
    axes = len(image)
    pads = call.attrs.get("pads") or [0] * 2 * axes
    strides, dilations = (call.attrs.get(name) or [1] * axes for name in ("strides", "dilations"))
    index = np.zeros([1] * 2 * axes, np.int64)  # axes of the block, then axes of the positions of blocks
    for axis in range(axes):
        size = image[axis] + pads[axis] + pads[axes + axis]
        inside = np.arange(block[axis]) * dilations[axis]
        starts = np.arange(0, size - inside[-1], strides[axis])
        shape = [1] * 2 * axes
        shape[axis], shape[axes + axis] = inside.size, starts.size
        index = index * size + (inside[:, None] + starts).reshape(shape)
    begins, ends = ([call.ints([0])] * 2 + [call.ints([p]) for p in side] for side in (pads[:axes], pads[axes:]))
    flat = (pad(ct, begins, ends, None) if any(pads) else ct).reshape([0, 0, -1])
    columns = call.op("Gather", flat, call.emitter.const(index.reshape(math.prod(block), -1)), axis=2)
    return [columns.reshape_like(call.x)]


def _numbers(var: Var | None, default: Sequence[int]) -> list[int] | None:
    """The integers in an input; the default if it is missing, None if they are known at run time only."""
    if var is None:
        return list(default)
    return None if var.value is None else [int(v) for v in var.value]
