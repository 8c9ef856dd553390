"""The trips of a Loop where it is known that there are some, and what they leave behind for a way back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from onnxplain.graph.emit import Emitter
from onnxplain.graph.ir import Dim, Graph, Node
from onnxplain.graph.var import Var


@dataclass(frozen=True)
class Trips:
    """The trips of a Loop that makes one at least.

    Attributes
    ----------
    length
        Their number, as far as it is known.
    whole
        Whether each tensor that is read slice by slice has just as many.
    """

    length: Dim
    whole: bool

    @classmethod
    def of(cls, emitter: Emitter, node: Node) -> Trips | None:
        """Tell the trips of a Loop in the graph that an emitter holds; None where nobody knows whether it makes one."""
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
        """Whether a tensor has as many slices along an axis."""
        return self.whole or (source.shape or ())[axis] == self.length


@dataclass(frozen=True)
class Saved:
    """Stacks of what the trips of a Loop have calculated.

    Attributes
    ----------
    emitter, inner
        Around the Loop, and of a trip that is calculated once more, whose names are those in the body.
    node
        The Loop.
    states
        What a trip starts with -> the stack that the trip reads it from.
    found
        Name in the body -> its stack, which the Loop is to be told to save.
    """

    emitter: Emitter
    inner: Emitter
    node: Node
    trips: Trips
    states: Mapping[str, Var]
    found: dict[str, Var] = field(default_factory=dict)

    def __call__(self, name: str) -> Var | None:
        """Look up the stack of a value that the trips have, or that they read slice by slice."""
        node, index = self.inner.producer(name), self.node.attrs["body"].inputs[0].name
        if node and node.op == "Gather" and node.inputs[1] == index and node.inputs[0] not in self._computed:
            return self._read(node, name)
        shape = self.inner.values[name].shape
        if name not in self._computed or shape is None:
            return None
        if not self._sizes.issuperset(d for d in shape if not isinstance(d, int)):
            return None
        if name not in self.found:
            known = (self.trips.length, *shape)
            self.found[name] = self.emitter.input(f"{name}/saved", self.inner.values[name].dtype, known)
        return self.found[name]

    def _read(self, node: Node, name: str) -> Var:
        """The stack that a trip reads a slice of: what the body reads, or what was made for the way back."""
        if name in self._computed:
            return self._slices(node)
        self.found.update((start, stack) for start, stack in self.states.items() if start == name)
        return self.emitter.var(node.inputs[0])  # there is a slice for each trip

    @property
    def count(self) -> Var:
        """The number of trips."""
        return self.emitter.var(self.node.inputs[0])

    def _slices(self, node: Node) -> Var:
        """All that a trip reads one slice of, the slices in front."""
        source = self.emitter.var(node.inputs[0])
        axis = node.attrs["axis"] % source.rank
        stack = source.transpose([axis, *(a for a in range(source.rank) if a != axis)])
        if self.trips.match(source, axis):
            return stack
        start, end = self.emitter.ints([0]), self.count.reshape([1])
        return self.emitter.op("Slice", stack, start, end, start, known=(self.trips.length, *(stack.shape or ())[1:]))

    @cached_property
    def _computed(self) -> set[str]:
        """Names of what may not be the same in all trips."""
        body: Graph = self.node.attrs["body"]
        return body.reachable_from(v.name for v in body.inputs).intersection(body.producer)

    @cached_property
    def _sizes(self) -> set[Dim]:
        """The names of sizes that are the same in all trips: those of what is there before."""
        shapes = (self.emitter.var(name).shape for name in self.node.reads)
        return {d for shape in shapes if shape for d in shape if d is not None}
