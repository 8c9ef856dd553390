"""AffineGrid, which computes positions to read, and DeformConv, which reads at positions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxplain.graph.ir import Node
from onnxplain.graph.var import Var, concat
from onnxplain.ops.index import count, counter, grid_sample, ranked
from onnxplain.ops.linear import unsqueeze
from onnxplain.ops.table import Call, Cotangent, Kind, OpTable
from onnxplain.ops.traits import Trait

TABLE = OpTable(Kind.AVG_POOL)


@TABLE.vjp("AffineGrid")
def affine_grid(call: Call, ct: Var) -> list[Var]:
    """For y = theta (p, 1), with the points p of the grid, which the operator gives for theta = identity."""
    axes = call.y.rank - 2
    rest = call.op("Slice", call.need(1), call.ints([1]), call.ints([axes + 2]))
    identity = ct.like(np.eye(axes, axes + 1)[None])
    points = call.op("AffineGrid", identity, concat([call.ints([1]), rest]), **call.attrs)
    points_ct = ct.reshape([0, -1, axes], known=(None, None, axes))
    linear = call.op("MatMul", points_ct.transpose([0, 2, 1]), points.reshape([-1, axes]))
    return [concat([linear, unsqueeze(points_ct.sum([1]), [2])], axis=2)]


def deform_kind(call: Call) -> Kind:
    """CONV if only the image is active, PRODUCT if weights, offsets or mask are, too."""
    return Kind.PRODUCT if any(call.active[i] for i in (1, 2, 4) if i < len(call.active)) else Kind.CONV


@TABLE.vjp(
    "DeformConv", kind=deform_kind, traits=Trait.READS | Trait.CONTRACTS | Trait.MIXES_CHANNELS | Trait.CHANNELS_FIRST
)
def deform_conv(call: Call, ct: Var) -> Sequence[Cotangent]:
    """For y = w (mask * read), where ``read`` is the output of a GridSample.

    Shapes: N images of C channels in D offset groups, O outputs in G groups; K elements of the kernel, P places for it.
    """
    x, w, offset, mask = call.x, call.need(1), call.need(2), call.input(4)
    ct = ranked(ct, 4)
    group, rest = call.ints([call.attrs["group"]]), call.ints([-1])
    by_x, by_w, by_offset, by_bias, by_mask = (*call.active, False, False)[:5]
    outputs = w.size(0) / call.attrs["group"]
    weights = w.reshape(concat([group, outputs, rest]), known=(None,) * 3)  # G O/G CK/G
    grouped_ct = ct.reshape(concat([ct.size(0), group, outputs, rest]), known=(None,) * 4)  # N G O/G P
    grid, scale = _grid(call)
    image = x.reshape(concat([rest, x.size(1) / call.attrs["offset_group"], x.sizes(2)]), known=(None,) * 4)
    reading = Node("GridSample", (), (), {"mode": "linear", "padding_mode": "zeros", "align_corners": 0})
    read = call.op("GridSample", image, grid, known=(None,) * 4, **reading.attrs)  # (N D) C/D K P
    to_read = to_product = call.op("MatMul", weights.transpose([0, 2, 1]), grouped_ct).reshape_like(read)
    factor = None
    if mask is not None:
        factor = mask.reshape(concat([grid.size(0), call.ints([1]), grid.sizes(1, 3)]), known=(None,) * 4)
        to_read = to_product * factor
    bound = Call(call.emitter, reading, (image, grid), (read,), (by_x, by_offset))
    to_image, to_grid = grid_sample(bound, to_read)
    to_w = to_offset = to_mask = None
    if by_w:
        rows = read if factor is None else read * factor
        rows = rows.reshape(concat([ct.size(0), group, rest, grid.size(2)]), known=(None,) * 4)
        to_w = call.op("MatMul", grouped_ct, rows.transpose([0, 1, 3, 2]), known=(None,) * 4).sum([0]).reshape_like(w)
    if to_grid is not None:  # N D K P and x, y become N D K and y, x and P
        turned = call.op("Gather", (to_grid * scale).transpose([0, 1, 3, 2]), call.ints([1, 0]), axis=2)
        to_offset = turned.reshape_like(offset)
    if mask is not None and by_mask:
        to_mask = (to_product * read).sum([1]).reshape_like(mask)
    to_x = None if to_image is None else to_image.reshape_like(x)
    return [to_x, to_w, to_offset, ct.sum([0, 2, 3]) if by_bias else None, to_mask]


def _grid(call: Call) -> tuple[Var, Var]:
    """Positions in the units of GridSample, axes (N D) K P 2, and their change per unit of the offsets, shape (2,)."""
    x, w, offset = call.x, call.need(1), call.need(2)
    strides, dilations = (call.attrs.get(name) or [1, 1] for name in ("strides", "dilations"))
    pads = call.attrs.get("pads") or [0] * 4
    parts = offset.reshape(concat([call.ints([-1]), w.sizes(2), call.ints([2]), offset.sizes(2)]), known=(None,) * 6)
    lines, scales = [], []
    for axis in (1, 0):  # x first
        kernel = counter(w.size(2 + axis)) * dilations[axis] - pads[axis]
        place = counter(offset.size(2 + axis)) * strides[axis]
        base = unsqueeze(kernel, [1, 2, 3] if axis == 0 else [1, 2]) + unsqueeze(place, [1] if axis == 0 else [])
        offsets = call.op("Gather", parts, call.emitter.const(np.int64(axis)), axis=3, known=(None,) * 5)
        scales.append(2 / x.size(2 + axis).cast(x.dtype))
        lines.append(unsqueeze((offsets + base.cast(x.dtype) + 0.5) * scales[-1] - 1, [5]))
    sizes = [call.ints([-1]), count(w, 2), count(offset, 2), call.ints([2])]
    return concat(lines, axis=5).reshape(concat(sizes), known=(None,) * 4), concat(scales)
