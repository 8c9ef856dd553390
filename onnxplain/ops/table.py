"""Rows of the operator table: an operator, its vector-Jacobian product (VJP), its kind and its traits.

A VJP is a function ``(call, *cotangents) -> one cotangent per input``. ``call`` is the node with its tensors; there is
one cotangent per output, None where the output does not matter. Inputs beyond the end of the returned sequence, and
those with None in it, get no cotangent. Two things are left to the reverse walk (`onnxplain.backward.walk`): sums over
the axes along which an input was broadcast (for rows with ``broadcast=True``), and sums over the users of a value.
Attributes are complete (`onnxplain.storage.reader` fills in defaults). Sizes may be free: ``Var.sizes()`` gives them,
as a constant where possible.
"""

from __future__ import annotations

import enum
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from onnxplain.graph.emit import Emitter
from onnxplain.graph.ir import Node
from onnxplain.graph.var import Var
from onnxplain.ops.traits import Trait, inferred_traits


class Kind(enum.Flag):
    """The role of a node, by which composites choose rules. A Flag: ``Kind.CONV | Kind.DENSE`` matches either."""

    NONE = 0  # no role: the reverse walk does not go through the operator
    CONV = enum.auto()  # convolution whose weights do not depend on the explained input
    DENSE = enum.auto()  # matrix product whose weights do not depend on the explained input
    ACTIVATION = enum.auto()  # nonlinear, elementwise, of one active input
    MAX_POOL = enum.auto()  # chooses one of several elements
    AVG_POOL = enum.auto()  # mean or sum of several elements, with weights that are not learned
    SUM = enum.auto()  # sum or difference of several active inputs
    AFFINE = enum.auto()  # elementwise scale and shift by constants, such as BatchNormalization at inference
    PRODUCT = enum.auto()  # product or quotient of active inputs, as in attention and gates
    SOFTMAX = enum.auto()  # softmax, or its logarithm
    NORMALIZATION = enum.auto()  # divides by statistics of its own input
    REDUCTION = enum.auto()  # nonlinear function of several elements, such as a norm or a log-sum
    MOVEMENT = enum.auto()  # moves elements and changes none


Cotangent = Var | None
Vjp = Callable[..., Sequence[Cotangent]]
KindOf = Kind | Callable[["Call"], Kind]


@dataclass(frozen=True)
class Call:
    """A node bound to its tensors in the graph being written.

    Attributes
    ----------
    node
        The IR node.
    inputs, outputs
        Its tensors; None stands for a missing optional input, or for an output that is not computed.
    active
        Per input: whether it depends on the explained tensors. Only active inputs need a cotangent.
    """

    emitter: Emitter
    node: Node
    inputs: tuple[Var | None, ...]
    outputs: tuple[Var | None, ...]
    active: tuple[bool, ...]

    @property
    def attrs(self) -> Mapping[str, Any]:
        """The node's attributes, defaults included."""
        return self.node.attrs

    @property
    def x(self) -> Var:
        """The first input."""
        x = self.inputs[0]
        assert x is not None
        return x

    @property
    def y(self) -> Var:
        """The first output."""
        y = self.outputs[0]
        assert y is not None
        return y

    def need(self, index: int) -> Var:
        """A required input by position."""
        value = self.inputs[index]
        assert value is not None
        return value

    def input(self, index: int) -> Var | None:
        """An optional input by position; None where it is missing."""
        return self.inputs[index] if index < len(self.inputs) else None

    def op(self, op: str, *inputs: Var | None, **keywords: Any) -> Var:
        """Write one ONNX node with one output, as `onnxplain.graph.emit.Emitter.op` does."""
        return self.emitter.op(op, *inputs, **keywords)

    def ints(self, values: Sequence[int]) -> Var:
        """Make an int64 constant of one axis."""
        return self.emitter.ints(values)

    def bind(self, inputs: Sequence[Var | None]) -> Call:
        """Write the operator for other inputs of the same shapes, and bind it to them and to the new outputs."""
        outputs = self.emitter.ops(
            self.node.op,
            *inputs,
            outputs=len(self.outputs),
            dtypes=[None if o is None else o.dtype for o in self.outputs],
            shapes=[None if o is None else o.shape for o in self.outputs],
            domain=self.node.domain,
            **self.attrs,
        )
        return replace(self, inputs=tuple(inputs), outputs=outputs)


@dataclass(frozen=True)
class OpRow:
    """One operator.

    Attributes
    ----------
    op
        Its name, with the domain in front if that is not ONNX's own.
    vjp
        Its VJP; `no_vjp` where the reverse walk does not go through it.
    kind
        Its role, or a function from a `Call` to the role of that node.
    broadcast
        Whether the cotangents that the VJP returns have the shape of the output, and the walk is to sum them over the
        axes along which the input was broadcast.
    traits
        Further properties of the operator.
    """

    op: str
    vjp: Vjp
    kind: KindOf
    broadcast: bool = False
    traits: Trait = Trait.NONE

    def kind_of(self, call: Call) -> Kind:
        """The kind of one node, which may depend on its active inputs and on its attributes."""
        return self.kind(call) if callable(self.kind) else self.kind


def no_vjp(call: Call, *cotangents: Cotangent) -> Sequence[Cotangent]:
    """Stand for a VJP in the row of an operator that the reverse walk does not go through."""
    raise AssertionError(f"the reverse walk does not go through {call.node.label}")


class OpTable(dict[str, OpRow]):
    """Operator name -> `OpRow`; refuses duplicates.

    Parameters
    ----------
    kind, traits
        Defaults of the rows that are registered here; a row may have another kind, and further traits.
    """

    def __init__(self, kind: KindOf = Kind.NONE, traits: Trait = Trait.NONE) -> None:
        super().__init__()
        self.kind = kind
        self.traits = traits

    def vjp(
        self, *ops: str, kind: KindOf | None = None, broadcast: bool = False, traits: Trait = Trait.NONE
    ) -> Callable[[Vjp], Vjp]:
        """Register the decorated function as the VJP of ``ops``."""

        def register(function: Vjp) -> Vjp:
            for op in ops:
                all_traits = self.traits | traits | inferred_traits(op)
                self.add(OpRow(op, function, self.kind if kind is None else kind, broadcast, all_traits))
            return function

        return register

    def unary(self, traits: Trait = Trait.NONE, **rows: Callable[..., Var]) -> None:
        """Register elementwise functions of one input: ``Op=lambda ct, x, y: cotangent of x``.

        Keywords of a row are attributes of the node: ``Elu=lambda ct, x, y, *, alpha: ...``.
        """
        for op, row in rows.items():
            self.vjp(op, traits=traits | Trait.ELEMENTWISE)(_unary(row))

    def without_vjp(self, *ops: str, traits: Trait = Trait.NONE) -> None:
        """Register operators that the reverse walk does not go through."""
        self.vjp(*ops, traits=traits)(no_vjp)

    def add(self, row: OpRow) -> None:
        """Add a row.

        Raises
        ------
        KeyError
            The operator has one already.
        """
        if row.op in self:
            raise KeyError(f"{row.op} has two rows")
        self[row.op] = row

    def has_vjp(self, node: Node) -> bool:
        """Whether the reverse walk can go through a node."""
        row = self.get(node.operator)
        return row is not None and row.vjp is not no_vjp

    def has(self, node: Node, traits: Trait) -> bool:
        """Whether a node's operator has one of ``traits``."""
        row = self.get(node.operator)
        return row is not None and bool(row.traits & traits)

    def having(self, traits: Trait) -> frozenset[str]:
        """The operators that have one of ``traits``."""
        return frozenset(op for op, row in self.items() if row.traits & traits)

    def stops_gradients(self, node: Node) -> bool:
        """Whether a node depends on the numbers of its operands, but has a gradient of zero."""
        return self.has(node, Trait.ZERO_GRADIENT) and not self.has(node, Trait.SIZES)


def _unary(row: Callable[..., Var]) -> Vjp:
    """Make a VJP of a row of `OpTable.unary`."""
    keywords = [p.name for p in inspect.signature(row).parameters.values() if p.kind is p.KEYWORD_ONLY]

    def vjp(call: Call, ct: Var) -> Sequence[Cotangent]:
        return [row(ct, call.x, call.y, **{k: call.attrs.get(k) for k in keywords})]

    return vjp


def merge(*tables: OpTable) -> OpTable:
    """Merge tables that have no operator in common."""
    merged = OpTable()
    for table in tables:
        for row in table.values():
            merged.add(row)
    return merged
