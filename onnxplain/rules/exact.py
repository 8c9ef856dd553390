"""DeepLIFT beyond elementwise functions: rules whose contributions sum to the change of the output.

The paper has no rules for products of activations, softmax or normalisation. For two inputs, the rules here are the
Shapley values of a game of two players (as in SHAP); the others follow from the operator's own algebra. Where input and
reference are equal, all are the gradient.

The letters: x at the input, x0 at the reference, D the difference, x' = (x + x0) / 2, ct the multiplier of the output.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnxplain.graph.var import Var, where
from onnxplain.ops import OPS, Call, Trait
from onnxplain.ops import norm as norms
from onnxplain.ops.activation import fn
from onnxplain.ops.table import Cotangent
from onnxplain.rules.base import Gradient, negative, positive
from onnxplain.rules.compared import compared, mean, ramp, tanhc

MVN_EPSILON = 1e-18  # added to the variance: MeanVarianceNormalization adds 1e-9 to the standard deviation


@dataclass(frozen=True)
class Midpoint:
    """The gradient at the midpoint: D(a b) = b' Da + a' Db, D(y^2) = 2 y' Dy.

    The VJP gets the mean of each input and of each output over the two points. Exact for quadratic forms, such as a
    product of two activations, and for square roots of them, such as an L2 norm.
    """

    def __call__(self, call: Call, *cotangents: Cotangent) -> Sequence[Cotangent]:
        """Write the VJP with x' and y' for x and y."""
        node = compared(call)
        inputs, outputs = (
            [None if x is None or x0 is None else mean(x, x0) for x, x0 in zip(*pair, strict=True)]
            for pair in ((node.inputs, node.inputs0), (node.outputs, node.outputs0))
        )
        return Gradient()(node.with_tensors(inputs, outputs), *cotangents)


@dataclass(frozen=True)
class Averaged:
    """Mean gradient of the operator on the straight line from x0 to x (Gauss-Legendre quadrature).

    Exact if the gradient on the line is a polynomial of degree below 2 ``points``, as for products of many factors; a
    close approximation for other smooth functions.

    Parameters
    ----------
    points
        Number of quadrature nodes; each evaluates the operator and its VJP once.
    """

    points: int = 8

    def __call__(self, call: Call, *cotangents: Cotangent) -> Sequence[Cotangent]:
        """Write the weighted sum of VJPs at the quadrature nodes."""
        node = compared(call)
        total: list[Cotangent] = []
        for position, weight in zip(*np.polynomial.legendre.leggauss(self.points), strict=True):
            at = float(1 + position) / 2
            inputs = [
                x0 + (x - x0) * at if active and x is not None and x0 is not None else x
                for x, x0, active in zip(node.inputs, node.inputs0, node.active, strict=True)
            ]
            on_line = node.with_tensors(inputs, node.outputs).bind(inputs)
            parts = (None if ct is None else ct * (float(weight) / 2) for ct in cotangents)
            results = Gradient()(on_line, *parts)
            pairs = zip(total or [None] * len(results), results, strict=True)
            total = [b if a is None or b is None else a + b for a, b in pairs]
        return total


@dataclass(frozen=True)
class Quotient:
    """The rule for quotients: D(a / b) = (1 / b)' Da - a' Db / (b b0)."""

    def __call__(self, call: Call, *cotangents: Cotangent) -> Sequence[Cotangent]:
        """Write ct (1 / b)' for a and -ct a' / (b b0) for b."""
        node, ct = compared(call), cotangents[0]
        assert ct is not None
        a, b, a0, b0 = call.x, call.need(1), node.x0, node.need0(1)
        by_a = ct / b if b.name == b0.name else ct * mean(1.0 / b, 1.0 / b0)
        return [by_a if call.active[0] else None, -ct * mean(a, a0) / (b * b0) if call.active[1] else None]


@dataclass(frozen=True)
class LogMean:
    """The rule for softmax: Dy_i = l_i (Dx_i - sum_j l_j Dx_j / sum_j l_j), l the logarithmic mean of y and y0.

    Derivation: let u = log y, so u_i = x_i - L with L = log sum_j exp(x_j). The Rescale rule for exp gives Dy = l Du.
    The y sum to 1 at both points, so sum_i l_i (Dx_i - DL) = 0, which gives DL. LogSoftmax is u itself.
    """

    def __call__(self, call: Call, *cotangents: Cotangent) -> Sequence[Cotangent]:
        """Write l (ct - sum(l ct) / sum(l)) for Softmax, ct - l sum(ct) / sum(l) for LogSoftmax."""
        node, ct = compared(call), cotangents[0]
        assert ct is not None
        log = call.node.op == "LogSoftmax"
        x, y, axes = (call.x, node.x0), (call.y, node.y0), [call.attrs["axis"]]
        u, u0 = y if log else (fn("LogSoftmax", v, axis=call.attrs["axis"]) for v in x)
        average = mean(*(fn("Exp", v) for v in y)) if log else mean(*y)
        # Masked elements have u = u0 = -inf, and fully masked rows are NaN: both get weight 0.
        weight = where(average > 0.0, average * tanhc((u - u0) * 0.5), 0.0)
        total = weight.sum(axes, keepdims=True)
        total = where(total > 0.0, total, 1.0)
        if log:
            return [ct - weight / total * ct.sum(axes, keepdims=True)]
        return [weight * (ct - (weight * ct).sum(axes, keepdims=True) / total)]


@dataclass(frozen=True)
class Extreme:
    """The rule for elementwise Max and Min: the Shapley value of each of two inputs.

    The multiplier of a is the slope of max(a, b) from a0 to a, averaged over b at the input and at the reference. More
    than two inputs are nested: max(max(a, b), c).
    """

    def __call__(self, call: Call, *cotangents: Cotangent) -> Sequence[Cotangent]:
        """Write ct times the averaged slope for each active input."""
        node, ct = compared(call), cotangents[0]
        assert ct is not None
        op, down = call.node.op, OPS.has(call.node, Trait.MINIMUM)
        inputs = [(call.need(i), node.need0(i)) for i in range(len(call.inputs))]
        firsts = inputs[:1]
        for x, x0 in inputs[1:-1]:
            firsts.append((call.op(op, firsts[-1][0], x), call.op(op, firsts[-1][1], x0)))
        results: list[Cotangent] = []
        for first, last in reversed(list(zip(firsts, inputs[1:], strict=True))):
            results.insert(0, ct * _share(last, first, down))
            ct = ct * _share(first, last, down)
        return [r if active else None for r, active in zip([ct, *results], call.active, strict=True)]


def _share(a: tuple[Var, Var], b: tuple[Var, Var], down: bool) -> Var:
    """Write the slope of max(a, b), or min if ``down``, from a0 to a, averaged over b and b0."""

    def slope(other: Var) -> Var:
        ends = [other - v if down else v - other for v in a]
        return ramp(ends[0], ends[1], at_zero=0.5)

    return mean(slope(b[0]), slope(b[1]))


@dataclass(frozen=True)
class CrossMax:
    """The rule for the maximum of several elements, such as max pooling (as in captum and SHAP).

    A rise of the maximum is attributed to the element that is largest at the input, a fall to the element that was
    largest at the reference. That element has changed at least as much as the maximum, so no multiplier exceeds 1. If
    several are largest, the operator's gradient chooses. For minima, rise and fall are swapped.
    """

    def __call__(self, call: Call, *cotangents: Cotangent) -> Sequence[Cotangent]:
        """Write the contribution of each element divided by Dx; the gradient where Dx = 0."""
        node, ct = compared(call), cotangents[0]
        assert ct is not None
        full = [
            x0 if x is None or x0 is None or x.shape == x0.shape else call.op("Expand", x0, x.sizes(), known=x.shape)
            for x, x0 in zip(node.inputs, node.inputs0, strict=True)
        ]
        before = node.with_tensors(node.inputs, node.outputs).bind(full)
        change, (outward, inward) = call.y - before.y, (positive, negative)
        if OPS.has(call.node, Trait.MINIMUM):
            outward, inward = inward, outward
        rises, falls = Gradient()(call, ct * outward(change)), Gradient()(before, ct * inward(change))
        rows = zip(rises, falls, Gradient()(call, ct), node.inputs, full, strict=False)
        return [_multiplier(*row) for row in rows]


def _multiplier(rise: Cotangent, fall: Cotangent, gradient: Cotangent, x: Var | None, x0: Var | None) -> Cotangent:
    """Write (rise + fall) / (x - x0), the gradient where x = x0; None for an input without cotangent."""
    if rise is None or fall is None or gradient is None or x is None or x0 is None:
        return None
    contribution, change = rise + fall, x - x0
    return where(change.equal(0.0), gradient, contribution / change)


@dataclass(frozen=True)
class WhereRule:
    """The rule for y = Where(condition, a, b).

    Where the condition is the same at both points, it is the gradient. Elsewhere both a and b get m = Dy / (Da + Db).
    If a and b are functions of the same x, as in activations spelled out with Where, that is the Rescale rule.
    """

    def __call__(self, call: Call, *cotangents: Cotangent) -> Sequence[Cotangent]:
        """Write the gradient where the condition is unchanged, ct Dy / (Da + Db) elsewhere."""
        node, ct = compared(call), cotangents[0]
        assert ct is not None
        gradients = Gradient()(call, ct)
        if call.x.name == node.x0.name:
            return gradients
        steps = [call.need(i) - node.need0(i) for i in (1, 2) if call.active[i]]
        step = functools.reduce(operator.add, steps)
        share = where(step.equal(0.0), 0.0, ct * (call.y - node.y0) / step)
        same = call.op("Not", call.op("Xor", call.x, node.x0))
        return [None if g is None else where(same, g, share) for g in gradients]


@dataclass(frozen=True)
class Standardized:
    """The rule for normalisation layers, y = c r with c = x - mean(x) and r = 1 / sqrt(v + epsilon), v the variance.

    Derivation: D(c r) = r' Dc + c' Dr;  Dr = -q Dv with q = r^2 r0^2 / (r + r0);  Dv = 2 mean(c' Dc).
    """

    def __call__(self, call: Call, *cotangents: Cotangent) -> Sequence[Cotangent]:
        """Write the multiplier of x, scaled by the layer's weights, in the dtype of the layer's statistics."""
        node, ct = compared(call), cotangents[0]
        assert ct is not None
        x, x0, attrs = norms.wide(call.x), norms.wide(node.x0), call.attrs
        ct, epsilon = norms.wide(ct), attrs.get("epsilon", MVN_EPSILON)
        if call.node.op == "LayerNormalization":
            axes = list(range(attrs["axis"] % x.rank, x.rank))
            return norms.fit(call, _standardized(ct * norms.wide(call.need(1)), x, x0, axes, epsilon))
        if call.node.op == "MeanVarianceNormalization":
            return norms.fit(call, _standardized(ct, x, x0, [a % x.rank for a in attrs["axes"]], epsilon))
        scaled = ct * norms.column(norms.wide(call.need(1)), x)
        scaled, before, after = (_grouped(call, v) for v in (scaled, x0, x))
        return norms.fit(call, _standardized(scaled, after, before, [2], epsilon).reshape_like(x))


def _grouped(call: Call, x: Var) -> Var:
    groups = call.attrs.get("num_groups", 0)  # Reshape keeps the channel axis for 0: one group per channel
    assert x.shape is not None
    return x.reshape([0, groups, -1], (x.shape[0], groups or x.shape[1], None))


def _standardized(ct: Var, x: Var, x0: Var, axes: Sequence[int], epsilon: float) -> Var:
    (c, r), (c0, r0) = (norms.statistics(v, axes, epsilon) for v in (x, x0))
    q = r * r * r0 * r0 / (r + r0)
    centered = mean(c, c0)
    by_c = mean(r, r0) * ct - centered * (2.0 * q * norms.mean(centered * ct, axes))
    return by_c - norms.mean(by_c, axes)
