"""Rules for nodes that sum or pass on elements: `Norm` and `Terms` for sums, `Pass` for activations, scales and shifts.

The letters are those of `onnxplain.rules.lrp`: R relevance, J the operator's Jacobian, S(y) = y + epsilon sign(y).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from onnxplain.ops import Call
from onnxplain.ops.table import Cotangent
from onnxplain.rules.base import Gradient, proportional


@dataclass(frozen=True)
class Norm:
    """The rule for sums y (Add, means, average pooling): R_i = x_i J_i^T (R / S(y)), the input's share of the sum.

    Parameters
    ----------
    epsilon
        Stabilizer of the denominator, in the units of y.
    """

    epsilon: float = 1e-6

    def __call__(self, call: Call, *cotangents: Cotangent) -> Sequence[Cotangent]:
        """Write x_i J_i^T (R / S(y)) for each active input."""
        return proportional(call, cotangents[0], self.epsilon)


@dataclass(frozen=True)
class Terms:
    """The rule for reductions of a sum of terms t_i: R_i = t_i R / sum_k t_k, the element's share of the sum.

    The terms are x^2 in a sum of squares and an L2 norm, |x| in an L1 norm, |x|^p in an Lp norm, x in a log-sum, exp(x)
    in a log-sum-exp, and in a determinant the element's part of the expansion.

    Parameters
    ----------
    epsilon
        Stabilizer of the denominator, in the units of y.
    """

    epsilon: float = 1e-6

    def __call__(self, call: Call, *cotangents: Cotangent) -> Sequence[Cotangent]:
        """Write x_i J_i^T (R / (k y)) for a y that is homogeneous of degree k, and t_i R / sum_k t_k for logarithms."""
        r = cotangents[0]
        assert r is not None
        if call.node.op == "ReduceLogSumExp":
            return Gradient()(call, r)
        if call.node.op == "ReduceLogSum":
            return [None if ct is None else call.x * ct for ct in Gradient()(call, r)]
        if call.node.op == "ReduceSumSquare":
            r = r * 0.5
        if call.node.op == "Det":
            r = r / call.x.size(-1).cast(r.dtype)
        return proportional(call, r, self.epsilon)


@dataclass(frozen=True)
class Pass:
    """The rule for activations and for scales and shifts by constants: R passes unchanged to the first active input."""

    def __call__(self, call: Call, *cotangents: Cotangent) -> Sequence[Cotangent]:
        """Return R for the first active input, None for the others."""
        first = call.active.index(True)
        return [cotangents[0] if i == first else None for i in range(len(call.active))]
