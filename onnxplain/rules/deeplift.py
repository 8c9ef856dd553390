"""DeepLIFT's own rules [shrikumar]_: Linear, Rescale and RevealCancel.

Dx is the difference of x between the input and the reference. The multiplier m of x is the number for which m Dx is the
contribution of x to the difference of the score. Dx splits into a positive part Dx+ and a negative part Dx-, with
multipliers m+ and m-.

The two multipliers differ only between a linear layer and the activation behind it. So the reverse walk carries their
mean m = (m+ + m-) / 2 as its cotangent, and half their difference, h = (m+ - m-) / 2, goes beside it for these few
nodes (`Halves`).

In these terms the Linear rule is one line. For y = W x the positive part of Dy is W+ Dx+ + W- Dx- =
(W Dx + |W| |Dx|) / 2, so the multiplier of x is W^T m + sign(Dx) |W|^T h. Where Dx = 0, m+ and m- count half each, as
in the paper.

References
----------
.. [shrikumar] Shrikumar et al. 2017, Learning important features through propagating activation differences, ICML.
   The authors' implementation is kundajelab/deeplift. Where a part is 0, its multiplier here is the gradient;
   kundajelab/deeplift approximates that by a difference quotient whose step float32 rounds to 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from onnxplain.graph.var import Var, sum_to
from onnxplain.ops import OPS, Call, Kind
from onnxplain.ops.activation import fn
from onnxplain.ops.parts import Sums
from onnxplain.ops.table import Cotangent
from onnxplain.rules.base import Gradient, LinearMap
from onnxplain.rules.compared import Compared, compared, secant


class Spreads(Protocol):
    """A rule that can split the difference of its node's output into a positive and a negative part."""

    def spread(self, call: Compared) -> Var:
        """Write Dy+ - Dy-, the positive minus the negative part of the output's difference."""
        ...


@dataclass(frozen=True)
class Halves:
    """State that the rules of an activation and of the linear layer before it share during the reverse walk.

    The one mutable value among the rules: RevealCancel adds to ``arrived``, the layer's rule reads it.

    Attributes
    ----------
    names
        Tensor name at the input -> tensor name at the reference.
    makers
        Tensor name -> (the node that computes it, that node's rule).
    arrived
        Tensor name -> h = (m+ - m-) / 2, summed over the readers of the tensor.
    """

    names: Mapping[str, str]
    makers: dict[str, tuple[Call, Spreads]] = field(default_factory=dict)
    arrived: Sums = field(default_factory=Sums)

    def spread(self, name: str) -> Var:
        """Write Dx+ - Dx- of the tensor x of this name, by the rule of the node that computes it."""
        call, rule = self.makers[name]
        return rule.spread(Compared.of(call, self.names))

    def of(self, call: Call) -> Cotangent:
        """Return h of a node's first output; None if no activation has added one."""
        return self.arrived.get(call.node.outputs[0])


@dataclass(frozen=True)
class Rescale:
    """The Rescale rule for elementwise functions: m_x = m_y Dy / Dx, the gradient where Dx = 0 [shrikumar]_."""

    def __call__(self, call: Call, *cotangents: Cotangent) -> Sequence[Cotangent]:
        """Write m_y Dy / Dx."""
        node, ct = compared(call), cotangents[0]
        assert ct is not None
        return node.place(secant(call, ct, node.need(node.data), node.need0(node.data)))


@dataclass(frozen=True)
class RevealCancel:
    """The RevealCancel rule for elementwise functions: m_x+ = m_y Dy+ / Dx+ and m_x- = m_y Dy- / Dx- [shrikumar]_.

    Dy+ is the mean of two changes of y: that by Dx+ alone, and that by Dx+ once Dx- has been added. Dy- likewise. It
    sees what a positive and a negative contribution do together where Rescale sees only their sum.

    Attributes
    ----------
    halves
        Shared with the linear layer before it; set by the composite.
    """

    halves: Halves | None = field(default=None, repr=False)

    def __call__(self, call: Call, *cotangents: Cotangent) -> Sequence[Cotangent]:
        """Write m = (m_x+ + m_x-) / 2, and add h = (m_x+ - m_x-) / 2 to ``halves``."""
        node, ct = compared(call), cotangents[0]
        assert ct is not None
        assert self.halves is not None
        name, x, x0 = node.node.inputs[node.data], node.need(node.data), node.need0(node.data)
        spread, change = self.halves.spread(name), x - x0
        risen, fallen = x0 + (change + spread) * 0.5, x0 + (change - spread) * 0.5
        plus = secant(call, ct, risen, x0) + secant(call, ct, x, fallen)
        minus = secant(call, ct, fallen, x0) + secant(call, ct, x, risen)
        y, broadcast = call.y, OPS[call.node.op].broadcast
        half = (plus - minus) * 0.25
        self.halves.arrived.add(name, sum_to(half, y.shape, x) if broadcast else half)
        return node.place((plus + minus) * 0.25)


@dataclass(frozen=True)
class Linear:
    """The Linear rule, m_x = W^T m + sign(Dx) |W|^T h: separate multipliers for positive and negative contributions.

    Attributes
    ----------
    halves
        Shared with the activation behind the layer; without it, h = 0 and the rule is the gradient.
    """

    halves: Halves | None = field(default=None, repr=False)

    def __call__(self, call: Call, *cotangents: Cotangent) -> Sequence[Cotangent]:
        """Write W^T m + sign(Dx) |W|^T h."""
        means = Gradient()(call, *cotangents)
        half = self.halves.of(call) if self.halves else None
        if half is None:
            return means
        node = compared(call)
        if _sums(call):
            sides: Sequence[Cotangent] = [half] * len(call.inputs)
        else:
            sides = node.place(_absolute(call).vjp(half))
        pairs = zip(node.inputs, node.inputs0, strict=True)
        signs = [None if x is None or x0 is None else fn("Sign", x - x0) for x, x0 in pairs]
        rows = zip(means, signs, sides, strict=False)
        return [None if m is None or s is None or h is None else m + s * h for m, s, h in rows]

    def spread(self, call: Compared) -> Var:
        """Write |W| |Dx|, which is Dy+ - Dy-."""
        if _sums(call):
            steps = [abs(call.need(i) - call.need0(i)) for i, active in enumerate(call.active) if active]
            return call.op("Sum", *steps, known=call.y.shape)
        return _absolute(call)(abs(call.need(call.data) - call.need0(call.data)))


@dataclass(frozen=True)
class Through:
    """The rule of scales, shifts and movements between a layer and its activation: the gradient, for m and for h.

    A negative scale swaps the positive and the negative part.

    Attributes
    ----------
    halves
        Shared with the layer and the activation; set by the composite.
    """

    halves: Halves | None = field(default=None, repr=False)

    def __call__(self, call: Call, *cotangents: Cotangent) -> Sequence[Cotangent]:
        """Write J^T m, and add |J|^T h to ``halves`` for the input."""
        assert self.halves is not None
        half, at = self.halves.of(call), compared(call).data
        if half is not None:
            passed = Gradient()(call, half)[at]
            assert passed is not None
            x, row = call.need(at), OPS[call.node.op]
            if passed is not half and row.kind_of(call) & Kind.AFFINE:
                passed = abs(passed) * fn("Sign", half)
            summed = sum_to(passed, call.y.shape, x) if row.broadcast else passed
            self.halves.arrived.add(call.node.inputs[at], summed)
        return Gradient()(call, *cotangents)

    def spread(self, call: Compared) -> Var:
        """Write Dy+ - Dy-: the input's spread, moved or scaled by |J| like the input."""
        assert self.halves is not None
        spread = self.halves.spread(call.node.inputs[call.data])
        if OPS[call.node.op].kind_of(call) & Kind.MOVEMENT:
            return call.bind([spread if active else x for active, x in zip(call.active, call.inputs, strict=True)]).y
        scaled = Gradient()(call, spread)[call.data]  # J^T spread is J spread: elementwise scales are symmetric maps
        assert scaled is not None
        return scaled if scaled is spread else abs(scaled)


def has_parts(call: Call) -> bool:
    """Whether `Linear` can split a node's output by sign: sums, and linear layers with one active input."""
    return _sums(call) or (sum(call.active) == 1 and call.node.op != "DeformConv")  # |W| needs a `LinearMap`


def _sums(call: Call) -> bool:
    return call.node.op in ("Add", "Sub", "Sum")


def _absolute(call: Call) -> LinearMap:
    """Return the layer with |W| for W, and without its bias."""
    return LinearMap.of(Call(call.emitter, call.node, call.inputs, call.outputs, call.active)).map(abs)
