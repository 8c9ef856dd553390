"""The `Rule` protocol, the operator's own gradient as a rule, and linear layers as maps whose parameters can change."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from onnxplain.errors import OptionError
from onnxplain.graph.inference import fits
from onnxplain.graph.var import Var, concat, where
from onnxplain.ops import OPS, Call, Kind
from onnxplain.ops.table import Cotangent
from onnxplain.rules.signs import is_never_negative, rectified


class Rule(Protocol):
    """Redistribution of relevance (or of a cotangent) from a node's outputs to its inputs.

    The reverse walk (`onnxplain.backward.walk`) calls ``rule(call, *cotangents)`` once per node. A rule writes nodes
    into the graph; it computes nothing itself.
    """

    def __call__(self, call: Call, *cotangents: Cotangent) -> Sequence[Cotangent]:
        """Write the nodes that redistribute the cotangents.

        Parameters
        ----------
        call
            The node, bound to its tensors.
        *cotangents
            One per output of the node, of the output's shape; None for an output without relevance.

        Returns
        -------
        sequence of Var or None
            One cotangent per input, under the conventions of a VJP (`onnxplain.ops.table`): None, or a sequence that
            ends early, for inputs without relevance.
        """
        ...


@dataclass(frozen=True)
class Gradient:
    """The operator's own vector-Jacobian product: ordinary backpropagation, ct_x = J^T ct_y.

    Composites use it wherever a rule would change nothing, such as at reshapes, transpositions and max pooling.
    """

    def __call__(self, call: Call, *cotangents: Cotangent) -> Sequence[Cotangent]:
        """Write J^T ct."""
        return OPS[call.node.op].vjp(call, *cotangents)


@dataclass(frozen=True)
class AffineNeighbours:
    """Scales and shifts by constants next to a linear layer, which together with it form one layer.

    A BatchNormalization after a convolution is the usual example; Mul, Add, Sub, Div and Neg count too.

    Attributes
    ----------
    before, behind
        Nodes directly before and directly behind the layer, in graph order, each with the channel axis of its output.
        The layer's output, and the outputs of all nodes behind it but the last, have no other reader.
    rounded
        The layer's output after rounding to integers (quantized models); None if it is not rounded. Relevance is
        divided by the rounded output: the output before rounding can be near zero where the rounded one, and with it
        the relevance, is not.
    raw
        All nodes between the explained tensor and the layer if they are only scales, shifts and transpositions; else
        empty.
    """

    before: tuple[tuple[Call, int], ...] = ()
    behind: tuple[tuple[Call, int], ...] = ()
    rounded: Var | None = None
    raw: tuple[Call, ...] = ()


def scale_and_shift(call: Call, axis: int) -> tuple[Var | None, Var | None]:
    """Return (scale, shift) of a node that computes ``scale x + shift``.

    Each is one number or one number per channel; None stands for a scale of 1 or a shift of 0.
    """
    if call.node.op == "BatchNormalization":
        scale, bias, mean, variance = (call.need(i) for i in range(1, 5))
        factor = scale / call.op("Sqrt", variance + call.attrs["epsilon"])
        return factor, bias - mean * factor
    if call.node.op == "Neg":
        return call.x.like([-1.0]), None
    constant = call.need(1 - call.active.index(True)).reshape([-1])
    if call.node.op == "Add":
        return None, constant
    if call.node.op == "Sub":
        return (None, -constant) if call.active[0] else (constant.like([-1.0]), constant)
    return (constant if call.node.op == "Mul" else 1.0 / constant), None


def chained(steps: Sequence[tuple[Call, int]]) -> tuple[Var | None, Var | None]:
    """Return the (scale, shift) of several nodes in a row; see `scale_and_shift`."""
    scale, shift = None, None
    for factor, summand in (scale_and_shift(*step) for step in steps):
        if factor is not None:
            scale = factor if scale is None else scale * factor
            shift = None if shift is None else shift * factor
        if summand is not None:
            shift = summand if shift is None else shift + summand
    return scale, shift


@dataclass(frozen=True)
class LinearMap:
    """A convolution or matrix product as the map ``f(x) = W x + b``, whose W and b can be replaced.

    Attributes
    ----------
    call
        The node. One of its inputs is W; another, if present, is b.
    data
        Index of the input that holds x.
    x, y
        The layer's input and output: those of the node, or of the whole chain if it has `AffineNeighbours`.
    shift
        Summand of b that is not an input of the node; it broadcasts to the output.
    raw
        Nodes between the explained tensor and the layer, as in `AffineNeighbours`.
    rounded
        Whether y is W x + b rounded to integers.
    """

    call: Call
    data: int
    x: Var
    y: Var
    shift: Var | None = None
    raw: tuple[Call, ...] = ()
    rounded: bool = False

    @classmethod
    def of(cls, call: Call, around: AffineNeighbours | None = None) -> LinearMap:
        """Make the map of a node of kind CONV or DENSE, with its neighbours folded into W and b."""
        alpha, beta = call.attrs.get("alpha", 1.0), call.attrs.get("beta", 1.0)
        if call.node.op == "Gemm" and (alpha, beta) != (1.0, 1.0):
            # Scales go into the parameters: rules that split W by sign must see the sign of alpha and beta.
            a, b, *c = call.need(0), call.need(1), *(None if bias is None else bias * beta for bias in call.inputs[2:])
            inputs = (a * alpha, b, *c) if call.active[1] else (a, b * alpha, *c)
            node = replace(call.node, attrs={**call.attrs, "alpha": 1.0, "beta": 1.0})
            call = replace(call, node=node, inputs=inputs)
        data = call.active.index(True)
        call = replace(call, active=tuple(i == data for i in range(len(call.inputs))))
        f = cls(call, data, call.need(data), call.y)
        return f if around is None else f._with(around)

    def _with(self, around: AffineNeighbours) -> LinearMap:
        """Fold the neighbours in: scales into W; shifts, including those before the layer, into b.

        The x of the result is the layer's input minus the shifts before it.
        """
        scale, shift = chained(around.behind)
        whole, b = self.map(keep), self.bias
        y = self.y if around.rounded is None else around.rounded
        if scale is not None:
            factor = self._column(scale, self._channels)
            whole = self.map(lambda w: w * factor)
            y, b = y * self._output(scale), None if b is None else b * self._output(scale)
        if shift is not None:
            y, b = y + self._output(shift), self._output(shift) if b is None else b + self._output(shift)
        x, (_, offset) = self.x, chained(around.before)
        if offset is not None:
            x, constant = x - self._output(offset), whole(self._constant(self._output(offset)))
            b = constant if b is None else b + constant
        return replace(whole, x=x, y=y, shift=b, raw=around.raw, rounded=around.rounded is not None)

    @property
    def _is_conv(self) -> bool:
        return bool(OPS[self.call.node.op].kind_of(self.call) & Kind.CONV)

    @property
    def _channels(self) -> int:
        """Number of axes of W behind its output-channel axis."""
        if self._is_conv:
            rank = self.call.need(1).rank
            return rank - 2 if self.call.node.op == "ConvTranspose" else rank - 1
        return int(self.call.attrs.get("transB", 0))

    def _column(self, channels: Var, behind: int) -> Var:
        return channels.reshape([-1, *[1] * behind]) if behind else channels

    def _output(self, channels: Var) -> Var:
        """Reshape one number per channel so that it broadcasts against the layer's input and output."""
        return self._column(channels, self.x.rank - 2 if self._is_conv else 0)

    @property
    def _bias(self) -> int:
        return 3 if self.call.node.op == "DeformConv" else 2

    @property
    def bias(self) -> Var | None:
        """The whole of b (the node's and ``shift``), reshaped to broadcast to the output; None if there is no bias."""
        b = self.call.input(self._bias)
        b = self._output(b) if b is not None and self._is_conv else b
        if b is None or self.shift is None:
            return self.shift if b is None else b
        return b + self.shift

    def __call__(self, x: Var) -> Var:
        """Write ``W x + b``."""
        inputs = list(self.call.inputs)
        inputs[self.data] = x
        y = self.call.bind(inputs).y
        if x.shape != self.x.shape and x.shape and y.shape:
            leading = 1 if self._is_conv else -1  # axes that x and y have in common: the batch, or all but the last
            y = self.call.emitter.refine(y, x.shape[:leading] + y.shape[leading:])
        return y if self.shift is None else y + self.shift

    @property
    def z(self) -> Var:
        """``W x + b`` before rounding: y itself unless y is rounded."""
        return self(self.x) if self.rounded else self.y

    def _constant(self, channels: Var) -> Var:
        """Expand one number per channel to the shape of one sample of x (convolutions) or one row of x (matrices)."""
        if self._is_conv:
            return one_sample(channels, self.x)
        ones = [1] * (self.x.rank - 1)
        shape = concat([self.x.emitter.ints(ones), self.x.size(-1)])
        return self.x.emitter.op("Expand", channels, shape, known=(*ones, *(self.x.shape or ())[-1:]))

    def everywhere(self, value: float | np.ndarray[Any, Any]) -> Var:
        """Expand ``value`` to the shape of x.

        For convolutions, to one sample of x: then ONNX Runtime constant-folds the convolution of it. Matrices get all
        rows, since their rows are not always samples.
        """
        if self.data == 0 and self._is_conv:
            return one_sample(self.x.like(value), self.x)
        return self.x.emitter.op("Expand", self.x.like(value), self.x.sizes(), known=self.x.shape)

    def bounds(self, *values: float | np.ndarray[Any, Any]) -> tuple[Var, Var]:
        """Return elementwise (lower, upper) bounds of x.

        Parameters
        ----------
        *values
            Lower and upper bound of the explained tensor, where only scales, shifts and transpositions lie between it
            and the layer (``raw``); otherwise of x.

        Raises
        ------
        OptionError
            A value is an array that does not broadcast to that tensor.
        """
        x = self.raw[0].need(self.raw[0].active.index(True)) if self.raw else self.x
        for value in values:
            if not fits(np.shape(value), x.shape):
                shape, label = np.shape(value), self.call.node.label
                raise OptionError(f"bounds of shape {shape} do not fit the input of {label}: {x}")
        if not self.raw:
            low, high = map(self.everywhere, values)
            return low, high
        ends = [one_sample(x.like(value), x) for value in values]
        for call in self.raw:
            ends = [
                call.bind([end if active else i for i, active in zip(call.inputs, call.active, strict=True)]).y
                for end in ends
            ]
        ends = [x.emitter.refine(end, end.shape and (1, *end.shape[1:])) for end in ends]
        return x.emitter.op("Min", *ends), x.emitter.op("Max", *ends)

    def vjp(self, cotangent: Var) -> Var:
        """Write ``W^T cotangent``."""
        ct = OPS[self.call.node.op].vjp(self.call, cotangent)[self.data]
        assert ct is not None
        return ct

    def map(self, weight: Callable[[Var], Var], bias: Callable[[Var], Var] | None = None) -> LinearMap:
        """Replace W by ``weight(W)`` and b by ``bias(b)``; ``bias=None`` drops b."""
        inputs = list(self.call.inputs)
        factor = inputs[1 - self.data]
        assert factor is not None
        inputs[1 - self.data] = weight(factor)
        if len(inputs) > self._bias:
            b = inputs[self._bias]
            inputs[self._bias] = bias(b) if bias and b is not None else None
        shift = bias(self.shift) if bias and self.shift is not None else None
        return replace(self, call=replace(self.call, inputs=tuple(inputs)), shift=shift)

    def plus(self, number: float) -> LinearMap:
        """Add a number to every element of b. If the node has a bias, this costs no pass over the output."""
        b = self.call.input(self._bias)
        if b is None:
            return replace(self, shift=self.x.like(number) if self.shift is None else self.shift + number)
        inputs = tuple(b + number if i == self._bias else v for i, v in enumerate(self.call.inputs))
        return replace(self, call=replace(self.call, inputs=inputs))

    def unbiased(self) -> LinearMap:
        """Drop the bias and recompute the output."""
        f = self.map(keep)
        return replace(f, y=f(f.x))

    def relevances(self, relevance: Var) -> list[Cotangent]:
        """Return one entry per input of the node: ``relevance`` for x, None for the parameters."""
        return [relevance if i == self.data else None for i in range(len(self.call.inputs))]


def one_sample(constant: Var, x: Var) -> Var:
    """Expand a constant to the shape of one sample of x: (1, ...)."""
    shape = concat([x.emitter.ints([1]), x.sizes(1)])
    return x.emitter.op("Expand", constant, shape, known=(1, *(x.shape or ())[1:]))


def proportional(call: Call, relevance: Cotangent, epsilon: float, parts: int = 1) -> list[Cotangent]:
    """Write R_i = x_i J_i^T (R / (parts S(y))) for each active input: gradient x input of this operator alone."""
    assert relevance is not None
    denominator = stabilized(call.y, epsilon, relevance)
    cts = Gradient()(call, relevance / (denominator * float(parts) if parts > 1 else denominator))
    return [x * ct if ct is not None and x is not None else None for x, ct in zip(call.inputs, cts, strict=False)]


def positive(x: Var) -> Var:
    """Write max(x, 0)."""
    return x.emitter.op("Relu", x)


def negative(x: Var) -> Var:
    """Write min(x, 0), as a product: ONNX Runtime keeps Mul in the blocked memory layout of convolutions."""
    return x * x.below()


def keep(x: Var) -> Var:
    """Return x: the function for `LinearMap.map` that leaves a parameter as it is."""
    return x


def root_mean_square(z: Var) -> Var:
    """Write sqrt(mean(z^2)) of each sample, of shape (batch, 1, ...)."""
    axes = z.emitter.ints(range(1, z.rank))
    known = z.shape and (z.shape[0], *[1] * (z.rank - 1))
    square = z.emitter.op("ReduceMean", z * z, axes, keepdims=1, noop_with_empty_axes=1, known=known)
    return z.emitter.op("Sqrt", square)


def stabilized(z: Var, epsilon: float, r: Var) -> Var:
    """Write S(z) for the quotient r / S(z), without computing sign(z) where it is known.

    The result may differ from `stabilize` where r is zero: the quotient is zero there in any case.
    """
    above = (z if is_never_negative(z) else rectified(z, r)) if epsilon > 0 else None
    return stabilize(z, epsilon) if above is None else above + epsilon


def stabilize(z: Var, epsilon: float | Var) -> Var:
    """Write S(z) = z + epsilon sign(z) with sign(0) = +1; with epsilon = 0, zeros become ones so that 0 / 0 is 0.

    ``epsilon`` is in the units of z.
    """
    if isinstance(epsilon, Var):
        return stabilize(z + where(z >= 0.0, epsilon, -epsilon), 0.0)
    if epsilon == 0:
        return where(z.equal(0.0), 1.0, z)
    return z + where(z >= 0.0, z.like(epsilon), z.like(-epsilon))
