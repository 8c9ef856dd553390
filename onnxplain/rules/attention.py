"""Relevance through products of activations, softmax and normalisation: transformers and gates [achtibat]_.

References
----------
.. [achtibat] Achtibat et al. 2024, AttnLRP: attention-aware layer-wise relevance propagation for transformers.
.. [ali] Ali et al. 2022, XAI for transformers: better explanations through conservative propagation.
.. [arras] Arras et al. 2019, Explaining and interpreting LSTMs (signal-take-all, which is of Arras et al. 2017).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from onnxplain.graph.emit import where
from onnxplain.ops import OPS, Call
from onnxplain.ops.norm import FROZEN, without_masked_rows
from onnxplain.ops.table import Cotangent
from onnxplain.rules.base import Gradient, proportional, stabilize


@dataclass(frozen=True)
class Uniform:
    """Every active factor of a product gets an equal part: R_a = a J_a^T (R / (n S(y))), n active factors [achtibat]_.

    Elementwise, that is R / n. In a quotient a / b the divisor counts as a constant: a gets all.
    """

    epsilon: float = 1e-6

    def __call__(self, call: Call, *cotangents: Cotangent) -> Sequence[Cotangent]:
        """See `onnxplain.rules.base.Rule`."""
        r, op = cotangents[0], call.node.op
        assert r is not None
        if op == "Div":
            return [r]
        if op == "ReduceProd":
            return OPS["ReduceMean"].vjp(call, r)
        if OPS[op].broadcast:
            return [r * (1 / sum(call.active)) if active else None for active in call.active]
        factors = len(call.active) if op == "Einsum" else 2  # the third operand of the others is a summand
        n = sum(call.active[:factors])
        shares = proportional(call, r, self.epsilon, parts=n)
        return [s if s is None or i < factors else s * float(n) for i, s in enumerate(shares)]


@dataclass(frozen=True)
class ConservativeUniform(Uniform):
    """`Uniform`, but attention weights count as constants: what they multiply gets all, softmax nothing [ali]_."""


@dataclass(frozen=True)
class Signal:
    """One factor of a product gets all, the others count as constants.

    That is x of x sigmoid(x) and of x / sqrt(mean(x^2)), where the other factor is but a function of x: the identity of
    AttnLRP at activations and normalisations, written in steps. And it is what a gate, a sigmoid, lets through: signal
    takes all [arras]_.
    """

    index: int
    epsilon: float = 1e-6

    def __call__(self, call: Call, *cotangents: Cotangent) -> Sequence[Cotangent]:
        """See `onnxplain.rules.base.Rule`."""
        chosen = tuple(i == self.index for i in range(len(call.active)))
        if OPS[call.node.op].broadcast:
            return [cotangents[0] if c else None for c in chosen]
        shares = proportional(replace(call, active=chosen), cotangents[0], self.epsilon)
        return [share if c else None for share, c in zip(shares, chosen, strict=False)]


@dataclass(frozen=True)
class SoftmaxTaylor:
    """R_x = x (R - y sum(R)): a first-order Taylor expansion of softmax at x [achtibat]_; x J^T (R / S(y)) for its log.

    Masked elements (-inf, or a very large negative number) get no relevance. Does not conserve: the expansion's
    remainder stays behind, as a bias' share does.
    """

    epsilon: float = 1e-6

    def __call__(self, call: Call, *cotangents: Cotangent) -> Sequence[Cotangent]:
        """See `onnxplain.rules.base.Rule`."""
        r, x = cotangents[0], call.x
        assert r is not None
        if call.node.op == "Softmax":
            s: Cotangent = r - without_masked_rows(call) * r.sum([call.attrs["axis"]], keepdims=True)
        else:
            (s,) = Gradient()(call, r / stabilize(call.y, self.epsilon))
        assert s is not None
        return [where(x > -1e9, x * s, 0.0)]


@dataclass(frozen=True)
class Standardize:
    """R_x = x J^T (R / S(y)), where J takes what the layer divides by (a standard deviation, a norm) for a constant.

    So dividing is an identity, subtracting the mean a sum, and the bias keeps its share [achtibat]_, [ali]_. A scale
    that depends on the explained tensor, too, counts as a gate: x gets all.

    A layer with a mean and a bias must not hand on R as it is: where x is near zero and y is not, the layers before
    divide by x, and relevances of alternating sign grow from layer to layer.
    """

    epsilon: float = 1e-6

    def __call__(self, call: Call, *cotangents: Cotangent) -> Sequence[Cotangent]:
        """See `onnxplain.rules.base.Rule`."""
        node = replace(call.node, attrs={**call.attrs, FROZEN: True})
        x, *rest = proportional(replace(call, node=node), cotangents[0], self.epsilon)
        return [x, None, *rest[1:]] if call.active[0] else [x, *rest]
