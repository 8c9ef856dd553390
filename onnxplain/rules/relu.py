"""Rules for rectifiers that are not their gradient.

References
----------
.. [springenberg] Springenberg et al. 2015, Striving for simplicity: the all convolutional net.
.. [dombrowski] Dombrowski et al. 2019, Explanations can be manipulated and geometry is to blame.
.. [zeiler] Zeiler and Fergus 2014, Visualizing and understanding convolutional networks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from onnxplain.ops import Call
from onnxplain.ops.table import Cotangent
from onnxplain.rules.base import Gradient, positive


@dataclass(frozen=True)
class GuidedBackprop:
    """The gradient's positive part: ct [x > 0] [ct > 0] [springenberg]_ (= captum's ReLU of the gradient)."""

    def __call__(self, call: Call, *cotangents: Cotangent) -> Sequence[Cotangent]:
        """See `onnxplain.rules.base.Rule`."""
        return [ct and positive(ct) for ct in Gradient()(call, *cotangents)]


@dataclass(frozen=True)
class Deconvnet:
    """The positive part of what arrives, wherever the input was [zeiler]_ (= captum's ReLU of the output gradient)."""

    def __call__(self, call: Call, *cotangents: Cotangent) -> Sequence[Cotangent]:
        """See `onnxplain.rules.base.Rule`."""
        ct = cotangents[0]
        return [positive(ct) if ct is not None and active else None for active in call.active]


@dataclass(frozen=True)
class BetaSmooth:
    """The derivative of a softplus instead of the rectifier's: ct sigmoid(beta x) [dombrowski]_."""

    beta: float = 10.0

    def __call__(self, call: Call, *cotangents: Cotangent) -> Sequence[Cotangent]:
        """See `onnxplain.rules.base.Rule`."""
        ct = cotangents[0]
        return [ct and ct * call.op("Sigmoid", call.x * self.beta)]
