"""Loops that run at least once: their number of trips, and the values that they save for the backward Loop."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from onnxplain.graph.emit import Emitter
from onnxplain.graph.ir import Dim, Graph, Node
from onnxplain.graph.var import Var


@dataclass(frozen=True)
class Trips:
    """The trips of a Loop that runs at least once.

    Attributes
    ----------
    length
        Number of trips: an int, a symbolic size, or None if unknown.
    whole
        Whether every tensor that is read slice by slice has exactly one slice per trip.
    """

    length: Dim
    whole: bool

    @classmethod
    def of(cls, emitter: Emitter, node: Node) -> Trips | None:
        """Return the trips of a Loop that is known to run at least once; else None."""
        body: Graph = node.attrs["body"]
        if node.each_slice:
            index = body.inputs[0].name
            reads = (n for n in body.nodes if n.op == "Gather" and n.inputs[1] == index)
            sizes = [(emitter.var(n.inputs[0]).shape or (None,))[n.attrs["axis"]] for n in reads]
            return cls(next(iter(sizes), None), True)
        count, on = (emitter.var(name).value if name else None for name in node.inputs[:2])
        go = body.producer.get(body.outputs[0].name)
        endless = (not node.inputs[1] or on) and go and (go.op, go.inputs) == ("Identity", (body.inputs[1].name,))
        return cls(int(count), False) if endless and count is not None and count > 0 else None

    def match(self, source: Var, axis: int) -> bool:
        """Whether a tensor has exactly one slice per trip along an axis."""
        return self.whole or (source.shape or ())[axis] == self.length


@dataclass(frozen=True)
class SavedStacks:
    """Values of all trips of a forward Loop, stacked along a new first axis, for the backward Scan to read.

    Attributes
    ----------
    emitter
        The emitter of the graph that contains the Loop.
    inner
        The emitter of one recomputed trip; it uses the names of the Loop's body.
    node
        The Loop.
    trips
        Its trips.
    states
        Name of a state at the start of a trip -> the stack that a recomputed trip reads it from.
    requested
        Name in the body -> its stack. The forward Loop is extended to output these.
    """

    emitter: Emitter
    inner: Emitter
    node: Node
    trips: Trips
    states: Mapping[str, Var]
    requested: dict[str, Var] = field(default_factory=dict)

    def __call__(self, name: str) -> Var | None:
        """Return the stack of a value in the body, and request it; None if it cannot be stacked.

        A value that a trip reads as a slice of a tensor needs no saving: the tensor is its stack. Any other value needs
        a shape that is the same in all trips.
        """
        node, index = self.inner.producer(name), self.node.attrs["body"].inputs[0].name
        if node and node.op == "Gather" and node.inputs[1] == index and node.inputs[0] not in self._computed:
            return self._read(node, name)
        shape = self.inner.values[name].shape
        if name not in self._computed or shape is None:
            return None
        if not self._sizes.issuperset(d for d in shape if not isinstance(d, int)):
            return None
        if name not in self.requested:
            known = (self.trips.length, *shape)
            self.requested[name] = self.emitter.input(f"{name}/saved", self.inner.values[name].dtype, known)
        return self.requested[name]

    def _read(self, node: Node, name: str) -> Var:
        """Return the tensor that a Gather reads one slice of per trip, with the slices along axis 0.

        The Gather belongs to the body, or was added to read a state at the start of a recomputed trip.
        """
        if name in self._computed:
            return self._slices(node)
        self.requested.update((start, stack) for start, stack in self.states.items() if start == name)
        return self.emitter.var(node.inputs[0])  # there is a slice for each trip

    @property
    def count(self) -> Var:
        """The number of trips."""
        return self.emitter.var(self.node.inputs[0])

    def _slices(self, node: Node) -> Var:
        """Return the tensor that a Gather of the body reads: slices along axis 0, exactly one per trip."""
        source = self.emitter.var(node.inputs[0])
        axis = node.attrs["axis"] % source.rank
        stack = source.transpose([axis, *(a for a in range(source.rank) if a != axis)])
        if self.trips.match(source, axis):
            return stack
        start, end = self.emitter.ints([0]), self.count.reshape([1])
        return self.emitter.op("Slice", stack, start, end, start, known=(self.trips.length, *(stack.shape or ())[1:]))

    @cached_property
    def _computed(self) -> set[str]:
        """Names of the values that may differ from trip to trip."""
        body: Graph = self.node.attrs["body"]
        return body.reachable_from(v.name for v in body.inputs).intersection(body.producer)

    @cached_property
    def _sizes(self) -> set[Dim]:
        """Symbolic sizes that are the same in all trips: those of tensors computed before the Loop."""
        shapes = (self.emitter.var(name).shape for name in self.node.reads)
        return {d for shape in shapes if shape for d in shape if d is not None}
