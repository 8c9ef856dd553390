"""What each trip of a loop calculates for itself, calculated for all trips at once.

The values of all trips are a stack, along a new first axis. What one trip makes of its own values, without those that
are handed on from trip to trip, comes as a stack out of the same operators outside of the loop, if these treat the rows
of a stack apart from each other. A step of a recurrent layer then holds only what really has to wait for the last one.
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

Stacked = tuple[Var, bool]  # a value outside of the loop; whether it is a stack, or the same in all trips
Fitted = tuple[Sequence[Var | None], Mapping[str, Any]]  # inputs and attributes


class Stacks:
    """The stacks of what a trip calculates, made when they are asked for.

    Parameters
    ----------
    emitter
        Around the loop.
    trip
        The calculation of one trip.
    index
        Name of its number, at which it reads slices.
    moving
        Names of the values that depend on what is handed on from trip to trip.
    length
        The number of trips, as far as it is known.
    kept
        Gives the stack of a value, if there is one without any calculation.
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
        self._found: dict[str, Stacked | None] = {}

    def __call__(self, name: str) -> Stacked | None:
        """Calculate a value outside of the loop; None where that is not possible."""
        if name not in self._found:
            self._found |= self._find(name)
        return self._found[name]

    def left(self, results: Sequence[str]) -> tuple[list[Node], dict[str, Var]]:
        """What has to stay in the loop for ``results``: nodes, and the stacks that they read, by their names there."""
        nodes: list[Node] = []
        read: dict[str, Var] = {}
        needed = set(results)
        for node in reversed(self._trip.nodes):
            if needed.isdisjoint(node.outputs):
                continue
            names = {}
            for name in node.reads:
                found = None if name in self._moving or name in self._trip.constants else self(name)
                if found is None:
                    needed.add(name)
                elif found[1]:
                    read[name] = found[0]
                else:
                    names[name] = found[0].name
            nodes.append(renamed(node, names))
        return nodes[::-1], read

    def _find(self, name: str) -> Mapping[str, Stacked | None]:
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
        """Inputs and attributes with which a node calculates a stack, if it can."""
        if node.domain or any(v and v[0].shape is None for v in inputs):
            return None
        present = [v for v in inputs if v]
        ranks = [v.rank - stacked for v, stacked in present]
        first, is_stack = present[0]
        if node.op == "Clip" and any(s for _, s in present[1:]):
            return None  # its bounds are numbers
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
    """A trip in which d / a * b, where nothing but d moves, is d (b / a): what moves is multiplied once.

    Parameters
    ----------
    inner
        The emitter of the trip.
    """
    nodes: list[Node] = []
    made: dict[tuple[str, str, str], str] = {}
    products: dict[str, tuple[str, str, str]] = {}  # name -> what moves, and the operator and the operand after it

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
    """A stack of values that broadcast to ``rank`` axes, with as many axes behind the first."""
    missing = rank - x.rank + 1 if stacked else 0
    return unsqueeze(x, range(1, 1 + missing)) if missing else x
