"""`WalkPlan` and `ControlCall`, the common ground of If and Loop."""

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
    """The path of the reverse walk through a graph, from some outputs back to some tensors.

    Attributes
    ----------
    calls
        The nodes on the path, in the order of the walk; those in the bodies of a node come directly after it.
    needed
        Names of the active values that the walk reaches.
    missing
        Nodes on the path that have no gradient.
    vague
        Nodes on the path where the rank of a tensor is unknown.
    """

    calls: list[Call] = field(default_factory=list)
    needed: set[str] = field(default_factory=set)
    missing: list[Node] = field(default_factory=list)
    vague: list[Call] = field(default_factory=list)

    def add(self, other: WalkPlan) -> None:
        """Append the path through a body."""
        self.calls.extend(other.calls)
        self.needed.update(other.needed)
        self.missing.extend(other.missing)
        self.vague.extend(other.vague)


Planner = Callable[[Graph, Emitter, Iterable[str], Iterable[str]], WalkPlan]  # (graph, emitter, outputs, wanted)
Walk = Callable[[Emitter, Mapping[str, Var]], Mapping[str, Var]]  # (emitter, seeds) -> name -> sum of its cotangents
Activity = Callable[[Graph, Iterable[str]], set[str]]  # (graph, wanted) -> names of the values that depend on them


@dataclass(frozen=True)
class ControlCall(Call):
    """A control-flow node bound to its tensors: ``inputs`` and ``active`` have an entry for each of its operands."""

    @property
    @abstractmethod
    def flows(self) -> Iterator[tuple[str, str]]:
        """Yield pairs (source, copy) of value names across a body's boundary: the copy may hold the source's value."""

    @abstractmethod
    def vjp(self, cotangents: Sequence[Cotangent], walk: Walk) -> Sequence[Cotangent]:
        """Write the backward node; return one cotangent per operand."""


def dtype_of(x: Var) -> np.dtype[Any]:
    """Return the dtype of a cotangent of ``x``: float32 for integers, which stand for floats (see `active_values`)."""
    return x.dtype if is_float(x.dtype) else np.dtype(np.float32)


def or_zeros(cotangent: Cotangent, x: Var) -> Var:
    """Return the cotangent of ``x``, or zeros if it is None."""
    return zeros_like(x) if cotangent is None else cotangent


def zeros_like(x: Var) -> Var:
    """Return a zero cotangent of ``x``."""
    return zeros(x.sizes(), dtype_of(x), x.shape)
