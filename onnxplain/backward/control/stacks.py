"""Vectorisation of a loop: computations that do not depend on earlier trips, done for all trips at once.

The values of all trips form a stack, along a new first axis. A node whose inputs do not depend on the state carried
from trip to trip is moved out of the loop and applied to stacks, if its operator treats the rows of a stack
independently. A step of a recurrent layer then contains only the operations that have to wait for the previous step.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from onnxplain.graph.emit import Emitter, renamed
from onnxplain.graph.inference import broadcast_shape
from onnxplain.graph.ir import Dim, Graph, Node
from onnxplain.graph.var import Var
from onnxplain.ops import OPS, Trait
from onnxplain.ops.linear import unsqueeze

Stacked = tuple[Var, bool]  # a tensor outside the loop; True if it is a stack, False if all trips have the same value
Fitted = tuple[Sequence[Var | None], Mapping[str, Any]]  # inputs and attributes of a node on stacks


class Stacks:
    """The stacks of a trip's values, computed outside the loop on first use.

    Parameters
    ----------
    emitter
        The emitter of the graph that contains the loop.
    trip
        The computation of one trip.
    index
        Name of the trip's number, at which it reads slices.
    moving
        Names of the values that depend on the state carried from trip to trip.
    length
        Number of trips: an int, a symbolic size, or None if unknown.
    kept
        Returns the stack of a value that needs no computation, else None.
    """

    def __init__(
        self,
        emitter: Emitter,
        trip: Graph,
        index: str,
        moving: Collection[str],
        length: Dim,
        kept: Callable[[str], Var | None],
    ) -> None:
        self._emitter, self._trip, self._index, self._length, self._kept = emitter, trip, index, length, kept
        self._moving = moving
        self._computed: dict[str, Stacked | None] = {}

    def __call__(self, name: str) -> Stacked | None:
        """Compute a value outside the loop; None if that is impossible."""
        if name not in self._computed:
            self._computed |= self._compute(name)
        return self._computed[name]

    def left(self, results: Sequence[str]) -> tuple[list[Node], dict[str, Var]]:
        """Return the nodes that have to stay in the loop for ``results``, and the stacks that they read.

        The stacks are keyed by the name under which the nodes read a slice.
        """
        nodes: list[Node] = []
        read: dict[str, Var] = {}
        needed = set(results)
        for node in reversed(self._trip.nodes):
            if needed.isdisjoint(node.outputs):
                continue
            names = {}
            for name in node.reads:
                outside = None if name in self._moving or name in self._trip.constants else self(name)
                if outside is None:
                    needed.add(name)
                elif outside[1]:
                    read[name] = outside[0]
                else:
                    names[name] = outside[0].name
            nodes.append(renamed(node, names))
        return nodes[::-1], read

    def _compute(self, name: str) -> Mapping[str, Stacked | None]:
        """Write the node that computes a value, on stacks; return all of the node's outputs."""
        node = self._trip.producer.get(name)
        if name in self._trip.constants:
            return {name: (self._emitter.const(self._trip.constants[name]), False)}
        if node is None:
            return {name: None if name == self._index else (self._emitter.var(name), False)}
        kept = self._kept(name)
        if kept is not None:
            return {name: (kept, True)}
        inputs = [self(i) if i else None for i in node.inputs]
        possible = not node.subgraphs and all(v for i, v in zip(node.inputs, inputs, strict=True) if i)
        outputs = [self._trip.values.get(o) for o in node.outputs]
        if not possible or any(v is None or v.shape is None for v in outputs):
            return dict.fromkeys(node.outputs)
        stacked = any(v[1] for v in inputs if v)
        fitted = self._fitted(node, inputs) if stacked else ([v and v[0] for v in inputs], node.attrs)
        if fitted is None:
            return dict.fromkeys(node.outputs)
        made = self._emitter.ops(
            node.op,
            *fitted[0],
            outputs=len(node.outputs),
            dtypes=[v.dtype for v in outputs if v],
            shapes=[(self._length, *v.shape) if stacked else v.shape for v in outputs if v and v.shape is not None],
            domain=node.domain,
            **fitted[1],
        )
        return {o: (v, stacked) for o, v in zip(node.outputs, made, strict=True)}

    def _fitted(self, node: Node, inputs: Sequence[Stacked | None]) -> Fitted | None:
        """Return the inputs and attributes with which a node computes a stack; None if its operator cannot."""
        if node.domain or any(v and v[0].shape is None for v in inputs):
            return None
        present = [v for v in inputs if v]
        ranks = [v.rank - stacked for v, stacked in present]
        first, is_stack = present[0]
        if node.op == "Clip" and any(s for _, s in present[1:]):
            return None  # Clip's bounds are scalars, the same for all rows
        if OPS.has(node, Trait.ELEMENTWISE):
            return [v and _lifted(*v, max(ranks)) for v in inputs], node.attrs
        if (
            OPS.has(node, Trait.ALONG_AXIS)
            and is_stack
            and all(s for _, s in present[: None if node.op == "Concat" else 1])
        ):
            return [v and v[0] for v in inputs], {**node.attrs, "axis": node.attrs["axis"] % ranks[0] + 1}
        if node.op == "Transpose":
            return [first], {"perm": [0, *(1 + p for p in node.attrs["perm"])]}
        if node.op == "MatMul" and (min(ranks) > 1 or (is_stack and not present[1][1] and ranks[1] == 2)):
            return [_lifted(*v, max(ranks)) for v in present], node.attrs
        return None


def factored(trip: Graph, inner: Emitter, moving: Collection[str]) -> Graph:
    """Rewrite d / a * b as d (b / a) in a trip where only d depends on carried state: one multiplication stays.

    b / a does not depend on earlier trips, so `Stacks` can move it out of the loop.

    Parameters
    ----------
    trip
        The computation of one trip.
    inner
        The emitter of the trip.
    moving
        Names of the values that depend on the state carried from trip to trip.
    """
    nodes: list[Node] = []
    made: dict[tuple[str, str, str], str] = {}
    products: dict[str, tuple[str, str, str]] = {}  # name of d op a -> (d, op, a)

    def calculated(op: str, a: str, b: str) -> str:
        if (op, a, b) not in made:
            x, y = inner.var(a), inner.var(b)
            made[op, a, b] = inner.input("factor", x.dtype, broadcast_shape(x.shape, y.shape)).name
            nodes.append(Node(op, (a, b), (made[op, a, b],)))
        return made[op, a, b]

    for node in trip.nodes:
        moves = [name in moving for name in node.inputs]
        if (node.op, moves) in (("Mul", [True, False]), ("Mul", [False, True]), ("Div", [True, False])):
            d, b = (node.inputs[moves.index(m)] for m in (True, False))
            op = node.op
            if d in products:
                d, first, a = products[d]
                if first == "Mul":  # d a b, or d a / b
                    op, b = first, calculated(op, a, b)
                else:  # d / a b, or d / a / b
                    b = calculated("Div", b, a) if op == "Mul" else calculated("Mul", a, b)
                node = replace(node, op=op, inputs=(d, b))
            products[node.outputs[0]] = d, op, b
        nodes.append(node)
    values = {**trip.values, **{name: inner.values[name] for name in made.values()}}
    return trip.replace(nodes=tuple(nodes), values=values).pruned([v.name for v in trip.outputs])


def _lifted(x: Var, stacked: bool, rank: int) -> Var:
    """Insert axes into a stack, behind the first, so that its rows have ``rank`` axes and still broadcast."""
    missing = rank - x.rank + 1 if stacked else 0
    return unsqueeze(x, range(1, 1 + missing)) if missing else x
