"""Rules for rectifiers that are not their gradient.

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
    """The gradient's positive part: ct [x > 0] [ct > 0] [springenberg]_ (= captum's ReLU of the gradient)."""

    def __call__(self, call: Call, *cotangents: Cotangent) -> Sequence[Cotangent]:
        """See `onnxplain.rules.base.Rule`."""
        return [None if ct is None else positive(ct) for ct in Gradient()(call, *cotangents)]


@dataclass(frozen=True)
class Deconvnet:
    """The positive part of what arrives, wherever the input was [zeiler]_ (= captum's ReLU of the output gradient)."""

    def __call__(self, call: Call, *cotangents: Cotangent) -> Sequence[Cotangent]:
        """See `onnxplain.rules.base.Rule`."""
        ct = cotangents[0]
        return [positive(ct) if ct is not None and active else None for active in call.active]


@dataclass(frozen=True)
class RectGrad:
    """Ct [y ct > tau]: what matters most passes; tau is the ``percentile`` of y ct in the layer, per sample [kim]_."""

    percentile: float = 98.0

    def __call__(self, call: Call, *cotangents: Cotangent) -> Sequence[Cotangent]:
        """See `onnxplain.rules.base.Rule`."""
        ct = cotangents[0]
        assert ct is not None
        products = (call.y * ct).reshape([0, -1])
        size = products.size(1)
        # The value of that rank, counted from the highest, as TopK sorts; none is between two.
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
    """The derivative of a softplus instead of the rectifier's: ct sigmoid(beta x) [dombrowski]_."""

    beta: float = 10.0

    def __call__(self, call: Call, *cotangents: Cotangent) -> Sequence[Cotangent]:
        """See `onnxplain.rules.base.Rule`."""
        ct = cotangents[0]
        return [None if ct is None else ct * call.op("Sigmoid", call.x * self.beta)]
