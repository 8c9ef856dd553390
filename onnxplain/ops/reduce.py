"""Reductions along axes, Det, CumSum and TopK.

The cotangent ct and the output y of a reduction first get back the reduced axes, with size 1 (`_widen`). Then all
formulas are elementwise in the input x. ``noop_with_empty_axes`` is no special case: each element is its own group.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxplain.graph.ir import Shape
from onnxplain.graph.var import Var, where
from onnxplain.ops.index import zeros
from onnxplain.ops.linear import identity, unsqueeze
from onnxplain.ops.table import Call, Cotangent, Kind, OpTable
from onnxplain.ops.traits import Trait

TABLE = OpTable(Kind.REDUCTION)


@TABLE.vjp("ReduceSum", kind=Kind.AVG_POOL, traits=Trait.REDUCES | Trait.KEEPS_NON_NEGATIVE)
def reduce_sum(call: Call, ct: Var) -> list[Var]:
    """For y = sum of x: ct to each element."""
    return [expand(_widen(call, ct), call.x)]


@TABLE.vjp("ReduceMean", kind=Kind.AVG_POOL, traits=Trait.REDUCES | Trait.KEEPS_NON_NEGATIVE)
def reduce_mean(call: Call, ct: Var) -> list[Var]:
    """For y = mean of n elements: ct / n to each."""
    return [expand(_widen(call, ct) / group_size(call.x, call.y, _axes(call)), call.x)]


@TABLE.vjp("ReduceMax", kind=Kind.MAX_POOL, traits=Trait.REDUCES | Trait.KEEPS_NON_NEGATIVE)
@TABLE.vjp("ReduceMin", kind=Kind.MAX_POOL, traits=Trait.REDUCES | Trait.MINIMUM | Trait.KEEPS_NON_NEGATIVE)
def reduce_max(call: Call, ct: Var) -> list[Var]:
    """Elements that reach the extreme share ct equally."""
    chosen = call.x.equal(_widen(call, call.y)).cast(ct.dtype)  # ties share equally
    return [chosen * (_widen(call, ct) / _reduce(call, "ReduceSum", chosen))]


@TABLE.vjp("ReduceProd", kind=Kind.PRODUCT, traits=Trait.REDUCES)
def reduce_prod(call: Call, ct: Var) -> list[Var]:
    """To each element ct times the product of the others: 0 if one of these is 0, else from the nonzero elements."""
    x = call.x
    is_zero = x.equal(0)
    zero = is_zero.cast(x.dtype)
    others_zero = _reduce(call, "ReduceSum", zero) - zero
    nonzero = where(is_zero, 1, x)
    product = _reduce(call, "ReduceProd", nonzero)
    return [(_widen(call, ct) * product / nonzero).mask(others_zero.equal(0))]


@TABLE.vjp("ReduceL1", traits=Trait.REDUCES | Trait.NON_NEGATIVE)
def reduce_l1(call: Call, ct: Var) -> list[Var]:
    """For y = sum of abs(x): ct sign(x)."""
    return [_widen(call, ct) * call.op("Sign", call.x)]


@TABLE.vjp("ReduceL2", traits=Trait.REDUCES | Trait.QUADRATIC | Trait.NON_NEGATIVE)
def reduce_l2(call: Call, ct: Var) -> list[Var]:
    """For y = sqrt(sum of x^2): ct x / y, and 0 where y is 0."""
    y = _widen(call, call.y)
    return [_widen(call, ct) / where(y > 0, y, 1) * call.x]  # 0 where all of x is 0


@TABLE.vjp("ReduceSumSquare", traits=Trait.REDUCES | Trait.QUADRATIC)
def reduce_sum_square(call: Call, ct: Var) -> list[Var]:
    """For y = sum of x^2: 2 ct x."""
    return [_widen(call, ct * 2) * call.x]


@TABLE.vjp("ReduceLogSum", traits=Trait.REDUCES)
def reduce_log_sum(call: Call, ct: Var) -> list[Var]:
    """For y = log(sum of x): ct exp(-y), the inverse of the sum."""
    return [expand(_widen(call, ct * call.op("Exp", -call.y)), call.x)]


@TABLE.vjp("ReduceLogSumExp", traits=Trait.REDUCES)
def reduce_log_sum_exp(call: Call, ct: Var) -> list[Var]:
    """For y = log(sum of exp(x)): ct exp(x - y)."""
    return [_widen(call, ct) * call.op("Exp", call.x - _widen(call, call.y))]


@TABLE.vjp("Det")
def det(call: Call, ct: Var) -> list[Var]:
    """To each element ct times its cofactor: the determinant of x with the element's row replaced by a unit vector."""
    x = call.x
    unit = identity(x.size(-1), x)
    replaced = where(unsqueeze(unit, [1, 3]).cast(bool), unsqueeze(unit, [0, 2]), unsqueeze(x, [-4, -3]))
    return [unsqueeze(ct, [-2, -1]) * call.op("Det", replaced, known=x.shape)]


@TABLE.vjp("CumSum", kind=Kind.AVG_POOL)
def cum_sum(call: Call, ct: Var) -> list[Var]:
    """A sum in the other direction."""
    attrs = {**call.attrs, "reverse": 1 - call.attrs["reverse"]}
    return [call.op("CumSum", ct, call.input(1), known=call.x.shape, **attrs)]


@TABLE.vjp("TopK", kind=Kind.MOVEMENT)
def top_k(call: Call, ct: Var, *_: Cotangent) -> list[Var]:
    """To the places that the elements were taken from."""
    shape = call.y.shape
    # The same as the forward node, and not written again, where that gives its indices.
    indices = call.emitter.ops(
        "TopK", *call.inputs, outputs=2, dtypes=[ct.dtype, np.int64], shapes=[shape, shape], **call.attrs
    )[1]
    blank = zeros(call.x.sizes(), ct.dtype, call.x.shape)
    return [call.op("ScatterElements", blank, indices, ct, axis=call.attrs["axis"], known=call.x.shape)]


def expand(t: Var, like: Var) -> Var:
    """Broadcast a tensor to the shape of ``like``."""
    return t.emitter.op("Expand", t, like.sizes(), known=like.shape)


def group_size(x: Var, y: Var, axes: Sequence[int] | None) -> Var:
    """Number of elements of x per element of y; ``axes``: the reduced ones, None where unknown."""
    sizes = [None] if axes is None or x.shape is None else [x.shape[a] for a in axes]
    known = [d for d in sizes if isinstance(d, int)]
    if len(known) == len(sizes):
        return y.like(float(np.prod(known)))
    x_size, y_size = (v.emitter.op("Size", v, known=()).cast(np.float32) for v in (x, y))
    return (x_size / y_size).cast(y.dtype)


def _axes(call: Call) -> list[int] | None:
    """The reduced axes, not negative; None where they are known at run time only."""
    axes = call.input(1)
    if axes is not None and axes.value is None:
        return None
    if axes is None or axes.value is None or not axes.value.size:
        return [] if call.attrs["noop_with_empty_axes"] else list(range(call.x.rank))
    return [int(a) % call.x.rank for a in axes.value]


def _widen(call: Call, t: Var) -> Var:
    """Give a tensor of the output's shape the reduced axes, with size 1."""
    axes = call.input(1)
    if call.attrs["keepdims"] or axes is None or (axes.value is not None and not axes.value.size):
        return t  # without axes, t is a scalar or, with noop_with_empty_axes, as large as the input
    return call.op("Unsqueeze", t, axes, known=_kept_shape(call))


def _reduce(call: Call, op: str, t: Var) -> Var:
    """Reduce a tensor of the input's shape along the node's axes, which stay, with size 1."""
    noop = call.attrs["noop_with_empty_axes"]
    return call.op(op, t, call.input(1), keepdims=1, noop_with_empty_axes=noop, known=_kept_shape(call))


def _kept_shape(call: Call) -> Shape | None:
    """Shape of the output if the reduced axes stay, with size 1, as far as it is known."""
    axes, shape = _axes(call), call.x.shape
    if shape is None:
        return None
    return tuple(None if axes is None else 1 if i in axes else d for i, d in enumerate(shape))
