"""Elementwise nonlinear functions y = f(x): the cotangent of x is f'(x) times ct, the cotangent of y.

Derivatives at kinks are those of PyTorch. Masks are computed from y where y determines them: ONNX Runtime can then keep
f fused with the layer before it. Every operator in a derivative has a CUDA kernel (among the operators of the table,
Cosh, Tan and Mish have none), and nothing overflows unless the derivative itself does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from onnxplain.graph.var import Var, where
from onnxplain.ops.table import Call, Cotangent, Kind, OpTable
from onnxplain.ops.traits import Trait

TABLE = OpTable(Kind.ACTIVATION)


def fn(op: str, x: Var, *numbers: float, **attrs: Any) -> Var:
    """Apply an elementwise operator to x and to numbers in the dtype of x."""
    return x.emitter.op(op, x, *map(x.like, numbers), known=x.shape, **attrs)


def complement(y: Var) -> Var:
    """Write 1 - y for y from 0 to 1, as a HardSigmoid, which ONNX Runtime leaves in the layout of convolutions."""
    return fn("HardSigmoid", y, alpha=-1.0, beta=1.0) if y.dtype == np.float32 else 1 - y


def gelu_slope(x: Var, approximate: str) -> Var:
    """Derivative of Gelu, y = x P(X < x) for a standard normal X, or its approximation by tanh."""
    if approximate == "tanh":  # y = x (1 + tanh u) / 2,  u = k x + k c x^3,  hence x u' = 3 u - 2 k x
        x = fn("Clip", x, -10, 10)  # the slope is 0 or 1 beyond, and x^3 cannot overflow
        kx = x * math.sqrt(2 / math.pi)
        u = kx * (x * x * 0.044715 + 1)
        t = fn("Tanh", u)
        return (t + 1 + (1 - t * t) * (u * 3 - kx * 2)) * 0.5
    density = fn("Exp", x * x * -0.5) * (1 / math.sqrt(2 * math.pi))
    return (fn("Erf", x * math.sqrt(0.5)) + 1) * 0.5 + x * density


def mish_slope(x: Var) -> Var:
    """Derivative of Mish, y = x s (1 + q) / (1 + q^2) with s = sigmoid(x) and q = 1 - s, which never overflow."""
    s = fn("Sigmoid", x)
    q = 1 - s
    q2 = q * q
    d = q2 + 1
    return s * (q + 1 + x * q2 * 4 / d) / d


def hard_swish_slope(x: Var) -> Var:
    """Derivative of HardSwish, y = x h with h = max(0, min(1, x/6 + 1/2)): h + x/6 where abs(x) < 3."""
    return fn("HardSigmoid", x, alpha=1 / 6, beta=0.5) + (x * (1 / 6)).mask(abs(x) < 3)


def elu_slope(x: Var, y: Var, above: float, at_zero: float) -> Var:
    """Derivative of Elu and Selu: ``above`` for x > 0, else y + at_zero, which equals at_zero exp(x)."""
    if above == at_zero:  # no kink
        return fn("Min", y + at_zero, above)
    return where(x > 0, above, y + at_zero)


TABLE.unary(
    Acos=lambda ct, x, y: -ct / fn("Sqrt", 1 - x * x),
    Acosh=lambda ct, x, y: ct / fn("Sqrt", x * x - 1),
    Asin=lambda ct, x, y: ct / fn("Sqrt", 1 - x * x),
    Asinh=lambda ct, x, y: ct / fn("Sqrt", x * x + 1),
    Atan=lambda ct, x, y: ct / (x * x + 1),
    Atanh=lambda ct, x, y: ct / (1 - x * x),
    Celu=lambda ct, x, y, *, alpha: ct * fn("Min", y * (1 / alpha) + 1, 1),
    Cos=lambda ct, x, y: -ct * fn("Sin", x),
    Cosh=lambda ct, x, y: ct * (y * fn("Tanh", x)),
    Elu=lambda ct, x, y, *, alpha: ct * elu_slope(x, y, 1, alpha),
    Erf=lambda ct, x, y: ct * (fn("Exp", -(x * x)) * (2 / math.sqrt(math.pi))),
    Gelu=lambda ct, x, y, *, approximate: ct * gelu_slope(x, approximate),
    HardSwish=lambda ct, x, y: ct * hard_swish_slope(x),
    LeakyRelu=lambda ct, x, y, *, alpha: ct * where((y if alpha >= 0 else x) > 0, ct.like(1), ct.like(alpha)),
    Log=lambda ct, x, y: ct / x,
    Mish=lambda ct, x, y: ct * mish_slope(x),
    Reciprocal=lambda ct, x, y: -ct * (y * y),
    Selu=lambda ct, x, y, *, alpha, gamma: ct * elu_slope(x, y, gamma, alpha * gamma),
    Shrink=lambda ct, x, y, *, lambd: ct.mask((x < -lambd) | (x > lambd)),
    Sin=lambda ct, x, y: ct * fn("Cos", x),
    Sinh=lambda ct, x, y: ct * ((fn("Exp", x) + fn("Exp", -x)) * 0.5),
    Softsign=lambda ct, x, y: ct / ((abs(x) + 1) * (abs(x) + 1)),
    Tan=lambda ct, x, y: ct * (y * y + 1),
    Tanh=lambda ct, x, y: ct * (1 - y * y),
    ThresholdedRelu=lambda ct, x, y, *, alpha: ct * x.above(alpha),
)
TABLE.unary(
    Trait.NON_NEGATIVE,
    Exp=lambda ct, x, y: ct * y,
    HardSigmoid=lambda ct, x, y, *, alpha: ct * alpha * y.above(0) * y.below(1),
    Relu=lambda ct, x, y: ct * y.above(),
    Sigmoid=lambda ct, x, y: ct * (y * complement(y)),
    Softplus=lambda ct, x, y: ct * fn("Sigmoid", x),
    Sqrt=lambda ct, x, y: ct / (y + y),
)
TABLE.unary(Trait.NON_NEGATIVE | Trait.ON_INTEGERS, Abs=lambda ct, x, y: ct * fn("Sign", x))


@TABLE.vjp("Neg", kind=Kind.AFFINE, traits=Trait.AFFINE | Trait.ON_INTEGERS)
def neg(call: Call, ct: Var) -> Sequence[Cotangent]:
    """For y = -x: -ct."""
    return [-ct]


@TABLE.vjp("PRelu", broadcast=True)
def prelu(call: Call, ct: Var) -> Sequence[Cotangent]:
    """For y = x where x > 0, else slope x: ct or ct slope to x, ct min(x, 0) to the slope."""
    x, slope = call.x, call.need(1)
    return [where(x > 0, ct, ct * slope), ct * fn("Min", x, 0) if call.active[1] else None]


@TABLE.vjp("Clip", broadcast=True, traits=Trait.ON_INTEGERS | Trait.ELEMENTWISE)
def clip(call: Call, ct: Var) -> Sequence[Cotangent]:
    """Each element's cotangent goes to x, or to the bound that y has reached; at the bounds as in PyTorch's ReLU6."""
    low, high = call.input(1), call.input(2)
    above = None if low is None else call.y.above(low)
    below = None if high is None else call.y.below(high)
    inside = ct
    for side in (above, below):
        inside = inside if side is None else inside * side
    cotangents: list[Cotangent] = [inside, None, None]
    if above is not None and call.active[1]:
        cotangents[1] = ct * (1 - above) * (1 if below is None else below)
    if below is not None and call.active[2]:
        cotangents[2] = ct * (1 - below)
    return cotangents
