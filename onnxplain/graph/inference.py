"""Dtypes and shapes of results, as far as they follow from the operator and its operands.

The table names the operators that the package itself writes. Callers of `onnxplain.graph.emit.Emitter.op` pass the
dtypes and shapes that the table does not tell.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxplain.graph.ir import Dim, Shape


class ShapeRule(enum.Enum):
    """How the shape of a result follows from those of the operands."""

    ELEMENTWISE = enum.auto()  # the operands are broadcast against each other
    FIRST = enum.auto()  # that of the first operand


@dataclass(frozen=True)
class Result:
    """The result of an operator.

    Attributes
    ----------
    shape
        The rule for its shape; None where the operator does not tell it.
    dtype
        Its dtype; None where it is that of an operand.
    like
        Index of that operand.
    """

    shape: ShapeRule | None
    dtype: np.dtype[Any] | None = None
    like: int = 0


_BOOL, _INT64 = np.dtype(bool), np.dtype(np.int64)

RESULTS: Mapping[str, Result] = {
    **dict.fromkeys(
        (
            *("Abs", "Add", "Cast", "Ceil", "Cos", "Div", "Erf", "Exp", "Floor", "HardSigmoid", "Identity", "Log"),
            *("Max", "Min", "Mod", "Mul", "Neg", "PRelu", "Pow", "Reciprocal", "Relu", "Round", "Sigmoid", "Sign"),
            *("Sin", "Softplus", "Sqrt", "Sub", "Tanh"),
        ),
        Result(ShapeRule.ELEMENTWISE),
    ),
    **dict.fromkeys(
        (
            *("And", "Equal", "Greater", "GreaterOrEqual", "IsInf", "IsNaN", "Less", "LessOrEqual", "Not", "Or"),
            "Xor",
        ),
        Result(ShapeRule.ELEMENTWISE, _BOOL),
    ),
    "Where": Result(ShapeRule.ELEMENTWISE, like=1),
    **dict.fromkeys(("Clip", "CumSum", "LogSoftmax", "Softmax", "Trilu"), Result(ShapeRule.FIRST)),
    **dict.fromkeys(("ArgMax", "ArgMin", "NonZero", "Shape", "Size"), Result(None, _INT64)),
}
_UNKNOWN = Result(None)  # of an operator that the table does not name


def result_dtype(op: str, dtypes: Sequence[np.dtype[Any]]) -> np.dtype[Any]:
    """The dtype that an operator gives operands of these dtypes; that of the first one where it is not known."""
    result = RESULTS.get(op, _UNKNOWN)
    return dtypes[result.like] if result.dtype is None else result.dtype


def result_shape(op: str, shapes: Sequence[Shape | None]) -> Shape | None:
    """The shape that an operator gives operands of these shapes; None where it is not known."""
    rule = RESULTS.get(op, _UNKNOWN).shape
    if rule is ShapeRule.ELEMENTWISE:
        return broadcast_shape(*shapes)
    return shapes[0] if rule is ShapeRule.FIRST else None


def joined_shape(shapes: Sequence[Shape | None], axis: int) -> Shape | None:
    """The shape of tensors that are joined along an axis; None where the rank is unknown."""
    if shapes[0] is None:
        return None
    sizes = [None if s is None else s[axis] for s in shapes]
    whole = sum(d for d in sizes if isinstance(d, int)) if all(isinstance(d, int) for d in sizes) else None
    known = list(shapes[0])
    known[axis] = whole
    return tuple(known)


def broadcast_shape(*shapes: Shape | None) -> Shape | None:
    """The shape to which operands of these shapes are broadcast; None where a rank is unknown."""
    known = [s for s in shapes if s is not None]
    if len(known) < len(shapes):
        return None
    rank = max((len(s) for s in known), default=0)
    columns = zip(*((1,) * (rank - len(s)) + tuple(s) for s in known), strict=True)
    return tuple(_broadcast_dim(set(column)) for column in columns)


def _broadcast_dim(dims: set[Dim]) -> Dim:
    dims = dims - {1} or {1}
    if len(dims) == 1:
        return next(iter(dims))
    return next((d for d in dims if isinstance(d, int)), None)


def fits(shape: Sequence[int], onto: Shape | None) -> bool:
    """Whether an array of a shape broadcasts to the shape ``onto``, as far as the sizes of that one are known."""
    if onto is None:
        return True
    pairs = zip(reversed(shape), reversed(onto), strict=False)
    return len(shape) <= len(onto) and all(a in (1, d) or not isinstance(d, int) for a, d in pairs)
