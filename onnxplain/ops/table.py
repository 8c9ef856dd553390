"""What a row of the operator table is: an operator, its kind, and its vector-Jacobian product (VJP).

A VJP is a function ``(call, *cotangents) -> one cotangent per input``: ``call`` is the node with its tensors, each
cotangent belongs to one output (None where nothing arrives). It returns a sequence as long as it likes; inputs beyond
its end, and those given None, get no cotangent. It need not sum over broadcast axes (declare ``broadcast=True``) nor
over several users of a value: the walk (`onnxplain.backward`) does both. Attributes are complete (`onnxplain.reader`
fills in defaults), shapes may be free: take sizes from ``Var.sizes()``, which is a constant where it can be.
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
    """The role of a node, as rules see it. A Flag, so that ``Kind.CONV | Kind.DENSE`` matches either."""

    NONE = 0  # that of an operator that the reverse walk does not go through
    CONV = enum.auto()  # convolution with weights that do not depend on the explained input
    DENSE = enum.auto()  # matrix product with such weights
    ACTIVATION = enum.auto()  # nonlinear, elementwise, one active input
    MAX_POOL = enum.auto()  # picks one of several elements
    AVG_POOL = enum.auto()  # weighted mean or sum of several elements, weights without parameters
    SUM = enum.auto()  # sum or difference of several active inputs
    AFFINE = enum.auto()  # elementwise scale and shift by constants (inference BatchNormalization too)
    PRODUCT = enum.auto()  # product or quotient of active inputs: attention, gates
    SOFTMAX = enum.auto()
    NORMALIZATION = enum.auto()  # divides by statistics of its own input
    REDUCTION = enum.auto()  # nonlinear summary of several elements: a norm, a log-sum
    MOVEMENT = enum.auto()  # moves elements, changes none


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
        Its tensors; None is a missing optional input, or an output that nobody asks for.
    active
        Per input: does it depend on what is being explained? Only those need a cotangent.
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
        """An input by position; None where it is missing."""
        return self.inputs[index] if index < len(self.inputs) else None

    def op(self, op: str, *inputs: Var | None, **keywords: Any) -> Var:
        """Write one ONNX node; see `onnxplain.emit.Emitter.op`."""
        return self.emitter.op(op, *inputs, **keywords)

    def ints(self, values: Sequence[int]) -> Var:
        """A 1-D int64 constant."""
        return self.emitter.ints(values)

    def bind(self, inputs: Sequence[Var | None]) -> Call:
        """The same operator on other inputs of the same shapes, with its outputs computed there."""
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
    """All that is known of one operator.

    Attributes
    ----------
    op
        Its name, with the domain in front if that is not ONNX's own.
    vjp
        Its VJP; `no_vjp` where the reverse walk does not go through it.
    kind
        Its role, or a function that tells the role of one node.
    broadcast
        Whether the VJP's cotangents may have the shape of the output where an operand was broadcast to it.
    traits
        What is true of each node.
    """

    op: str
    vjp: Vjp
    kind: KindOf
    broadcast: bool = False
    traits: Trait = Trait.NONE

    def kind_of(self, call: Call) -> Kind:
        """The kind of one node (it may depend on which inputs are active)."""
        return self.kind(call) if callable(self.kind) else self.kind


def no_vjp(call: Call, *cotangents: Cotangent) -> Sequence[Cotangent]:
    """Stand for a VJP in the row of an operator that the reverse walk does not go through."""
    raise AssertionError(f"the reverse walk does not go through {call.node.label}")


class OpTable(dict[str, OpRow]):
    """Operator name -> `OpRow`; refuses duplicates.

    Parameters
    ----------
    kind, traits
        Of all rows that are registered here; a row may have another kind, and further traits.
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

        A row may take attributes as keywords: ``Elu=lambda ct, x, y, *, alpha: ...``.
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
        """Whether a node calculates with floats without passing gradients on; one that asks for sizes does not."""
        return self.has(node, Trait.ZERO_GRADIENT) and not self.has(node, Trait.SIZES)


def _unary(row: Callable[..., Var]) -> Vjp:
    keywords = [p.name for p in inspect.signature(row).parameters.values() if p.kind is p.KEYWORD_ONLY]

    def vjp(call: Call, ct: Var) -> Sequence[Cotangent]:
        return [row(ct, call.x, call.y, **{k: call.attrs.get(k) for k in keywords})]

    return vjp


def merge(*tables: OpTable) -> OpTable:
    """One table out of several; an operator may be in one of them only."""
    merged = OpTable()
    for table in tables:
        for row in table.values():
            merged.add(row)
    return merged
