"""Rules for products of activations, softmax and normalisation: transformers and gates [achtibat]_.

The letters are those of `onnxplain.rules.lrp`: R relevance, J the operator's Jacobian, S(y) = y + epsilon sign(y).

References
----------
.. [achtibat] Achtibat et al. 2024, AttnLRP: attention-aware layer-wise relevance propagation for transformers.
.. [ali] Ali et al. 2022, XAI for transformers: better explanations through conservative propagation.
.. [arras] Arras et al. 2019, Explaining and interpreting LSTMs (signal-take-all, which is of Arras et al. 2017).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from onnxplain.graph.var import where
from onnxplain.ops import OPS, Call
from onnxplain.ops.norm import FROZEN, without_masked_rows
from onnxplain.ops.table import Cotangent
from onnxplain.rules.base import Gradient, proportional, stabilize

# Softmax inputs at or below this count as masked: models write -inf, float32's lowest number or -1e9 there, and x times
# the quotient would be NaN or huge. No unmasked logit comes near it.
MASKED = -1e9


@dataclass(frozen=True)
class Uniform:
    """The uniform rule for products: R_a = a J_a^T (R / (n S(y))) for each of n active factors [achtibat]_.

    Each factor gets an equal part of the relevance; elementwise, that is R / n. In a quotient a / b the divisor counts
    as a constant, and a gets all of R. Use it for products of two signals, such as attention weights times values.

    Parameters
    ----------
    epsilon
        Stabilizer of the denominator, in the units of y.
    """

    epsilon: float = 1e-6

    def __call__(self, call: Call, *cotangents: Cotangent) -> Sequence[Cotangent]:
        """Write R_a = a J_a^T (R / (n S(y))) for each active factor a."""
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
    """`Uniform`, except that attention weights count as constants [ali]_.

    The values that they multiply get all of R, the softmax nothing. The composite applies the difference: it knows
    which factor comes from a softmax (`onnxplain.composites.structure`).
    """


@dataclass(frozen=True)
class Signal:
    """The signal-take-all rule for products: one factor gets all of R, the others count as constants [arras]_.

    The signal is what a gate (a sigmoid) multiplies. It is also the x of x sigmoid(x) and of x / sqrt(mean(x^2)), where
    the other factor is a function of the same x: this gives AttnLRP's identity rule at activations and normalisations
    that the model spells out node by node.

    Parameters
    ----------
    index
        Position of the signal among the node's inputs.
    epsilon
        Stabilizer of the denominator, in the units of y.
    """

    index: int
    epsilon: float = 1e-6

    def __call__(self, call: Call, *cotangents: Cotangent) -> Sequence[Cotangent]:
        """Write R for the signal (elementwise products) or x J^T (R / S(y)) for it (matrix products); else None."""
        chosen = tuple(i == self.index for i in range(len(call.active)))
        if OPS[call.node.op].broadcast:
            return [cotangents[0] if c else None for c in chosen]
        shares = proportional(replace(call, active=chosen), cotangents[0], self.epsilon)
        return [share if c else None for share, c in zip(shares, chosen, strict=False)]


@dataclass(frozen=True)
class SoftmaxTaylor:
    """The AttnLRP rule for softmax, R_x = x (R - y sum(R)): a first-order Taylor expansion at x [achtibat]_.

    For LogSoftmax it is x J^T (R / S(y)). Masked elements (-inf or below ``MASKED``) get no relevance. The rule does
    not conserve relevance: the remainder of the expansion is lost, as the share of a bias is.

    Parameters
    ----------
    epsilon
        Stabilizer of LogSoftmax's denominator, in the units of y. Softmax itself needs none.
    """

    epsilon: float = 1e-6

    def __call__(self, call: Call, *cotangents: Cotangent) -> Sequence[Cotangent]:
        """Write x (R - y sum(R)), or x J^T (R / S(y)) for LogSoftmax; zero at masked elements."""
        r, x = cotangents[0], call.x
        assert r is not None
        if call.node.op == "Softmax":
            s: Cotangent = r - without_masked_rows(call) * r.sum([call.attrs["axis"]], keepdims=True)
        else:
            (s,) = Gradient()(call, r / stabilize(call.y, self.epsilon))
        assert s is not None
        return [where(x > MASKED, x * s, 0.0)]


@dataclass(frozen=True)
class Standardize:
    """The rule for normalisation layers: R_x = x J^T (R / S(y)), J with a constant divisor [achtibat]_, [ali]_.

    The divisor (a standard deviation or a norm) counts as a constant. Dividing then acts as an identity, subtracting
    the mean as a sum, and the bias keeps its share of R. If the scale depends on the explained tensor as well, it
    counts as a gate, and x gets all.

    Passing R through unchanged, as AttnLRP's identity rule does, is no alternative for a layer with a mean and a bias:
    where x is near zero and y is not, the layers before divide by x, and relevances of alternating sign grow from layer
    to layer.

    Parameters
    ----------
    epsilon
        Stabilizer of the denominator, in the units of y.
    """

    epsilon: float = 1e-6

    def __call__(self, call: Call, *cotangents: Cotangent) -> Sequence[Cotangent]:
        """Write x J^T (R / S(y)) with the divisor of the normalisation held constant."""
        # FROZEN is an attribute that only the VJPs in ops/norm.py read: it makes them hold the divisor constant. The
        # node that carries it is not written into the graph.
        node = replace(call.node, attrs={**call.attrs, FROZEN: True})
        x, *rest = proportional(replace(call, node=node), cotangents[0], self.epsilon)
        return [x, None, *rest[1:]] if call.active[0] else [x, *rest]
