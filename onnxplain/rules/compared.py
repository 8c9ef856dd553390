"""A node bound to two points, the input and the reference, and the slope of a function between them (DeepLIFT)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxplain.graph.var import Var, where
from onnxplain.ops import OPS, Call
from onnxplain.ops.activation import fn
from onnxplain.ops.table import Cotangent
from onnxplain.rules.base import Rule


@dataclass(frozen=True)
class Compared(Call):
    """A node bound to its tensors at the input and at the reference.

    Attributes
    ----------
    inputs0, outputs0
        The tensors at the reference. Their batch axis may have size 1: one row for all samples.
    """

    inputs0: tuple[Var | None, ...] = ()
    outputs0: tuple[Var | None, ...] = ()

    @classmethod
    def of(cls, call: Call, names: Mapping[str, str]) -> Compared:
        """Look up the tensors at the reference.

        Parameters
        ----------
        call
            The node at the input.
        names
            Tensor name at the input -> tensor name at the reference, for tensors that differ between the two.
        """
        inputs0, outputs0 = (
            tuple(None if v is None else call.emitter.var(names.get(v.name, v.name)) for v in tensors)
            for tensors in (call.inputs, call.outputs)
        )
        return cls(call.emitter, call.node, call.inputs, call.outputs, call.active, inputs0, outputs0)

    @property
    def x0(self) -> Var:
        """First input at the reference."""
        return self.need0(0)

    @property
    def y0(self) -> Var:
        """First output at the reference."""
        y0 = self.outputs0[0]
        assert y0 is not None
        return y0

    def need0(self, index: int) -> Var:
        """Return the input at a position, at the reference; AssertionError if it is missing."""
        value = self.inputs0[index]
        assert value is not None
        return value

    @property
    def data(self) -> int:
        """Position of the first active input: of the active one, in rules for nodes with a single active input."""
        return self.active.index(True)

    def with_tensors(self, inputs: Sequence[Var | None], outputs: Sequence[Var | None]) -> Call:
        """Bind the node to other tensors, as a plain `Call`."""
        return Call(self.emitter, self.node, tuple(inputs), tuple(outputs), self.active)

    def place(self, cotangent: Cotangent) -> list[Cotangent]:
        """Return ``cotangent`` for the active inputs and None for the others."""
        return [cotangent if active else None for active in self.active]


@dataclass(frozen=True)
class Between:
    """Adapter that gives a DeepLIFT rule, which needs a `Compared`, the interface of `onnxplain.rules.base.Rule`.

    Attributes
    ----------
    rule
        The DeepLIFT rule.
    names
        Tensor name at the input -> tensor name at the reference, for tensors that differ between the two.
    """

    rule: Rule
    names: Mapping[str, str]

    def __call__(self, call: Call, *cotangents: Cotangent) -> Sequence[Cotangent]:
        """Apply ``rule`` to the node at both points."""
        return self.rule(Compared.of(call, self.names), *cotangents)


def compared(call: Call) -> Compared:
    """Narrow the type of ``call``: DeepLIFT's rules always get a `Compared`, through `Between`."""
    assert isinstance(call, Compared)
    return call


def mean(a: Var, b: Var) -> Var:
    """Write (a + b) / 2; if both are the same tensor, return it."""
    return a if a.name == b.name else (a + b) * 0.5


def tanhc(x: Var) -> Var:
    """Write tanh(x) / x, which is 1 at 0."""
    x = x + 1e-30  # avoids 0 / 0; larger x absorb it, and for smaller ones the quotient is 1 in any case
    return fn("Tanh", x) / x


def ramp(a: Var, b: Var, at_zero: float = 0.0) -> Var:
    """Write the slope of Relu, (max(a, 0) - max(b, 0)) / (a - b).

    Where a = b it is the derivative; ``at_zero`` is its value at a = b = 0.
    """
    tiny = _tiny(a)
    # This avoids 0 / 0 at a = b = 0. At a = b > 0 the quotient is inf, and Clip makes it 1, the right slope. For a
    # fixed reference, the subtraction is constant-folded.
    b = b - tiny
    high = a.emitter.op("Max", a, b)
    return fn("Clip", (high + at_zero * tiny if at_zero else high) / abs(a - b), 0, 1)


def _tiny(x: Var) -> float:
    """Return a number that can be divided by and that is absorbed when added to any normal number of x's dtype."""
    return 4 * float(np.finfo(x.dtype).tiny)


def secant(call: Call, ct: Var, a: Var, b: Var) -> Var:
    """Write ct (f(a) - f(b)) / (a - b), for an elementwise operator f of one active input; ct f'(a) where a = b."""
    at = call.active.index(True)
    at_a, at_b, middle = (
        call.bind([v if i == at else x for i, x in enumerate(call.inputs)]) for v in (a, b, (a + b) * 0.5)
    )
    fa, fb = at_a.y, at_b.y
    known = SECANTS.get(call.node.op)
    slope = known(call, a, b, fa, fb) if known else None
    if slope is not None:
        return ct * slope
    tangent = OPS[call.node.op].vjp(middle, ct)[at]
    assert tangent is not None
    change, step = ct * (fa - fb), a - b
    # f(a) - f(b) cancels where a and b are close. Where the tangent at the midpoint predicts the change of f to within
    # rounding error (8 machine epsilons of f(a), which is as large as f(b) there), it replaces the secant.
    unsure = abs(ct * fa) * (8 * float(np.finfo(a.dtype).eps))
    return where(abs(change - tangent * step) <= unsure, tangent, change / step)


def _power(call: Call, a: Var, b: Var, fa: Var, fb: Var) -> Cotangent:
    exponent = call.need(1).value
    if exponent is None or exponent.size != 1:
        return None
    return {2.0: a + b, 0.5: _sqrt(call, a, b, fa, fb)}.get(float(exponent.flat[0]))


def _sqrt(call: Call, a: Var, b: Var, fa: Var, fb: Var) -> Var:
    return where((fa + fb) > 0.0, 1.0 / (fa + fb), 0.0)


def _clip(call: Call, a: Var, b: Var, fa: Var, fb: Var) -> Cotangent:
    """Write (f(a) - f(b)) / (a - b) itself: Clip rounds nothing, so its differences are as exact as its input's."""
    low, high = (call.input(i) for i in (1, 2))
    if low is None or high is None or low.value is None or high.value is None or not (low.value < high.value).all():
        return None
    tiny = _tiny(a)
    return (fa - fb + fb.above(low) * fb.below(high) * tiny) / (a - b + tiny)


# Operator -> the slope (f(a) - f(b)) / (a - b) as a function of (call, a, b, f(a), f(b)): in a form without
# cancellation, equal to the derivative where a = b. None: no such form for this node, see `secant`.
SECANTS: dict[str, Callable[[Call, Var, Var, Var, Var], Cotangent]] = {
    "Clip": _clip,
    "Exp": lambda call, a, b, fa, fb: mean(fa, fb) * tanhc((a - b) * 0.5),
    "LeakyRelu": lambda call, a, b, fa, fb: ramp(a, b) * (1 - call.attrs["alpha"]) + call.attrs["alpha"],
    "Pow": _power,
    "Reciprocal": lambda call, a, b, fa, fb: -(fa * fb),
    "Relu": lambda call, a, b, fa, fb: ramp(a, b),
    "Sigmoid": lambda call, a, b, fa, fb: (fa * (0.5 - fb) + fb * 0.5) * tanhc((a - b) * 0.5),
    "Sqrt": _sqrt,
    "Tanh": lambda call, a, b, fa, fb: (1.0 - fa * fb) * tanhc(a - b),
}
