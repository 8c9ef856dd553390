"""Layer-wise relevance propagation: rules for linear layers, and the two that everything else needs (`Norm`, `Pass`).

The letters are the papers': x the layer's input, W and b its parameters, z the denominator, s = R / z the quotient.
W+ = max(W, 0), W- = min(W, 0), x+ and x- likewise; S(z) = z + epsilon sign(z) with sign(0) = +1. All formulas are those
of zennit 0.5 (Anders et al. 2021, "Software for dataset-wide XAI"): z includes the bias, whose share of R is lost.

References
----------
.. [bach] Bach et al. 2015, On pixel-wise explanations for non-linear classifier decisions by LRP, PLoS ONE.
.. [montavon17] Montavon et al. 2017, Explaining nonlinear classification decisions with deep Taylor decomposition.
.. [montavon19] Montavon et al. 2019, Layer-wise relevance propagation: an overview.
.. [samek] Samek et al. 2021, Explaining deep neural networks and beyond: a review of methods and applications.
.. [lapuschkin] Lapuschkin et al. 2019, Unmasking Clever Hans predictors (flat rule).
.. [andeol] Andéol et al. 2021, Learning domain invariant representations (gamma for inputs of any sign).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import isclose

import numpy as np

from onnxplain.errors import OptionError
from onnxplain.graph.emit import Var, where
from onnxplain.ops import Call
from onnxplain.ops.table import Cotangent
from onnxplain.rules.base import (
    AffineNeighbours,
    Gradient,
    LinearMap,
    keep,
    negative,
    positive,
    proportional,
    root_mean_square,
    stabilize,
    stabilized,
)
from onnxplain.rules.signs import is_never_negative, rectified


class LinearRule(ABC):
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
        last = len(call.active) - 1
        relevances[last] = norm(call, r)[last]
        return relevances

    @abstractmethod
    def redistribute(self, f: LinearMap, x: Var, r: Var) -> Var:
        """Relevance of the output -> relevance of the input."""


@dataclass(frozen=True)
class Folded:
    """A rule for a layer and the scales and shifts around it: batch normalisation, biases that are nodes of their own.

    A shift before a layer is a bias that the layer makes of it, at each place of a convolution another one: the
    padding is not shifted. Its share is lost as any bias'.
    """

    rule: LinearRule
    around: AffineNeighbours = field(repr=False)

    def __call__(self, call: Call, *cotangents: Cotangent) -> Sequence[Cotangent]:
        """See `onnxplain.rules.base.Rule`."""
        f = LinearMap.of(call, self.around)
        r = cotangents[0]
        assert r is not None
        return f.relevances(self.rule.redistribute(f, f.x, r))


@dataclass(frozen=True)
class Unbiased(LinearRule):
    """Another rule for the layer without its bias, which then takes no share (zennit: ``zero_params="bias"``)."""

    rule: LinearRule

    def redistribute(self, f: LinearMap, x: Var, r: Var) -> Var:
        """See the class."""
        return self.rule.redistribute(f.unbiased(), x, r)


@dataclass(frozen=True)
class Epsilon(LinearRule):
    """R_i = x_i sum_j w_ij R_j / S(z_j), z = W x + b [bach]_. ``epsilon=0`` is LRP-0 (0 / 0 counts as 0)."""

    epsilon: float = 1e-6

    def redistribute(self, f: LinearMap, x: Var, r: Var) -> Var:
        """See the class."""
        return x * f.vjp(r / stabilized(f.y, self.epsilon, r))


@dataclass(frozen=True)
class RelativeEpsilon(LinearRule):
    """`Epsilon`, where epsilon is in units of the root mean square of z in a sample [montavon19]_."""

    epsilon: float = 0.25

    def redistribute(self, f: LinearMap, x: Var, r: Var) -> Var:
        """See the class."""
        return x * f.vjp(r / stabilize(f.y, root_mean_square(f.y) * self.epsilon))


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
        z, gamma, above = f.z, self.gamma, rectified(f.z, r)
        signed = not is_never_negative(x)
        if above is not None:
            # As below, where only z > 0 counts; numbers go into the parameters, and so does all that z is counted for.
            unit, share, size = (1 + gamma / 2, gamma / 2, abs) if signed else (1.0, gamma, positive)
            plain, share = f.map(lambda w: w * (1 / unit)), share / unit
            boost = f.map(lambda w: share * size(w), lambda b: share * size(b)).plus(self.epsilon / unit)
            s, t = r / (above + boost(abs(x) if signed else x)), None
        else:
            # W+ x+ + W- x- = (W x + |W| |x|) / 2; the denominators are no smaller than z, of which they are made.
            rising = 0.5 * (z + f.map(abs, abs)(abs(x))) if signed else f.map(positive, positive)(x)
            shares = r / stabilize(z + gamma * where(z > 0.0, rising, z - rising), self.epsilon)
            plain, s, t = f.map(keep), shares * z.above(), shares * z.below()
        raised, lowered = plain.map(lambda w: w + gamma * positive(w)), plain.map(lambda w: w + gamma * negative(w))
        if not signed:
            return x * (raised.vjp(s) if t is None else raised.vjp(s) + lowered.vjp(t))
        if t is None:
            return positive(x) * raised.vjp(s) + negative(x) * lowered.vjp(s)
        # W- = W - W+: three products instead of four.
        gaining, losing = plain.vjp(s), plain.vjp(t)
        swapped = gamma * f.map(positive).vjp(s - t)
        both = x * (gaining + losing)
        return both + positive(x) * (gamma * losing + swapped) + negative(x) * (gamma * gaining - swapped)


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
        signed = not is_never_negative(x)
        z = rectified(f.z, r, anew=signed)
        above, below = (positive(x), negative(x)) if signed else (x, None)
        rising, falling = f.map(positive), f.map(negative)
        if signed and z is not None:
            # What rises and what falls is (W x -+ |W| |x|) / 2, and where z > 0 what rises is no smaller than z.
            part = 0.5 if self.beta else 1.0  # with one quotient only, weights can make good for twice as much
            sizes = f.map(lambda w: part * abs(w), lambda b: part * abs(b)).plus(2 * part * self.epsilon)
            half, size = part * z, sizes(abs(x))
            increase, decrease = half + size, half - size
            rising, falling = rising.map(lambda w: 2 * part * w), falling.map(lambda w: 2 * part * w)
        else:
            increase = f.map(positive, positive).plus(self.epsilon)(above)
            if below is not None:
                increase = increase + falling(below)
            decrease = (f.z if z is None else z) - increase  # what the rest of z is, less epsilon
        s = r * self.alpha / increase  # never negative: its sign need not be looked at
        if self.beta == 0:
            return above * rising.vjp(s) + below * falling.vjp(s) if below is not None else x * rising.vjp(s)
        # Rounding must not turn the other one's sign.
        t = r * self.beta / decrease.emitter.op("Min", decrease, decrease.like(-self.epsilon))
        if below is None:
            return x * (rising.vjp(s) - falling.vjp(t))
        # Where there is nothing of one sign its quotient is huge: no product that is 0 then may become a difference.
        return above * (rising.vjp(s) - falling.vjp(t)) + below * (falling.vjp(s) - rising.vjp(t))


@dataclass(frozen=True)
class Interpolated(LinearRule):
    """R_i = sum_j x_i (w+_ij + gamma w-_ij) R_j / S(z_j), 0 <= gamma <= 1 [samek]_.

    z is the sum of these numerators and the bias'. gamma = 0 is alpha 1, beta 0; gamma = 1 is epsilon, which in
    networks of ReLUs is gradient x input. For inputs of any sign: w_ij x_i counts in full where it is positive, gamma
    times where it is negative.
    """

    gamma: float = 0.25
    epsilon: float = 1e-6

    def __post_init__(self) -> None:
        if not 0 <= self.gamma <= 1:
            raise OptionError(f"gamma of rule 'interpolated' must be from 0 to 1, not {self.gamma}")

    def redistribute(self, f: LinearMap, x: Var, r: Var) -> Var:
        """See the class."""

        def full(part: Callable[[Var], Var], rest: Callable[[Var], Var]) -> Callable[[Var], Var]:
            return lambda w: part(w) + self.gamma * rest(w)

        rising, falling = full(positive, negative), full(negative, positive)
        return _share(f.map(rising, rising), f.map(falling), x, r, self.epsilon)


def _share(f: LinearMap, g: LinearMap, x: Var, r: Var, epsilon: float) -> Var:
    """R_i of z = f(x+) + g(x-), whose bias is f's: x+ f^T s + x- g^T s, s = R / S(z)."""
    if is_never_negative(x):
        return x * f.vjp(r / stabilize(f(x), epsilon))
    above, below = positive(x), negative(x)
    g = g.map(keep)
    s = r / stabilize(f(above) + g(below), epsilon)
    return above * f.vjp(s) + below * g.vjp(s)


@dataclass(frozen=True, eq=False)
class ZBox(LinearRule):
    """R_i = sum_j (x_i w_ij - l_i w+_ij - h_i w-_ij) R_j / S(z_j) for inputs in the box [low, high] [montavon17]_.

    ``low`` and ``high`` are numbers, or arrays that broadcast to the layer's input, in the units of that input
    (normalised ones). Where a model scales and shifts its own input before the layer, they bound the model's input.
    Zero padding counts as 0 in the bounds, too.
    """

    low: float | np.ndarray = 0.0
    high: float | np.ndarray = 1.0
    epsilon: float = 1e-6

    def redistribute(self, f: LinearMap, x: Var, r: Var) -> Var:
        """See the class."""
        low, high = f.bounds(self.low, self.high)
        plain, rising, falling = f.map(keep), f.map(positive), f.map(negative)
        s = r / stabilize(plain(x) - rising(low) - falling(high), self.epsilon)
        return x * plain.vjp(s) - low * rising.vjp(s) - high * falling.vjp(s)


@dataclass(frozen=True)
class WSquare(LinearRule):
    """R_i = sum_j w_ij^2 R_j / S(sum_k w_kj^2 + b_j^2), whatever the input [montavon17]_.

    Scales before the layer do not count as weights; those behind it do.
    """

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
class Terms:
    """Each element gets what its term contributes to a sum: R_i = t_i R / sum_k t_k.

    The terms of a sum of squares and of an L2 norm are x^2, of an L1 norm |x|, of a log-sum x, of a log-sum-exp exp(x);
    of an Lp norm |x|^p, and of a determinant what the elements have in its expansion.
    """

    epsilon: float = 1e-6

    def __call__(self, call: Call, *cotangents: Cotangent) -> Sequence[Cotangent]:
        """See `onnxplain.rules.base.Rule`. All are x_i J_i^T (R / (k y)) for a y of degree k, but for logarithms."""
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
    """Relevance goes through unchanged to the first input that can get any: activations, scales by constants."""

    def __call__(self, call: Call, *cotangents: Cotangent) -> Sequence[Cotangent]:
        """See `onnxplain.rules.base.Rule`."""
        first = call.active.index(True)
        return [cotangents[0] if i == first else None for i in range(len(call.active))]
