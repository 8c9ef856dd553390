"""LRP through products of activations, softmax and normalisation [achtibat]_: a stated rule for transformers and gates.

References
----------
.. [achtibat] Achtibat et al. 2024, AttnLRP: attention-aware layer-wise relevance propagation for transformers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from onnxplain.emit import where
from onnxplain.ops import Call
from onnxplain.ops.norm import FROZEN
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


@dataclass(frozen=True)
class Standardize:
    """R_x = x J^T (R / S(y)), where J takes what the layer divides by (a standard deviation, a norm) for a constant.

    A layer with a mean and a bias must not hand on R as it is: where x is near zero and y is not, the layers before
    divide by x, and relevances of alternating sign grow from layer to layer.
    """

    epsilon: float = 1e-6

    def __call__(self, call: Call, *cotangents: Cotangent) -> Sequence[Cotangent]:
        """See `onnxplain.rules.base.Rule`."""
        node = replace(call.node, attrs={**call.attrs, FROZEN: True})
        return proportional(replace(call, node=node), cotangents[0], self.epsilon)
