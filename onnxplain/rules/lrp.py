"""Layer-wise relevance propagation (LRP): rules for linear layers. `onnxplain.rules.sums` has those for other nodes.

The letters are the papers': x_i the layer's input, w_ij and b_j its weights and biases (W, b), R_j the relevance of its
output, z_j the denominator, s = R / z the quotient. W+ = max(W, 0), W- = min(W, 0), x+ and x- likewise;
S(z) = z + epsilon sign(z) with sign(0) = +1.

All formulas are those of zennit 0.5 (Anders et al. 2021, "Software for dataset-wide XAI"): z includes the bias, whose
share of R is lost.

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
from onnxplain.graph.var import Var, where
from onnxplain.ops import Call
from onnxplain.ops.table import Cotangent
from onnxplain.rules.base import (
    AffineNeighbours,
    LinearMap,
    keep,
    negative,
    positive,
    root_mean_square,
    stabilize,
    stabilized,
)
from onnxplain.rules.signs import is_never_negative, rectified
from onnxplain.rules.sums import Norm


class LinearRule(ABC):
    """Base class of the rules for linear layers: a subclass writes one formula, `redistribute`."""

    def __call__(self, call: Call, *cotangents: Cotangent) -> Sequence[Cotangent]:
        """Apply `redistribute` to the node as a `LinearMap`; split R first if the bias depends on the explained input.

        The split is needed for y = W x + c with an active c: ONNX Runtime makes a residual connection the C of a Gemm.
        Rule `Norm` splits R between W x and c; the layer without bias then redistributes its part.
        """
        f = LinearMap.of(call)
        r = cotangents[0]
        assert r is not None
        if sum(call.active) == 1:
            return f.relevances(self.redistribute(f, f.x, r))
        norm, f = Norm(), f.unbiased()
        relevances = f.relevances(self.redistribute(f, f.x, f.y * (r / stabilize(call.y, norm.epsilon))))
        last = len(call.active) - 1
        relevances[last] = norm(call, r)[last]
        return relevances

    @abstractmethod
    def redistribute(self, f: LinearMap, x: Var, r: Var) -> Var:
        """Write the relevance of the layer's input.

        Parameters
        ----------
        f
            The layer, ``f(x) = W x + b``.
        x
            The layer's input, ``f.x``.
        r
            The relevance of the layer's output, of the output's shape.

        Returns
        -------
        Var
            The relevance of x, of the shape of x.
        """


@dataclass(frozen=True)
class Folded:
    """A rule for a linear layer together with the scales and shifts next to it, such as batch normalisation.

    A shift c before the layer becomes the bias W c, and its share of R is lost like that of any bias. In a padded
    convolution this bias differs from place to place, because the padding is not shifted.

    Attributes
    ----------
    rule
        The rule of the whole.
    around
        The scales and shifts; found by `onnxplain.composites.structure`.
    """

    rule: LinearRule
    around: AffineNeighbours = field(repr=False)

    def __call__(self, call: Call, *cotangents: Cotangent) -> Sequence[Cotangent]:
        """Apply ``rule`` to the layer and its neighbours as one `LinearMap`."""
        f = LinearMap.of(call, self.around)
        r = cotangents[0]
        assert r is not None
        return f.relevances(self.rule.redistribute(f, f.x, r))


@dataclass(frozen=True)
class Unbiased(LinearRule):
    """Another rule, applied to the layer without its bias, which then takes no share of R.

    In zennit: ``zero_params="bias"``. Use it where relevance must be conserved.

    Parameters
    ----------
    rule
        The rule to apply.
    """

    rule: LinearRule

    def redistribute(self, f: LinearMap, x: Var, r: Var) -> Var:
        """Apply ``rule`` to f(x) = W x."""
        return self.rule.redistribute(f.unbiased(), x, r)


@dataclass(frozen=True)
class Epsilon(LinearRule):
    """LRP-epsilon: R_i = x_i sum_j w_ij R_j / S(z_j), z = W x + b [bach]_.

    Each input gets the share that it contributes to z. It is the usual rule for dense layers. In a network of ReLUs it
    tends to gradient x input for small epsilon; a larger epsilon absorbs relevance where contributions cancel, which
    makes explanations sparser and less noisy.

    Parameters
    ----------
    epsilon
        Stabilizer of the denominator, in the units of z. 0 is LRP-0 (0 / 0 counts as 0).
    """

    epsilon: float = 1e-6

    def redistribute(self, f: LinearMap, x: Var, r: Var) -> Var:
        """Write x W^T (R / S(z))."""
        return x * f.vjp(r / stabilized(f.y, self.epsilon, r))


@dataclass(frozen=True)
class RelativeEpsilon(LinearRule):
    """`Epsilon` with a stabilizer relative to the layer's outputs, epsilon sqrt(mean(z^2)) per sample [montavon19]_.

    Use it where one epsilon must suit layers of different scales.

    Parameters
    ----------
    epsilon
        Stabilizer of the denominator, as a share of the root mean square of z over the sample.
    """

    epsilon: float = 0.25

    def redistribute(self, f: LinearMap, x: Var, r: Var) -> Var:
        """Write x W^T (R / (z + epsilon sqrt(mean(z^2)) sign(z)))."""
        return x * f.vjp(r / stabilize(f.y, root_mean_square(f.y) * self.epsilon))


@dataclass(frozen=True)
class Gamma(LinearRule):
    """LRP-gamma: contributions of the sign of z count 1 + gamma times [montavon19]_, for inputs of any sign [andeol]_.

    For x >= 0 and z > 0 it is R_i = x_i sum_j (w_ij + gamma w+_ij) R_j / S(n_j) with n_j = sum_k x_k (w_kj +
    gamma w+_kj) + b_j + gamma b+_j. It favours positive evidence and is less noisy than epsilon; it is the usual rule
    for the convolutions of a network.

    In general, where z > 0, the weights are W + gamma W+ for x+ and W + gamma W- for x-, and the bias is b + gamma b+.
    Where z < 0, they are W + gamma W- for x+ and W + gamma W+ for x-, and b + gamma b-. Where z = 0, R is lost.

    Parameters
    ----------
    gamma
        Weight of the boost: 0 is `Epsilon`; for large gamma the rule tends to ``AlphaBeta(1, 0)`` where z > 0.
    epsilon
        Stabilizer of the denominator, in the units of z.
    """

    gamma: float = 0.25
    epsilon: float = 1e-6

    def redistribute(self, f: LinearMap, x: Var, r: Var) -> Var:
        """Write the rule in the cheapest of three forms.

        Let up = W+ x+ + W- x- + b+ and down = W- x+ + W+ x- + b-, so z = up + down. The rule's denominator is
        n = z + gamma up where z > 0, and n = z + gamma down = z + gamma (z - up) where z < 0. Let s = R / S(n) where
        z > 0 and else 0, and t = R / S(n) where z < 0 and else 0. Then::

            R_x = x+ ((W + gamma W+)^T s + (W + gamma W-)^T t) + x- ((W + gamma W-)^T s + (W + gamma W+)^T t)

        1. R comes through a Relu (`rectified`), so R = 0 where z <= 0, and t = 0. No sign of z is needed. With signed
           x, up = (z + |W| |x| + |b|) / 2, so n = u (z + (gamma / 2u) (|W| |x| + |b|)), u = 1 + gamma / 2: u divides W
           and epsilon, and gamma / 2u goes into |W| and |b|. With x >= 0, up = W+ x + b+: u = 1, and gamma goes into
           W+ and b+. Constant factors in the parameters are folded once; on the output they would cost a pass a call.
        2. Any sign of z, x >= 0: R_x = x ((W + gamma W+)^T s + (W + gamma W-)^T t), as x- = 0.
        3. Any sign of z and x: W- = W - W+ saves one of four products. With a = W^T s, c = W^T t and
           d = gamma W+^T (s - t)::

               R_x = x (a + c) + x+ (gamma c + d) + x- (gamma a - d)
        """
        z, gamma, above = f.z, self.gamma, rectified(f.z, r)
        signed = not is_never_negative(x)
        if above is not None:  # form 1
            unit, share, size = (1 + gamma / 2, gamma / 2, abs) if signed else (1.0, gamma, positive)
            plain, share = f.map(lambda w: w * (1 / unit)), share / unit
            boost = f.map(lambda w: share * size(w), lambda b: share * size(b)).plus(self.epsilon / unit)
            s, t = r / (above + boost(abs(x) if signed else x)), None
        else:  # forms 2 and 3; |n| >= |z|, as the boosted contributions have the sign of z
            up = 0.5 * (z + f.map(abs, abs)(abs(x))) if signed else f.map(positive, positive)(x)
            shares = r / stabilize(z + gamma * where(z > 0.0, up, z - up), self.epsilon)
            plain, s, t = f.map(keep), shares * z.above(), shares * z.below()
        raised, lowered = plain.map(lambda w: w + gamma * positive(w)), plain.map(lambda w: w + gamma * negative(w))
        if not signed:
            return x * (raised.vjp(s) if t is None else raised.vjp(s) + lowered.vjp(t))
        if t is None:
            return positive(x) * raised.vjp(s) + negative(x) * lowered.vjp(s)
        a, c = plain.vjp(s), plain.vjp(t)
        d = gamma * f.map(positive).vjp(s - t)
        return x * (a + c) + positive(x) * (gamma * c + d) + negative(x) * (gamma * a - d)


@dataclass(frozen=True)
class AlphaBeta(LinearRule):
    """LRP-alpha-beta: R_i = sum_j (alpha (x_i w_ij)+ / z+_j - beta (x_i w_ij)- / z-_j) R_j, alpha - beta = 1 [bach]_.

    z+ is the sum of the positive contributions and b+, z- that of the negative ones and b-. Positive and negative
    evidence are redistributed separately, so the rule never divides by a sum that cancels.

    ``AlphaBeta(1, 0)`` is the papers' z+ rule (ZPlus), for inputs of any sign: the usual choice for convolutions.
    ``AlphaBeta(2, 1)`` shows negative evidence as well.

    Parameters
    ----------
    alpha, beta
        Weights of positive and of negative contributions; alpha - beta = 1 and beta >= 0.
    epsilon
        Added to z+ and subtracted from z-, in the units of z.
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
        """Write x+ (W+^T s - W-^T t) + x- (W-^T s - W+^T t) with s = alpha R / z+ and t = beta R / z-.

        Where x can be negative and R comes through a Relu (`rectified`), z+ and z- are (z + |W| |x| + |b|) / 2 and
        (z - |W| |x| - |b|) / 2: one product instead of two.
        """
        signed = not is_never_negative(x)
        z = rectified(f.z, r, compute=signed)
        above, below = (positive(x), negative(x)) if signed else (x, None)
        rising, falling = f.map(positive), f.map(negative)
        if signed and z is not None:
            # No digits cancel in z+, as z >= 0 here. With one quotient (beta = 0), 2 z+ serves as the denominator and
            # 2 W+ makes up for it, which saves the pass that halves z.
            part = 0.5 if self.beta else 1.0
            sizes = f.map(lambda w: part * abs(w), lambda b: part * abs(b)).plus(2 * part * self.epsilon)
            half, size = part * z, sizes(abs(x))
            increase, decrease = half + size, half - size
            rising, falling = rising.map(lambda w: 2 * part * w), falling.map(lambda w: 2 * part * w)
        else:
            increase = f.map(positive, positive).plus(self.epsilon)(above)
            if below is not None:
                increase = increase + falling(below)
            decrease = (f.z if z is None else z) - increase  # z- minus epsilon
        s = r * self.alpha / increase  # the denominator is never negative: no `stabilize`
        if self.beta == 0:
            return above * rising.vjp(s) + below * falling.vjp(s) if below is not None else x * rising.vjp(s)
        # The difference z - z+ can be rounded to a positive number; the bound -epsilon keeps its sign.
        t = r * self.beta / decrease.emitter.op("Min", decrease, decrease.like(-self.epsilon))
        if below is None:
            return x * (rising.vjp(s) - falling.vjp(t))
        # Keep all four products. Where no contribution has one of the signs, the quotient of that sign is huge, and
        # only exact zeros in W+, W-, x+ and x- cancel it: rewriting W- as W - W+ (as in Gamma) would lose them.
        return above * (rising.vjp(s) - falling.vjp(t)) + below * (falling.vjp(s) - rising.vjp(t))


@dataclass(frozen=True)
class Interpolated(LinearRule):
    """A rule between z+ and epsilon: R_i = sum_j x_i (w+_ij + gamma w-_ij) R_j / S(z_j), 0 <= gamma <= 1 [samek]_.

    z_j is the sum of the numerators x_i (w+_ij + gamma w-_ij), plus b+ + gamma b-. For inputs of any sign: a
    contribution w_ij x_i counts in full where it is positive and gamma times where it is negative.

    Parameters
    ----------
    gamma
        Weight of negative contributions. 0 is ``AlphaBeta(1, 0)``; 1 is `Epsilon`, which in networks of ReLUs is
        gradient x input.
    epsilon
        Stabilizer of the denominator, in the units of z.
    """

    gamma: float = 0.25
    epsilon: float = 1e-6

    def __post_init__(self) -> None:
        if not 0 <= self.gamma <= 1:
            raise OptionError(f"gamma of rule 'interpolated' must be from 0 to 1, not {self.gamma}")

    def redistribute(self, f: LinearMap, x: Var, r: Var) -> Var:
        """Write x+ F^T s + x- G^T s with F = W+ + gamma W-, G = W- + gamma W+ and s = R / S(F x+ + G x- + bias)."""

        def full(part: Callable[[Var], Var], rest: Callable[[Var], Var]) -> Callable[[Var], Var]:
            return lambda w: part(w) + self.gamma * rest(w)

        rising, falling = full(positive, negative), full(negative, positive)
        return _share(f.map(rising, rising), f.map(falling), x, r, self.epsilon)


def _share(f: LinearMap, g: LinearMap, x: Var, r: Var, epsilon: float) -> Var:
    """Write x+ F^T s + x- G^T s with s = R / S(z) and z = f(x+) + G x-; F, G are the weights of f, g."""
    if is_never_negative(x):
        return x * f.vjp(r / stabilize(f(x), epsilon))
    above, below = positive(x), negative(x)
    g = g.map(keep)
    s = r / stabilize(f(above) + g(below), epsilon)
    return above * f.vjp(s) + below * g.vjp(s)


@dataclass(frozen=True, eq=False)
class ZBox(LinearRule):
    """The z-box rule: R_i = sum_j (x_i w_ij - l_i w+_ij - h_i w-_ij) R_j / S(z_j), l <= x <= h [montavon17]_.

    z_j is the sum of the numerators. The rule of deep Taylor decomposition for a first layer whose inputs have known
    bounds, such as pixels.

    Parameters
    ----------
    low, high
        The bounds l and h: numbers, or arrays that broadcast to the layer's input, in the units of that input (after
        normalisation). Where a model scales and shifts its own input before the layer, they bound the model's input.
        Zero padding counts as 0 in the bounds, too.
    epsilon
        Stabilizer of the denominator, in the units of z.
    """

    low: float | np.ndarray = 0.0
    high: float | np.ndarray = 1.0
    epsilon: float = 1e-6

    def redistribute(self, f: LinearMap, x: Var, r: Var) -> Var:
        """Write x W^T s - l W+^T s - h W-^T s with s = R / S(W x - W+ l - W- h)."""
        low, high = f.bounds(self.low, self.high)
        plain, rising, falling = f.map(keep), f.map(positive), f.map(negative)
        s = r / stabilize(plain(x) - rising(low) - falling(high), self.epsilon)
        return x * plain.vjp(s) - low * rising.vjp(s) - high * falling.vjp(s)


@dataclass(frozen=True)
class WSquare(LinearRule):
    """The w^2 rule: R_i = sum_j w_ij^2 R_j / S(sum_k w_kj^2 + b_j^2), whatever the input [montavon17]_.

    The rule of deep Taylor decomposition for a first layer whose inputs have no bounds. Scales behind the layer count
    as weights; scales before it do not.

    Parameters
    ----------
    epsilon
        Stabilizer of the denominator, in the units of w^2.
    """

    epsilon: float = 1e-6

    def redistribute(self, f: LinearMap, x: Var, r: Var) -> Var:
        """Write (W^2)^T (R / S(W^2 1 + b^2))."""
        squared = f.map(lambda w: w * w, lambda b: b * b)
        return squared.map(keep).vjp(r / stabilize(squared(f.everywhere(1.0)), self.epsilon))


@dataclass(frozen=True)
class Flat(LinearRule):
    """The flat rule: R_j is spread evenly over the inputs of unit j, whatever the weights and the input [lapuschkin]_.

    Use it in a first layer to make heatmaps independent of the pixel values: they show where, at the resolution of the
    layer's receptive fields.

    Parameters
    ----------
    epsilon
        Stabilizer of the denominator, which is the number of inputs of unit j.
    """

    epsilon: float = 1e-6

    def redistribute(self, f: LinearMap, x: Var, r: Var) -> Var:
        """Write 1^T (R / S(1 1)): every weight replaced by 1, no bias."""
        ones = f.map(lambda w: w * 0.0 + 1.0)
        return ones.vjp(r / stabilize(ones(f.everywhere(1.0)), self.epsilon))
