"""From floats to integers and back: rounding is passed straight through.

Cotangents of integers are those of the floats that they stand for, so a QuantizeLinear and the DequantizeLinear that
undoes it need not scale them. What saturates has been clipped before (see `onnxplain.canonize.expansions.site`).
"""

from __future__ import annotations

from collections.abc import Sequence

from onnxplain.graph.var import Var, sum_to
from onnxplain.ops.index import add_at, counter, zeros
from onnxplain.ops.table import Call, Cotangent, Kind, OpTable
from onnxplain.ops.traits import Trait

TABLE = OpTable(Kind.AFFINE)
ROUNDING = ("Clip", "Sum", "QuantizeLinear", "DequantizeLinear")  # how canonical graphs round to integers


@TABLE.vjp("QuantizeLinear")
def quantize_linear(call: Call, ct: Var) -> Sequence[Cotangent]:
    return [ct]


@TABLE.vjp("DequantizeLinear", traits=Trait.ON_INTEGERS)
def dequantize_linear(call: Call, ct: Var) -> Sequence[Cotangent]:
    """Differentiate (x - zero point) scale by scale: one number, one per position along an axis, or one per block."""
    if not call.active[1]:
        return [ct]
    scale, axis, block = call.need(1), call.attrs["axis"], call.attrs["block_size"]
    ones = call.op("Expand", scale.like(1), scale.sizes(), known=scale.shape)
    shape = call.x.shape
    share = ct * call.op("DequantizeLinear", call.x, ones, *call.inputs[2:], dtype=ct.dtype, known=shape, **call.attrs)
    if not block:
        total = share.sum([a for a in range(call.x.rank) if scale.rank == 0 or a != axis % call.x.rank])
        return [ct, sum_to(total, total.shape, scale)]  # one number may also be an axis of size 1
    column = (counter(ct.size(axis)) / block).reshape([-1] + [1] * (call.x.rank - axis % call.x.rank - 1))
    index = call.op("Expand", column, ct.sizes())
    return [ct, add_at(zeros(scale.sizes(), ct.dtype, scale.shape), index, share, axis)]
