"""A node at two points, the input and a reference, and the slope of a function between them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxplain.graph.emit import Var, where
from onnxplain.ops import OPS, Call
from onnxplain.ops.activation import fn
from onnxplain.ops.table import Cotangent
from onnxplain.rules.base import Rule


@dataclass(frozen=True)
class Compared(Call):
    """A node bound to its tensors at the input, and to those at the reference: ``inputs0`` and ``outputs0``.

    Tensors at the reference may have one row for all samples.
    """

    inputs0: tuple[Var | None, ...] = ()
    outputs0: tuple[Var | None, ...] = ()

    @classmethod
    def of(cls, call: Call, names: Mapping[str, str]) -> Compared:
        """Look up the tensors at the reference; ``names``: tensor -> its name there, if it is another one."""
        there = [
            tuple(None if v is None else call.emitter.var(names.get(v.name, v.name)) for v in tensors)
            for tensors in (call.inputs, call.outputs)
        ]
        return cls(call.emitter, call.node, call.inputs, call.outputs, call.active, *there)

    @property
    def x0(self) -> Var:
        """The first input at the reference."""
        return self.need0(0)

    @property
    def y0(self) -> Var:
        """The first output at the reference."""
        y0 = self.outputs0[0]
        assert y0 is not None
        return y0

    def need0(self, index: int) -> Var:
        """A required input at the reference, by position."""
        value = self.inputs0[index]
        assert value is not None
        return value

    @property
    def data(self) -> int:
        """Which input is active, where only one is."""
        return self.active.index(True)

    def with_tensors(self, inputs: Sequence[Var | None], outputs: Sequence[Var | None]) -> Call:
        """The plain node, bound to other tensors."""
        return Call(self.emitter, self.node, tuple(inputs), tuple(outputs), self.active)

    def place(self, cotangent: Cotangent) -> list[Cotangent]:
        """``cotangent`` for the active input, None for the others."""
        return [cotangent if active else None for active in self.active]


@dataclass(frozen=True)
class Between:
    """A rule that takes a `Compared`, as a rule of the walk."""

    rule: Rule
    names: Mapping[str, str]

    def __call__(self, call: Call, *cotangents: Cotangent) -> Sequence[Cotangent]:
        """See `onnxplain.rules.base.Rule`."""
        return self.rule(Compared.of(call, self.names), *cotangents)


def compared(call: Call) -> Compared:
    """The call as what it is when DeepLIFT's rules get it."""
    assert isinstance(call, Compared)
    return call


def mean(a: Var, b: Var) -> Var:
    """(a + b) / 2; of two that are the same, that one."""
    return a if a.name == b.name else (a + b) * 0.5


def tanhc(x: Var) -> Var:
    """Calculate tanh(x) / x; 1 at 0."""
    x = x + 1e-30  # changes nothing but 0
    return fn("Tanh", x) / x


def ramp(a: Var, b: Var, at_zero: float = 0.0) -> Var:
    """(max(a, 0) - max(b, 0)) / (a - b); where a = b the derivative, which is ``at_zero`` at 0."""
    tiny = _tiny(a)
    b = b - tiny  # nothing is 0 / 0 then; x / 0 is left, and right. Of a fixed reference, this is calculated only once.
    high = a.emitter.op("Max", a, b)
    return fn("Clip", (high + at_zero * tiny if at_zero else high) / abs(a - b), 0, 1)


def _tiny(x: Var) -> float:
    """Changes nothing but 0, and can be divided by."""
    return 4 * float(np.finfo(x.dtype).tiny)


def secant(call: Call, ct: Var, a: Var, b: Var) -> Var:
    """Calculate ct (f(a) - f(b)) / (a - b) for an elementwise f of one active input; ct f'(a) where a = b."""
    at = call.active.index(True)
    here, there, middle = (
        call.bind([v if i == at else x for i, x in enumerate(call.inputs)]) for v in (a, b, (a + b) * 0.5)
    )
    fa, fb = here.y, there.y
    known = SECANTS.get(call.node.op)
    slope = known(call, a, b, fa, fb) if known else None
    if slope is not None:
        return ct * slope
    tangent = OPS[call.node.op].vjp(middle, ct)[at]
    assert tangent is not None
    change, step = ct * (fa - fb), a - b
    # The tangent halfway is taken where no digit of f tells it from the secant, whose own digits are lost there. There,
    # f(a) and f(b) are as large as each other.
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
    """The quotient itself: what Clip gives is exact, so that differences of it are as good as those of its input."""
    low, high = (call.input(i) for i in (1, 2))
    if low is None or high is None or low.value is None or high.value is None or not (low.value < high.value).all():
        return None
    tiny = _tiny(a)
    return (fa - fb + fb.above(low) * fb.below(high) * tiny) / (a - b + tiny)


# Operator -> the slope of f from b to a, given a, b, f(a), f(b): without cancellation, and the derivative where a = b.
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
