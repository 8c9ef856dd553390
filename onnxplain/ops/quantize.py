"""Quantization: the gradient of rounding is taken to be 1 (straight-through estimator).

The cotangent of an integer is the cotangent of the float that it stands for. So neither a QuantizeLinear nor the
DequantizeLinear behind it scales cotangents. Saturation has no part in it: canonical graphs clip before they round (see
`onnxplain.canonize.expansions.site`).
"""

from __future__ import annotations

from collections.abc import Sequence

from onnxplain.graph.var import Var, sum_to
from onnxplain.ops.index import add_at, counter, zeros
from onnxplain.ops.table import Call, Cotangent, Kind, OpTable
from onnxplain.ops.traits import Trait

TABLE = OpTable(Kind.AFFINE)
# The nodes with which canonical graphs round a float, in this order.
ROUNDING = ("Clip", "Sum", "QuantizeLinear", "DequantizeLinear")


@TABLE.vjp("QuantizeLinear")
def quantize_linear(call: Call, ct: Var) -> Sequence[Cotangent]:
    """For y = round(x / scale) + zero, which stands for x: ct."""
    return [ct]


@TABLE.vjp("DequantizeLinear", traits=Trait.ON_INTEGERS)
def dequantize_linear(call: Call, ct: Var) -> Sequence[Cotangent]:
    """For y = (x - zero) scale: ct to x; ct (x - zero) to the scale, summed over the elements that share one scale."""
    if not call.active[1]:
        return [ct]
    scale, axis, block = call.need(1), call.attrs["axis"], call.attrs["block_size"]
    ones = call.op("Expand", scale.like(1), scale.sizes(), known=scale.shape)
    shape = call.x.shape
    share = ct * call.op("DequantizeLinear", call.x, ones, *call.inputs[2:], dtype=ct.dtype, known=shape, **call.attrs)
    if not block:
        total = share.sum([a for a in range(call.x.rank) if scale.rank == 0 or a != axis % call.x.rank])
        return [ct, sum_to(total, total.shape, scale)]  # a single scale may have shape (1,)
    column = (counter(ct.size(axis)) / block).reshape([-1] + [1] * (call.x.rank - axis % call.x.rank - 1))
    index = call.op("Expand", column, ct.sizes())
    return [ct, add_at(zeros(scale.sizes(), ct.dtype, scale.shape), index, share, axis)]
