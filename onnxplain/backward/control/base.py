"""What the control-flow operators have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from onnxplain.graph.emit import Emitter
from onnxplain.graph.ir import Graph, Node, is_float
from onnxplain.graph.var import Var
from onnxplain.ops.index import zeros
from onnxplain.ops.table import Call, Cotangent


@dataclass(frozen=True)
class WalkPlan:
    """What lies between some tensors and some outputs of a graph.

    Attributes
    ----------
    calls
        The nodes that the walk goes through, in its order; those in the bodies of a node come right behind it.
    needed
        Names of the active values that it reaches.
    missing
        Nodes that it cannot go through.
    vague
        Nodes at which the rank of a tensor on the way is not known.
    """

    calls: list[Call] = field(default_factory=list)
    needed: set[str] = field(default_factory=set)
    missing: list[Node] = field(default_factory=list)
    vague: list[Call] = field(default_factory=list)

    def add(self, other: WalkPlan) -> None:
        """Continue with what lies in a body."""
        self.calls.extend(other.calls)
        self.needed.update(other.needed)
        self.missing.extend(other.missing)
        self.vague.extend(other.vague)


Planner = Callable[[Graph, Emitter, Iterable[str], Iterable[str]], WalkPlan]  # (graph, emitter, outputs, wanted)
Walk = Callable[[Emitter, Mapping[str, Var]], Mapping[str, Var]]  # (emitter, seeds) -> what arrives, by name
Activity = Callable[[Graph, Iterable[str]], set[str]]  # (graph, wanted) -> the values that depend on them


@dataclass(frozen=True)
class ControlCall(Call):
    """A control-flow node bound to its tensors: ``inputs`` and ``active`` have an entry for each of its operands."""

    @property
    @abstractmethod
    def flows(self) -> Iterator[tuple[str, str]]:
        """Pairs of values, on two sides of a body's boundary, of which the second may be the first."""

    @abstractmethod
    def vjp(self, cotangents: Sequence[Cotangent], walk: Walk) -> Sequence[Cotangent]:
        """Write the way back: one cotangent per operand."""


def dtype_of(x: Var) -> np.dtype[Any]:
    """The dtype of a cotangent of ``x``, which may hold integers that stand for floats."""
    return x.dtype if is_float(x.dtype) else np.dtype(np.float32)


def or_zeros(cotangent: Cotangent, x: Var) -> Var:
    """The cotangent of ``x``; zeros where none arrived."""
    return zeros_like(x) if cotangent is None else cotangent


def zeros_like(x: Var) -> Var:
    """A cotangent of ``x`` that is zero."""
    return zeros(x.sizes(), dtype_of(x), x.shape)
