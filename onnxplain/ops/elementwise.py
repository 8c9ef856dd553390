"""Elementwise functions of several inputs, with ct the cotangent of y. The reverse walk undoes broadcasts."""

from __future__ import annotations

from collections.abc import Sequence

from onnxplain.graph.var import Var, where
from onnxplain.ops.table import Call, Cotangent, Kind, OpTable
from onnxplain.ops.traits import Trait


def sum_kind(call: Call) -> Kind:
    """SUM where several inputs are active, a shift by a constant (AFFINE) where one is."""
    return Kind.SUM if sum(call.active) > 1 else Kind.AFFINE


def product_kind(call: Call) -> Kind:
    """PRODUCT where several inputs are active, a scale by a constant (AFFINE) where one is."""
    return Kind.PRODUCT if sum(call.active) > 1 else Kind.AFFINE


def quotient_kind(call: Call) -> Kind:
    """ACTIVATION where a constant is divided by an active input, otherwise as for a product."""
    return product_kind(call) if call.active[0] else Kind.ACTIVATION


def nonlinear_kind(call: Call) -> Kind:
    """PRODUCT where several inputs are active, ACTIVATION where one is."""
    return Kind.PRODUCT if sum(call.active) > 1 else Kind.ACTIVATION


def choice_kind(call: Call) -> Kind:
    """MAX_POOL where several inputs are active, ACTIVATION where one is."""
    return Kind.MAX_POOL if sum(call.active) > 1 else Kind.ACTIVATION


TABLE = OpTable(sum_kind, Trait.ELEMENTWISE)


@TABLE.vjp("Add", broadcast=True, traits=Trait.AFFINE | Trait.KEEPS_NON_NEGATIVE | Trait.ON_INTEGERS)
@TABLE.vjp("Sum", broadcast=True, traits=Trait.KEEPS_NON_NEGATIVE)
def add(call: Call, ct: Var) -> Sequence[Cotangent]:
    """For y = a + b + ...: ct to each."""
    return [ct] * len(call.inputs)


@TABLE.vjp("Sub", broadcast=True, traits=Trait.AFFINE | Trait.ON_INTEGERS)
def sub(call: Call, ct: Var) -> Sequence[Cotangent]:
    """For y = a - b: ct to a, -ct to b."""
    return [ct, -ct if call.active[1] else None]


@TABLE.vjp("Mean", broadcast=True)
def mean(call: Call, ct: Var) -> Sequence[Cotangent]:
    """For y = (a + b + ...) / n: ct / n to each."""
    return [ct * (1 / len(call.inputs))] * len(call.inputs)


@TABLE.vjp(
    "Mul",
    kind=product_kind,
    broadcast=True,
    traits=Trait.AFFINE | Trait.QUADRATIC | Trait.KEEPS_NON_NEGATIVE | Trait.ON_INTEGERS,
)
def mul(call: Call, ct: Var) -> Sequence[Cotangent]:
    """For y = a b: ct b to a, ct a to b."""
    a, b = call.x, call.need(1)
    return [ct * b if call.active[0] else None, ct * a if call.active[1] else None]


@TABLE.vjp(
    "Div", kind=quotient_kind, broadcast=True, traits=Trait.AFFINE | Trait.KEEPS_NON_NEGATIVE | Trait.ON_INTEGERS
)
def div(call: Call, ct: Var) -> Sequence[Cotangent]:
    """For y = a / b: ct / b to a, -ct y / b to b."""
    share = ct / call.need(1)
    return [share, -share * call.y if call.active[1] else None]


@TABLE.vjp("Mod", kind=nonlinear_kind, broadcast=True, traits=Trait.ON_INTEGERS)
def mod(call: Call, ct: Var) -> Sequence[Cotangent]:
    """For floats, y = fmod(a, b) = a - n b with a whole number n: ct to a, -n ct to b."""
    a, b = call.x, call.need(1)
    return [ct, ct * ((call.y - a) / b) if call.active[1] else None]


@TABLE.vjp("Pow", kind=nonlinear_kind, broadcast=True)
def power(call: Call, ct: Var) -> Sequence[Cotangent]:
    """For y = x^p: ct p x^(p-1) to x, ct y log(x) to p."""
    base, exponent = call.x, call.need(1)
    by_base = by_exponent = None
    if call.active[0]:
        by_base = ct * power_slope(base, exponent, call.y)
    if call.active[1]:
        # As in PyTorch: 0 at base 0, and NaN at negative bases, which have real powers at whole exponents only.
        log = call.op("Log", where(base.equal(0), 1, base))
        by_exponent = (ct * call.y * log).cast(exponent.dtype)
    return [by_base, by_exponent]


def power_slope(x: Var, p: Var, y: Var) -> Var:
    """Derivative of y = x^p by x, p x^(p-1), without a second Pow if possible: one costs about ten products."""
    same = p.value is not None and p.value.size and (p.value == p.value.flat[0]).all()
    c = float(p.value.flat[0]) if p.value is not None and same else None
    if c == 2:
        return x * 2
    if c == 3:
        return x * x * 3
    if c == 0.5:
        return 0.5 / y
    if c == -1:
        return -(y * y)
    if c is not None and not 0 <= c <= 1:
        return y * c / where(x.equal(0), 1, x)  # at x = 0, the derivative is y: 0 or infinite
    p = p.cast(x.dtype)
    return p * x ** (where(p.equal(0), 1, p) - 1)  # x^0 is constant, also at x = 0


@TABLE.vjp("Max", kind=choice_kind, broadcast=True, traits=Trait.KEEPS_NON_NEGATIVE | Trait.ON_INTEGERS)
@TABLE.vjp("Min", kind=choice_kind, broadcast=True, traits=Trait.MINIMUM | Trait.KEEPS_NON_NEGATIVE | Trait.ON_INTEGERS)
def extreme(call: Call, ct: Var) -> Sequence[Cotangent]:
    """Inputs that reach the extreme share ct equally, as in torch.maximum."""
    hits = [i.equal(call.y).cast(ct.dtype) for i in call.inputs if i is not None]
    share = ct / sum(hits[1:], hits[0])
    return [share * hit if active else None for hit, active in zip(hits, call.active, strict=True)]


@TABLE.vjp("Where", kind=Kind.MOVEMENT, broadcast=True, traits=Trait.ON_BOOLEANS)
def choose(call: Call, ct: Var) -> Sequence[Cotangent]:
    """Each element of ct goes to the input that was chosen there."""
    condition = call.x
    return [None, ct.mask(condition) if call.active[1] else None, ct.mask(~condition) if call.active[2] else None]
