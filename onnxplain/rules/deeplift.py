"""DeepLIFT's own rules [shrikumar]_: Linear, Rescale and RevealCancel.

D is a difference between the input and the reference, a multiplier m of x is such that m D x is what x contributes to
the difference of the score. D x falls into a positive and a negative part with multipliers m+ and m-. They differ
between a linear layer and the activation behind it only, so the walk carries their mean, and h = (m+ - m-) / 2 takes
the few steps beside it (`Halves`). With them, the Linear rule of y = W x, whose positive part W+ Dx+ + W- Dx- is
(W Dx + |W| |Dx|) / 2, is one line: the multiplier of x is W^T m + sign(Dx) |W|^T h (where Dx = 0, m+ and m- count
half each, as in the paper).

References
----------
.. [shrikumar] Shrikumar et al. 2017, Learning important features through propagating activation differences, ICML.
   The implementation is kundajelab/deeplift; where a part is 0 its multipliers are gradients here, which it only
   approximates by a difference that float32 cannot tell from 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from onnxplain.graph.emit import Var, sum_to
from onnxplain.ops import OPS, Call, Kind
from onnxplain.ops.activation import fn
from onnxplain.ops.parts import Sums
from onnxplain.ops.table import Cotangent
from onnxplain.rules.base import Gradient, LinearMap
from onnxplain.rules.compared import Compared, compared, secant


class Spreads(Protocol):
    """A rule that can tell how far the parts of its node's output are apart."""

    def spread(self, call: Compared) -> Var:
        """Positive minus negative part of the output's difference."""
        ...


@dataclass(frozen=True)
class Halves:
    """What an activation and the linear layer before it tell each other.

    Attributes
    ----------
    names
        Tensor -> its name at the reference.
    makers
        Tensor -> the node that makes it, and its rule.
    arrived
        Tensor -> half the difference of the multipliers of its positive and of its negative part.
    """

    names: Mapping[str, str]
    makers: dict[str, tuple[Call, Spreads]] = field(default_factory=dict)
    arrived: Sums = field(default_factory=Sums)

    def spread(self, name: str) -> Var:
        """Positive minus negative part of a tensor's difference."""
        call, rule = self.makers[name]
        return rule.spread(Compared.of(call, self.names))

    def of(self, call: Call) -> Cotangent:
        """What has arrived at a node's output."""
        return self.arrived.get(call.node.outputs[0])


@dataclass(frozen=True)
class Rescale:
    """m_x = m_y Dy / Dx, elementwise [shrikumar]_; the gradient where Dx = 0."""

    def __call__(self, call: Call, *cotangents: Cotangent) -> Sequence[Cotangent]:
        """See `onnxplain.rules.base.Rule`."""
        node, ct = compared(call), cotangents[0]
        assert ct is not None
        return node.place(secant(call, ct, node.need(node.data), node.need0(node.data)))


@dataclass(frozen=True)
class RevealCancel:
    """Dy+ is the mean of what Dx+ changes before and after Dx-; m_x+ = m_y Dy+ / Dx+. Likewise for - [shrikumar]_."""

    halves: Halves | None = field(default=None, repr=False)

    def __call__(self, call: Call, *cotangents: Cotangent) -> Sequence[Cotangent]:
        """See `onnxplain.rules.base.Rule`."""
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
    """m_x = W^T m_y + sign(Dx) |W|^T h: positive and negative contributions have multipliers of their own."""

    halves: Halves | None = field(default=None, repr=False)

    def __call__(self, call: Call, *cotangents: Cotangent) -> Sequence[Cotangent]:
        """See `onnxplain.rules.base.Rule`."""
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
        """|W| |Dx|."""
        if _sums(call):
            steps = [abs(call.need(i) - call.need0(i)) for i, active in enumerate(call.active) if active]
            return call.op("Sum", *steps, known=call.y.shape)
        return _absolute(call)(abs(call.need(call.data) - call.need0(call.data)))


@dataclass(frozen=True)
class Through:
    """What scales, shifts or moves elements passes positive and negative parts on, one by one."""

    halves: Halves | None = field(default=None, repr=False)

    def __call__(self, call: Call, *cotangents: Cotangent) -> Sequence[Cotangent]:
        """See `onnxplain.rules.base.Rule`."""
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
        """The input's, moved or scaled alike."""
        assert self.halves is not None
        spread = self.halves.spread(call.node.inputs[call.data])
        if OPS[call.node.op].kind_of(call) & Kind.MOVEMENT:
            return call.bind([spread if active else x for active, x in zip(call.active, call.inputs, strict=True)]).y
        scaled = Gradient()(call, spread)[call.data]  # of elementwise scales, which are symmetric maps
        assert scaled is not None
        return scaled if scaled is spread else abs(scaled)


def has_parts(call: Call) -> bool:
    """Whether positive and negative contributions can be told apart: linear layers of one active input, and sums."""
    return _sums(call) or (sum(call.active) == 1 and call.node.op != "DeformConv")  # which is no `LinearMap`


def _sums(call: Call) -> bool:
    return call.node.op in ("Add", "Sub", "Sum")


def _absolute(call: Call) -> LinearMap:
    """The layer with |W| for W, and without its bias."""
    return LinearMap.of(Call(call.emitter, call.node, call.inputs, call.outputs, call.active)).map(abs)
