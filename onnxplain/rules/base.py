"""What a rule is, the operator's own gradient as a rule, and linear layers as maps whose parameters can be edited."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from onnxplain.emit import Var, concat, fits, where
from onnxplain.errors import OptionError
from onnxplain.ops import OPS, Call, Kind
from onnxplain.ops.table import Cotangent


class Rule(Protocol):
    """Redistributes what arrives at a node's outputs to its inputs.

    ``rule(call, *cotangents)`` gets one cotangent per output (None where nothing arrives) and returns one per input,
    with the same freedom as a VJP (see `onnxplain.ops.table`).
    """

    def __call__(self, call: Call, *cotangents: Cotangent) -> Sequence[Cotangent]:
        """Write the redistribution."""
        ...


@dataclass(frozen=True)
class Gradient:
    """The operator's own vector-Jacobian product."""

    def __call__(self, call: Call, *cotangents: Cotangent) -> Sequence[Cotangent]:
        """See `Rule`."""
        return OPS[call.node.op].vjp(call, *cotangents)


@dataclass(frozen=True)
class LinearMap:
    """A convolution or matrix product as the map ``f(x) = W x + b``, whose W and b can be replaced.

    ``data`` is the index of the input that holds x; W is the other factor, b (if any) the third input, or ``shift``: a
    constant that another node adds to the output.
    """

    call: Call
    data: int
    shift: Var | None = None

    @classmethod
    def of(cls, call: Call) -> LinearMap:
        """Make the map of a node of kind CONV or DENSE."""
        alpha, beta = call.attrs.get("alpha", 1.0), call.attrs.get("beta", 1.0)
        if call.node.op == "Gemm" and (alpha, beta) != (1.0, 1.0):
            # Scales go into the parameters, or rules that ask for signs would miss them.
            a, b, *c = call.need(0), call.need(1), *(bias and bias * beta for bias in call.inputs[2:])
            inputs = (a * alpha, b, *c) if call.active[1] else (a, b * alpha, *c)
            node = replace(call.node, attrs={**call.attrs, "alpha": 1.0, "beta": 1.0})
            call = replace(call, node=node, inputs=inputs)
        data = call.active.index(True)
        return cls(replace(call, active=tuple(i == data for i in range(len(call.inputs)))), data)

    @property
    def x(self) -> Var:
        """The layer's input."""
        x = self.call.inputs[self.data]
        assert x is not None
        return x

    @property
    def y(self) -> Var:
        """The layer's output."""
        return self.call.y if self.shift is None else self.call.y + self.shift

    def __call__(self, x: Var) -> Var:
        """``W x + b``."""
        inputs = list(self.call.inputs)
        inputs[self.data] = x
        y = self.call.bind(inputs).y
        if x.shape != self.x.shape:
            y = self.call.emitter.refine(y, x.shape[:1] + y.shape[1:] if x.shape and y.shape else None)
        return y if self.shift is None else y + self.shift

    def everywhere(self, value: float | np.ndarray[Any, Any]) -> Var:
        """``value`` in the shape of x; of one sample for convolutions, so that the runtime folds what they make of it.

        The rows of matrices are not always samples.

        Raises
        ------
        OptionError
            The value is an array that does not broadcast to x.
        """
        x = self.x
        if not fits(np.shape(value), x.shape):
            raise OptionError(f"bounds of shape {np.shape(value)} do not fit the input of {self.call.node.label}: {x}")
        constant = x.like(value)
        if self.data == 0 and OPS[self.call.node.op].kind_of(self.call) & Kind.CONV:
            shape = concat([x.emitter.ints([1]), x.sizes(1)])
            return x.emitter.op("Expand", constant, shape, known=(1, *(x.shape or ())[1:]))
        return x.emitter.op("Expand", constant, x.sizes(), known=x.shape)

    def vjp(self, cotangent: Var) -> Var:
        """``W^T cotangent``."""
        ct = OPS[self.call.node.op].vjp(self.call, cotangent)[self.data]
        assert ct is not None
        return ct

    def map(self, weight: Callable[[Var], Var], bias: Callable[[Var], Var] | None = None) -> LinearMap:
        """Replace W by ``weight(W)`` and b by ``bias(b)``; no bias where ``bias`` is None."""
        inputs = list(self.call.inputs)
        factor = inputs[1 - self.data]
        assert factor is not None
        inputs[1 - self.data] = weight(factor)
        if len(inputs) > 2:
            b = inputs[2]
            inputs[2] = bias(b) if bias and b is not None else None
        shift = bias(self.shift) if bias and self.shift is not None else None
        return replace(self, call=replace(self.call, inputs=tuple(inputs)), shift=shift)

    def unbiased(self) -> LinearMap:
        """Drop the bias and calculate the output anew."""
        f = self.map(keep)
        return replace(f, call=f.call.bind(f.call.inputs))

    def relevances(self, relevance: Var) -> list[Cotangent]:
        """One entry per input of the node: ``relevance`` at the data, None elsewhere."""
        return [relevance if i == self.data else None for i in range(len(self.call.inputs))]


def proportional(call: Call, relevance: Cotangent, epsilon: float, parts: int = 1) -> list[Cotangent]:
    """R_i = x_i J_i^T (R / (parts S(y))): gradient x input of the operator alone, for each of its active inputs."""
    assert relevance is not None
    denominator = stabilize(call.y, epsilon)
    cts = Gradient()(call, relevance / (denominator * float(parts) if parts > 1 else denominator))
    return [x * ct if ct is not None and x is not None else None for x, ct in zip(call.inputs, cts, strict=False)]


def positive(x: Var) -> Var:
    """max(x, 0)."""
    return x.emitter.op("Relu", x)


def negative(x: Var) -> Var:
    """min(x, 0)."""
    return x - positive(x)


def keep(x: Var) -> Var:
    """X itself: a parameter that a rule leaves alone."""
    return x


def stabilize(z: Var, epsilon: float) -> Var:
    """``z + epsilon sign(z)`` with sign(0) = +1; with epsilon = 0, zeros become ones so that 0 / 0 is 0."""
    if epsilon == 0:
        return where(z.equal(0.0), 1.0, z)
    return z + where(z >= 0.0, z.like(epsilon), z.like(-epsilon))
