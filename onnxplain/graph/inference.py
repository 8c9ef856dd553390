"""Dtype and shape of the results of the operators that the package writes itself, as far as the operator tells them."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np


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
UNKNOWN = Result(None)  # of an operator that the table does not know
