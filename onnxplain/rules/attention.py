"""LRP through products of activations and softmax [achtibat]_, so that transformers and gates have a stated rule.

References
----------
.. [achtibat] Achtibat et al. 2024, AttnLRP: attention-aware layer-wise relevance propagation for transformers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from onnxplain.emit import where
from onnxplain.ops import Call
from onnxplain.ops.table import Cotangent
from onnxplain.rules.base import Gradient, proportional, stabilize


@dataclass(frozen=True)
class Uniform:
    """Every active factor of a product gets an equal part: R_a = a J_a^T (R / (n S(y))), n active factors [achtibat]_.

    In a quotient a / b the divisor counts as a constant: a gets all.
    """

    epsilon: float = 1e-6

    def __call__(self, call: Call, *cotangents: Cotangent) -> Sequence[Cotangent]:
        """See `onnxplain.rules.base.Rule`."""
        if call.node.op == "Div":
            return cotangents
        return proportional(call, cotangents[0], self.epsilon, parts=sum(call.active))


@dataclass(frozen=True)
class SoftmaxTaylor:
    """R_x = x (R - y sum(R)): a first-order Taylor expansion of softmax at x [achtibat]_.

    Masked elements (-inf, or a very large negative number) get no relevance. Does not conserve: the expansion's
    remainder stays behind, as a bias' share does.
    """

    epsilon: float = 1e-6

    def __call__(self, call: Call, *cotangents: Cotangent) -> Sequence[Cotangent]:
        """See `onnxplain.rules.base.Rule`."""
        assert cotangents[0] is not None
        (ct,) = Gradient()(call, cotangents[0] / stabilize(call.y, self.epsilon))
        assert ct is not None
        return [where(call.x > -1e9, call.x * ct, 0.0)]
