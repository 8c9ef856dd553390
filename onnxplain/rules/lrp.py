"""Layer-wise relevance propagation: rules for linear layers, and the two that everything else needs (`Norm`, `Pass`).

The letters are the papers': x the layer's input, W and b its parameters, z the denominator, s = R / z the quotient.
W+ = max(W, 0), W- = min(W, 0), x+ and x- likewise; S(z) = z + epsilon sign(z) with sign(0) = +1. All formulas are those
of zennit 0.5 (Anders et al. 2021, "Software for dataset-wide XAI"): z includes the bias, whose share of R is lost.

References
----------
.. [bach] Bach et al. 2015, On pixel-wise explanations for non-linear classifier decisions by LRP, PLoS ONE.
.. [montavon17] Montavon et al. 2017, Explaining nonlinear classification decisions with deep Taylor decomposition.
.. [montavon19] Montavon et al. 2019, Layer-wise relevance propagation: an overview.
.. [lapuschkin] Lapuschkin et al. 2019, Unmasking Clever Hans predictors (flat rule).
.. [andeol] Andéol et al. 2021, Learning domain invariant representations (gamma for inputs of any sign).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from math import isclose

import numpy as np

from onnxplain.emit import Var
from onnxplain.errors import OptionError
from onnxplain.ops import Call
from onnxplain.ops.table import Cotangent
from onnxplain.rules.base import LinearMap, keep, negative, positive, proportional, stabilize


class LinearRule:
    """A rule of a linear layer: subclasses say how ``f``'s output relevance becomes its input relevance."""

    def __call__(self, call: Call, *cotangents: Cotangent) -> Sequence[Cotangent]:
        """See `onnxplain.rules.base.Rule`."""
        f = LinearMap.of(call)
        r = cotangents[0]
        assert r is not None
        if sum(call.active) == 1:
            return f.relevances(self.redistribute(f, f.x, r))
        # y = W x + c, and c depends on the explained input as well: ONNX Runtime makes a residual connection the C of
        # a Gemm. First it is a sum of two, then W x a layer without bias.
        norm, f = Norm(), f.unbiased()
        relevances = f.relevances(self.redistribute(f, f.x, f.y * (r / stabilize(call.y, norm.epsilon))))
        relevances[2] = norm(call, r)[2]
        return relevances

    def redistribute(self, f: LinearMap, x: Var, r: Var) -> Var:
        """Relevance of the output -> relevance of the input."""
        raise NotImplementedError


@dataclass(frozen=True)
class Biased:
    """A rule for a matrix product and the bias that the node behind it adds: exporters split dense layers so."""

    rule: LinearRule
    bias: Var = field(repr=False)

    def __call__(self, call: Call, *cotangents: Cotangent) -> Sequence[Cotangent]:
        """See `onnxplain.rules.base.Rule`."""
        f = replace(LinearMap.of(call), shift=self.bias)
        r = cotangents[0]
        assert r is not None
        return f.relevances(self.rule.redistribute(f, f.x, r))


@dataclass(frozen=True)
class Epsilon(LinearRule):
    """R_i = x_i sum_j w_ij R_j / S(z_j), z = W x + b [bach]_. ``epsilon=0`` is LRP-0 (0 / 0 counts as 0)."""

    epsilon: float = 1e-6

    def redistribute(self, f: LinearMap, x: Var, r: Var) -> Var:
        """See the class."""
        return x * f.vjp(r / stabilize(f.y, self.epsilon))


@dataclass(frozen=True)
class Gamma(LinearRule):
    """Positive contributions boosted by gamma [montavon19]_, for inputs of any sign [andeol]_.

    Where z > 0: weights W + gamma W+ for x+ and W + gamma W- for x-, bias b + gamma b+; where z < 0 the roles of the
    two are swapped (b + gamma b-). Where z = 0 nothing flows.
    """

    gamma: float = 0.25
    epsilon: float = 1e-6

    def redistribute(self, f: LinearMap, x: Var, r: Var) -> Var:
        """See the class."""

        def boosted(part: Callable[[Var], Var]) -> Callable[[Var], Var]:
            return lambda w: w + self.gamma * part(w)

        z = f.y
        raised, lowered = f.map(boosted(positive), boosted(positive)), f.map(boosted(negative), boosted(negative))
        gaining = _share(raised, lowered, x, r.mask(z > 0.0), self.epsilon)
        losing = _share(lowered, raised, x, r.mask(z < 0.0), self.epsilon)
        return gaining + losing


@dataclass(frozen=True)
class AlphaBeta(LinearRule):
    """alpha (share of positive contributions) - beta (share of negative ones), alpha - beta = 1 [bach]_.

    ``AlphaBeta(1, 0)`` is z+, for inputs of any sign.
    """

    alpha: float = 2.0
    beta: float = 1.0
    epsilon: float = 1e-6

    def __post_init__(self) -> None:
        if self.beta < 0 or not isclose(self.alpha - self.beta, 1.0, abs_tol=1e-6):
            raise OptionError(
                f"alpha_beta needs alpha - beta = 1 and beta >= 0, not alpha={self.alpha}, beta={self.beta}"
            )

    def redistribute(self, f: LinearMap, x: Var, r: Var) -> Var:
        """See the class."""
        rising, falling = f.map(positive, positive), f.map(negative, negative)
        activating = self.alpha * _share(rising, falling, x, r, self.epsilon)
        if self.beta == 0:
            return activating
        return activating - self.beta * _share(falling, rising, x, r, self.epsilon)


def _share(f: LinearMap, g: LinearMap, x: Var, r: Var, epsilon: float) -> Var:
    """R_i of z = f(x+) + g(x-), whose bias is f's: x+ f^T s + x- g^T s, s = R / S(z)."""
    above, below = positive(x), negative(x)
    g = g.map(keep)
    s = r / stabilize(f(above) + g(below), epsilon)
    return above * f.vjp(s) + below * g.vjp(s)


@dataclass(frozen=True, eq=False)
class ZBox(LinearRule):
    """R_i = sum_j (x_i w_ij - l_i w+_ij - h_i w-_ij) R_j / S(z_j) for inputs in the box [low, high] [montavon17]_.

    ``low`` and ``high`` are numbers, or arrays that broadcast to the layer's input, in the units of that input
    (normalised ones). Zero padding counts as 0 in the bounds, too.
    """

    low: float | np.ndarray = 0.0
    high: float | np.ndarray = 1.0
    epsilon: float = 1e-6

    def redistribute(self, f: LinearMap, x: Var, r: Var) -> Var:
        """See the class."""
        low, high = f.everywhere(self.low), f.everywhere(self.high)
        plain, rising, falling = f.map(keep), f.map(positive), f.map(negative)
        s = r / stabilize(plain(x) - rising(low) - falling(high), self.epsilon)
        return x * plain.vjp(s) - low * rising.vjp(s) - high * falling.vjp(s)


@dataclass(frozen=True)
class WSquare(LinearRule):
    """R_i = sum_j w_ij^2 R_j / S(sum_k w_kj^2 + b_j^2), whatever the input [montavon17]_."""

    epsilon: float = 1e-6

    def redistribute(self, f: LinearMap, x: Var, r: Var) -> Var:
        """See the class."""
        squared = f.map(lambda w: w * w, lambda b: b * b)
        return squared.map(keep).vjp(r / stabilize(squared(f.everywhere(1.0)), self.epsilon))


@dataclass(frozen=True)
class Flat(LinearRule):
    """R_j is spread evenly over everything unit j sees, whatever weights and input [lapuschkin]_."""

    epsilon: float = 1e-6

    def redistribute(self, f: LinearMap, x: Var, r: Var) -> Var:
        """See the class."""
        ones = f.map(lambda w: w * 0.0 + 1.0)
        return ones.vjp(r / stabilize(ones(f.everywhere(1.0)), self.epsilon))


@dataclass(frozen=True)
class Norm:
    """R_i = x_i J_i^T (R / S(y)): each input gets what it contributed to the sum y (Add, mean, average pooling)."""

    epsilon: float = 1e-6

    def __call__(self, call: Call, *cotangents: Cotangent) -> Sequence[Cotangent]:
        """See `onnxplain.rules.base.Rule`."""
        return proportional(call, cotangents[0], self.epsilon)


@dataclass(frozen=True)
class Pass:
    """Relevance goes through unchanged: activations, elementwise scales and shifts by constants."""

    def __call__(self, call: Call, *cotangents: Cotangent) -> Sequence[Cotangent]:
        """See `onnxplain.rules.base.Rule`."""
        return [cotangents[0] if active else None for active in call.active]
