"""A node to be expanded, with its tensors, and the floating-point values that integers stand for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from onnxplain.graph.emit import Emitter
from onnxplain.graph.ir import Node
from onnxplain.graph.var import Var
from onnxplain.ops import OPS, Trait

_PACKED = {
    "int4": (-8, 7),
    "uint4": (0, 15),
    "int2": (-2, 1),
    "uint2": (0, 3),
}  # dtype -> range, which numpy does not know


class StaysError(Exception):
    """The node is kept: it has no expansion into standard operators, or the expansion needs sizes that are unknown."""


@dataclass(frozen=True)
class Twin:
    """The floating-point tensor that a tensor of integers stands for: ``value`` = (integers - zero) * scale."""

    value: Var
    scale: Var
    zero: Var | None


@dataclass
class Scope:
    """A graph while its nodes are expanded, in their order.

    Attributes
    ----------
    emitter
        Writes the nodes that replace a node.
    nodes
        Name of a value -> the node that computes it, in this graph and the graphs around it.
    twins
        Name of a tensor of integers -> its twin.
    """

    emitter: Emitter
    nodes: dict[str, Node] = field(default_factory=dict)
    twins: dict[str, Twin] = field(default_factory=dict)

    def inner(self) -> Scope:
        """Open the scope of a subgraph, which reads values of the graphs around it."""
        return Scope(Emitter(outer=self.emitter), dict(self.nodes), dict(self.twins))


@dataclass(frozen=True)
class Site:
    """A node to be expanded."""

    node: Node
    scope: Scope

    @property
    def emitter(self) -> Emitter:
        """Writer of standard operators."""
        return self.scope.emitter

    def input(self, index: int, dtype: Any = None) -> Var | None:
        """An input; None if it is missing. ``dtype`` is the operator's dtype for this input, if not float."""
        name = self.node.inputs[index] if index < len(self.node.inputs) else ""
        if not name:
            return None
        var = replace(self.emitter.var(name), emitter=self.emitter)
        return replace(var, dtype=np.dtype(dtype)) if dtype else var

    def need(self, index: int, dtype: Any = None) -> Var:
        """A required input."""
        var = self.input(index, dtype)
        if var is None:
            raise StaysError
        return var

    @property
    def inputs(self) -> list[Var | None]:
        """All inputs."""
        return [self.input(i) for i in range(len(self.node.inputs))]

    def asks(self, index: int) -> bool:
        """Whether an output is used."""
        return index < len(self.node.outputs) and bool(self.node.outputs[index])

    def get(self, attribute: str, default: Any = None) -> Any:
        """An attribute."""
        return self.node.attrs.get(attribute, default)

    def some(self, *attributes: str) -> dict[str, Any]:
        """The given attributes by name, without those that the node lacks."""
        return {k: self.node.attrs[k] for k in attributes if k in self.node.attrs}

    def refuse(self, *hindrances: object) -> None:
        """Keep the node (raise StaysError) if there is a tensor in ``hindrances``, or a value other than 0 and None."""
        if any(isinstance(h, Var) or (h is not None and h != 0) for h in hindrances):
            raise StaysError

    def op(self, op: str, *inputs: Var | None, **keywords: Any) -> Var:
        """Write one standard operator, with the keywords of `onnxplain.graph.emit.Emitter.op`."""
        return self.emitter.op(op, *inputs, **keywords)

    def cast(self, x: Var, dtype: Any) -> Var:
        """Convert to another dtype, even if that is the dtype noted for ``x``, which may be wrong."""
        return self.op("Cast", x, dtype=dtype, known=x.shape, to=np.dtype(dtype))

    def split(self, x: Var, axis: int, parts: int | Sequence[int]) -> tuple[Var, ...]:
        """Split into equal ``parts``, or parts of given sizes."""
        if isinstance(parts, int):
            return self.emitter.ops("Split", x, outputs=parts, axis=axis, num_outputs=parts)
        return self.emitter.ops("Split", x, self.emitter.ints(parts), outputs=len(parts), axis=axis)

    def squeeze(self, x: Var, axis: int) -> Var:
        """Drop an axis of size 1."""
        return self.op("Squeeze", x, self.emitter.ints([axis]))

    def unsqueeze(self, x: Var, *axes: int) -> Var:
        """Insert axes of size 1."""
        return self.op("Unsqueeze", x, self.emitter.ints(axes))

    def real(self, index: int, scale: int, zero: int, axis: int = 1) -> Var:
        """Dequantize an input; ``scale`` and ``zero`` are the indices of its scale and zero point."""
        return self.dequantized(self.need(index), self.need(scale), self.input(zero), axis)

    def dequantized(self, x: Var, scale: Var, zero: Var | None, axis: int = 1, **attrs: Any) -> Var:
        """Dequantize ``x``: its twin, or a DequantizeLinear of constants and inputs of the model, which have none."""
        twin = self.scope.twins.get(x.name)
        if twin is None:
            return self.op("DequantizeLinear", x, scale, zero, dtype=scale.dtype, known=x.shape, axis=axis, **attrs)
        value = replace(twin.value, emitter=self.emitter)
        if _same(twin.scale, scale) and _same(twin.zero, zero):
            return value
        shift = self._zero(twin.zero, scale) - self._zero(zero, scale)
        return (value / twin.scale + shift) * scale

    def _zero(self, zero: Var | None, scale: Var) -> Var:
        return scale.like(0) if zero is None else self.cast(zero, scale.dtype)

    def quantized(self, y: Var, scale: Var, zero: Var | None, name: str = "", **attrs: Any) -> Var:
        """Round ``y`` to integers with the name ``name`` (default: the node's first output), and note their twin.

        A Sum of one operand separates the rounding from the layer before: if the two were adjacent, ONNX Runtime would
        treat the layer as quantized when it loads a program, and round its dequantized weights again, more coarsely.
        """
        name = name or self.node.outputs[0]
        dtype = attrs.pop("dtype", None) or (np.dtype(np.uint8) if zero is None else zero.dtype)
        y = self.op("Sum", self._clipped(y, _bounds(scale, zero, dtype)), known=y.shape)
        shapes = [y.shape]
        (q,) = self.emitter.ops(
            "QuantizeLinear", y, scale, zero, outputs=1, dtypes=[dtype], shapes=shapes, names=[name], **attrs
        )
        axis = {k: v for k, v in attrs.items() if k in ("axis", "block_size")}
        read, origin = q, zero
        if dtype == np.int8 and (zero is None or zero.value is not None):
            # ONNX Runtime makes them unsigned when it loads a program, and fails if a MaxPool follows.
            shift = np.zeros((), np.int8) if zero is None or zero.value is None else zero.value
            origin = self.emitter.const((shift.astype(np.int64) + 128).astype(np.uint8))
            read = self.op("QuantizeLinear", y, scale, origin, dtype=np.uint8, known=y.shape, **axis)
        value = self.op("DequantizeLinear", read, scale, origin, dtype=scale.dtype, known=y.shape, **axis)
        self.scope.twins[name] = Twin(value, scale, zero)
        return q

    def _clipped(self, y: Var, bounds: tuple[float, float] | None) -> Var:
        """Clip ``y`` to the bounds, since values beyond them saturate and have no gradient.

        Quantization tools drop a ReLU if the least integer stands for 0; it is written again.
        """
        if bounds is None:
            return y
        low, high = bounds
        if low == 0 and self.producer(y) in OPS.having(Trait.LAYER) | {"Add", "Sum"}:
            return self.op("Clip", self.op("Relu", y), None, y.like(high))
        return self.op("Clip", y, y.like(low), y.like(high))

    def producer(self, y: Var) -> str:
        """Operator of the node that computes ``y``; empty if no node does."""
        written = (n.op for n in reversed(self.emitter.nodes) if y.name in n.outputs)
        before = self.scope.nodes.get(y.name)
        return next(written, before.op if before else "")


Result = Var | Sequence[Var | None]  # the node's outputs; None for an unused one
Expansion = Callable[[Site], Result]


def _same(a: Var | None, b: Var | None) -> bool:
    """Whether two scales or zero points are equal; a missing zero point is 0."""
    if a is None or b is None:
        return all(v is None or (v.value is not None and not v.value.any()) for v in (a, b))
    return a.name == b.name or (
        a.value is not None and b.value is not None and np.array_equal(a.value.ravel(), b.value.ravel())
    )


def _bounds(scale: Var, zero: Var | None, dtype: np.dtype[Any]) -> tuple[float, float] | None:
    """Smallest and largest number that the integers can stand for; None if they differ between channels."""
    if scale.value is None or scale.value.size != 1 or (zero is not None and zero.value is None):
        return None
    if dtype.kind in "iu":
        low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    elif dtype.name in _PACKED:
        low, high = _PACKED[dtype.name]
    else:
        return None
    shift = int(zero.value.astype(np.int64).item()) if zero is not None and zero.value is not None else 0
    unit = float(scale.value.item())
    return (low - shift) * unit, (high - shift) * unit
