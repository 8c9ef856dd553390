"""Rules for rectifiers (Relu, Clip) that replace their gradient.

In the formulas, ct is the cotangent of the output y, and [condition] is 1 where the condition holds and else 0.

References
----------
.. [kim] Kim et al. 2019, Why are saliency maps noisy? Cause of and solution to noisy saliency maps.
.. [springenberg] Springenberg et al. 2015, Striving for simplicity: the all convolutional net.
.. [dombrowski] Dombrowski et al. 2019, Explanations can be manipulated and geometry is to blame.
.. [zeiler] Zeiler and Fergus 2014, Visualizing and understanding convolutional networks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnxplain.ops import Call
from onnxplain.ops.table import Cotangent
from onnxplain.rules.base import Gradient, positive


@dataclass(frozen=True)
class GuidedBackprop:
    """Guided backpropagation: the positive part of the gradient, ct [x > 0] [ct > 0] [springenberg]_.

    Captum computes the same as the ReLU of the gradient.
    """

    def __call__(self, call: Call, *cotangents: Cotangent) -> Sequence[Cotangent]:
        """Write max(ct [x > 0], 0)."""
        return [None if ct is None else positive(ct) for ct in Gradient()(call, *cotangents)]


@dataclass(frozen=True)
class Deconvnet:
    """Deconvolution: the positive part of the cotangent, ct [ct > 0], whatever the sign of x [zeiler]_.

    Captum computes the same as the ReLU of the output's gradient.
    """

    def __call__(self, call: Call, *cotangents: Cotangent) -> Sequence[Cotangent]:
        """Write max(ct, 0)."""
        ct = cotangents[0]
        return [positive(ct) if ct is not None and active else None for active in call.active]


@dataclass(frozen=True)
class RectGrad:
    """RectGrad: ct [y ct > tau] passes only the units with the largest y ct [kim]_.

    The threshold tau is a percentile of y ct over all units of the layer, for each sample.

    Parameters
    ----------
    percentile
        Percentile that gives tau, from 0 to 100: 98 passes the top two percent of the units.
    """

    percentile: float = 98.0

    def __call__(self, call: Call, *cotangents: Cotangent) -> Sequence[Cotangent]:
        """Write ct [y ct > tau]."""
        ct = cotangents[0]
        assert ct is not None
        products = (call.y * ct).reshape([0, -1])
        size = products.size(1)
        # Nearest-rank percentile (no interpolation), counted from the highest value, as TopK sorts.
        rank = call.op("Round", (size - 1).cast(ct.dtype) * (self.percentile / 100)).cast(np.int64)
        dtypes, unknown = [ct.dtype, np.dtype(np.int64)], (None, None)
        highest, _ = call.emitter.ops(
            "TopK",
            products,
            size - rank,
            outputs=2,
            dtypes=dtypes,
            shapes=[unknown, unknown],
            axis=1,
            largest=1,
            sorted=1,
        )
        threshold = call.op("Slice", highest, *map(call.ints, ([-1], [np.iinfo(np.int64).max], [1])), known=(None, 1))
        return [ct.mask((products > threshold).reshape_like(ct)) if active else None for active in call.active]


@dataclass(frozen=True)
class BetaSmooth:
    """The derivative of a softplus instead of the rectifier's: ct sigmoid(beta x) [dombrowski]_.

    It smooths the gradient's jumps at x = 0; the forward pass keeps the Relu.

    Parameters
    ----------
    beta
        Sharpness, per unit of x: the softplus is log(1 + exp(beta x)) / beta, and the Relu its limit for large beta.
    """

    beta: float = 10.0

    def __call__(self, call: Call, *cotangents: Cotangent) -> Sequence[Cotangent]:
        """Write ct sigmoid(beta x)."""
        ct = cotangents[0]
        return [None if ct is None else ct * call.op("Sigmoid", call.x * self.beta)]
