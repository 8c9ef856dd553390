"""Loop: its cotangents are computed by a second Loop over the same trips, from the last to the first.

The forward Loop is extended to output the states at the start of each trip. From these, each backward trip recomputes
its forward trip. The states of the backward Loop are the cotangents of the forward Loop's states, and the running sums
of the cotangents of captured values.

If the number of trips is known, the backward node is a Scan. The forward Loop then outputs every value that the
backward trips need, and computations that depend on such values only are done for all trips at once (`Stacks`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from onnxplain.backward.control.base import (
    Activity,
    ControlCall,
    Planner,
    Walk,
    WalkPlan,
    dtype_of,
    or_zeros,
    zeros_like,
)
from onnxplain.backward.control.stacks import Stacks, factored
from onnxplain.backward.control.trips import SavedStacks, Trips
from onnxplain.graph.emit import Emitter
from onnxplain.graph.ir import Dim, Graph, Node, Shape, Value
from onnxplain.graph.var import Var, concat
from onnxplain.ops.parts import Sums
from onnxplain.ops.table import Call, Cotangent

CELL = 100  # nodes; saving the values of all trips of a larger body would take too much memory


def active_loop(node: Node, active: set[str], activity: Activity) -> set[str]:
    """Return the names of the outputs that depend on ``active`` values after any number of trips."""
    inside = _active_inside(node, active, activity)
    body: Graph = node.attrs["body"]
    count = len(body.inputs) - 2
    inner = [v.name for v in (*body.inputs[2:], *body.outputs[1 + count :])]
    return {o for o, name in zip(node.outputs, inner, strict=False) if o and name in inside}


def _active_inside(node: Node, active: set[str], activity: Activity) -> set[str]:
    """Return the names of the body's active values; a state is active if it is active in any trip."""
    body: Graph = node.attrs["body"]
    starts = [v.name for v in body.inputs[2:]]
    wanted = active.intersection(body.captured) | {
        s for i, s in zip(node.inputs[2:], starts, strict=True) if i in active
    }
    while True:
        inside = activity(body, wanted)
        more = {s for s, end in zip(starts, body.outputs[1:], strict=False) if end.name in inside} - wanted
        if not more:
            return inside
        wanted |= more


@dataclass(frozen=True)
class _State:
    """A state of a Loop: a value carried from trip to trip.

    Attributes
    ----------
    initial, start, end
        The state's names: before the loop, in the body at the start of a trip, and in the body at the end of a trip.
    final
        The state after the loop.
    saved
        The states at the start of all trips: an output of the forward Loop once `LoopCall._save` has added it.
    fixed
        Whether the state has the same shape in all trips; then ``saved`` is one tensor, otherwise a sequence.
    """

    initial: str
    start: str
    end: str
    final: Var
    saved: Var
    fixed: bool

    @classmethod
    def of(cls, call: Call) -> list[_State]:
        """List the states of a Loop."""
        body: Graph = call.attrs["body"]
        states = []
        for initial, start, end, final in zip(
            call.node.inputs[2:], body.inputs[2:], body.outputs[1:], call.outputs, strict=False
        ):
            assert final is not None  # ONNX Runtime wants all outputs of a Loop to have names
            shape = start.shape
            fixed = shape is not None and shape == end.shape and None not in shape
            dtype, saved_shape = (start.dtype, _stacked(shape)) if fixed else (np.dtype(object), None)
            saved = call.emitter.input(f"{start.name}/saved", dtype, saved_shape)
            states.append(cls(initial, start.name, end.name, final, saved, fixed))
        return states

    def read(self, index: str) -> Node:
        """Return the node that reads the state at the start of trip ``index``."""
        if self.fixed:
            return Node("Gather", (self.saved.name, index), (self.start,), {"axis": 0})
        return Node("SequenceAt", (self.saved.name, index), (self.start,))


def _stacked(shape: Shape | None, length: Dim = None) -> Shape | None:
    return None if shape is None else (length, *shape)


@dataclass(frozen=True)
class LoopCall(ControlCall):
    """A Loop on the path, with everything that its backward node needs.

    Attributes
    ----------
    body
        The computation of one trip; the trip's index is its only input.
    inner
        The emitter that holds ``body``.
    states
        All states.
    carried
        The states whose cotangents are carried from trip to trip.
    slices
        Name in the body -> (captured tensor, axis) of which each trip reads the slice at its index. The cotangents of
        slices are collected and joined at the end: adding each to a sum of the whole tensor's size would take time
        quadratic in the number of trips.
    numbers
        One number per trip, whose count is the number of trips: an output of the forward Loop once `_save` has added
        it.
    saved
        The saved values of all trips if the backward node is a Scan; else None.
    """

    body: Graph
    inner: Emitter
    states: Sequence[_State]
    carried: Sequence[_State]
    slices: Mapping[str, tuple[str, int]]
    numbers: Var
    saved: SavedStacks | None

    @classmethod
    def enter(
        cls, call: Call, needed: set[str], active: set[str], plan: Planner, activity: Activity
    ) -> tuple[ControlCall, WalkPlan]:
        """Plan the walk through one trip; ``needed`` has the names of the outputs to start from."""
        states = _State.of(call)
        body = _trip(call.attrs["body"], states)
        inner = Emitter(body, outer=call.emitter)
        slices = {
            n.outputs[0]: (n.inputs[0], n.attrs["axis"] % call.emitter.var(n.inputs[0]).rank)
            for n in body.nodes
            if n.op == "Gather" and n.inputs[1] == body.inputs[0].name and n.inputs[0] in active
        }
        walked = body.replace(nodes=tuple(n for n in body.nodes if n.outputs[0] not in slices))
        captured = active.intersection(walked.captured)
        depending = _active_inside(call.node, active, activity)
        starts = {s.start for s in states if s.start in depending}
        ends = {v.name for v, o in zip(body.outputs[1:], call.node.outputs, strict=False) if o in needed}
        while True:
            path = plan(walked, inner, ends, starts | captured | slices.keys())
            more = {s.end for s in states if s.start in starts & path.needed} - ends
            if not more:
                break
            ends |= more
        carried = [s for s in states if s.start in starts and s.end in ends]
        slices = {name: source for name, source in slices.items() if name in path.needed}
        reached = {s.initial for s in carried} | (captured & path.needed) | {source for source, _ in slices.values()}
        numbers = call.emitter.input("trips", np.int64, (None,))
        trips = Trips.of(call.emitter, call.node)
        kept = {s.start: s.saved for s in states if s.fixed}
        scanned = trips and all(s.fixed for s in carried) and len(body.nodes) <= CELL
        saved = SavedStacks(call.emitter, inner, call.node, trips, kept) if trips and scanned else None
        fields = (call.emitter, call.node, call.inputs, call.outputs, call.active)
        call = cls(*fields, body, inner, states, carried, slices, numbers, saved)
        return call, replace(path, needed=reached)

    @property
    def flows(self) -> Iterator[tuple[str, str]]:
        """Yield the flows into the first trip, from trip to trip, out of the last trip, and into slices."""
        for state in self.states:
            yield from ((state.initial, state.start), (state.initial, state.final.name), (state.end, state.start))
        yield from zip((v.name for v in self.body.outputs[1:]), self.node.outputs, strict=False)
        yield from ((source, name) for name, (source, _) in self.slices.items())

    def vjp(self, cotangents: Sequence[Cotangent], walk: Walk) -> Sequence[Cotangent]:
        """Write the backward Loop, or Scan; return one cotangent per operand."""
        inner, emitter, index = self.inner, self.emitter, self.inner.var(self.body.inputs[0].name)
        carried = [_input_like(inner.var(s.start)) for s in self.carried]
        seeds = Sums()
        for state, ct in zip(self.carried, carried, strict=True):
            seeds.add(state.end, ct)
        for value, stack in list(zip(self.body.outputs[1:], cotangents, strict=False))[len(self.states) :]:
            if stack is not None:
                known = stack.shape[1:] if stack.shape else None
                seeds.add(value.name, inner.op("Gather", inner.var(stack.name), index, known=known, axis=0))
        cotangents_inside = walk(inner, seeds)

        captured = [n for n in self.node.captured if n in cotangents_inside]
        slices = [n for n in self.slices if n in cotangents_inside]
        sums = [_input_like(inner.var(n)) for n in captured]
        states = [*carried, *sums]
        ends = [or_zeros(cotangents_inside.get(s.start), inner.var(s.start)) for s in self.carried]
        ends += [total + cotangents_inside[n] for n, total in zip(captured, sums, strict=True)]
        of_states = dict(zip((s.start for s in self.states), cotangents, strict=False))
        initial = [or_zeros(of_states.get(s.start), s.final) for s in self.carried]
        initial += [zeros_like(emitter.var(n)) for n in captured]
        rows = [cotangents_inside[n] for n in slices]
        run = partial(self._scan, self.saved) if self.saved else self._loop
        finals, stacks = run(states, initial, ends, rows)
        by_name = Sums(zip(captured, finals[len(carried) :], strict=True))
        for name, stack in zip(slices, stacks, strict=True):
            source, axis = self.slices[name]
            whole = self.saved is not None and self.saved.trips.match(emitter.var(source), axis)
            by_name.add(source, _unsliced(stack, emitter.var(source), axis, whole))
        by_start = {s.start: ct for s, ct in zip(self.carried, finals, strict=False)}
        at_inputs = [None, None, *(by_start.get(s.start) for s in self.states)][: len(self.node.inputs)]
        return at_inputs + [by_name.get(n) for n in self.node.captured]

    def _loop(
        self, states: Sequence[Var], initial: Sequence[Var], ends: Sequence[Var], outputs: Sequence[Var]
    ) -> tuple[Sequence[Var], Sequence[Var]]:
        """Write the backward trips as a Loop.

        Parameters
        ----------
        states
            The states at the start of a backward trip, as inputs of its body.
        initial
            Their values before the first backward trip.
        ends
            The states at the end of a backward trip.
        outputs
            The other results of a backward trip: the cotangents of slices.

        Returns
        -------
        tuple
            The states after the last backward trip; and ``outputs`` of all trips, stacked in the order of the forward
            trips.
        """
        inner, emitter, index = self.inner, self.emitter, self.inner.var(self.body.inputs[0].name)
        go_on = inner.input("go_on", bool, ())
        inputs = [inner.input("trip", np.int64, ()), go_on, index, *states]
        body = inner.body(inputs, [go_on, index - 1, *ends, *outputs], "backward")
        self._save(body.captured)
        count = self.numbers.size(0).reshape([])
        _, *results = emitter.ops(
            "Loop",
            count,
            emitter.const(np.array(True)),
            count - 1,
            *initial,
            outputs=1 + len(states) + len(outputs),
            dtypes=[v.dtype for v in (index, *states, *outputs)],
            shapes=[(), *(v.shape for v in states), *(_stacked(v.shape) for v in outputs)],
            body=body,
        )
        first, last, step = (emitter.ints([i]) for i in (-1, np.iinfo(np.int64).min, -1))
        stacks = [
            emitter.op("Slice", v, first, last, emitter.ints([0]), step, known=v.shape) for v in results[len(states) :]
        ]
        return results[: len(states)], stacks

    def _scan(
        self,
        saved: SavedStacks,
        states: Sequence[Var],
        initial: Sequence[Var],
        ends: Sequence[Var],
        outputs: Sequence[Var],
    ) -> tuple[Sequence[Var], Sequence[Var]]:
        """Write the backward trips as a Scan over the stacks that they read; parameters and result as in `_loop`.

        Everything that does not depend on ``states`` is computed outside, for all trips at once.
        """
        emitter, index = self.emitter, self.inner.var(self.body.inputs[0].name)
        trip = self.inner.body([index], [*ends, *outputs], "backward")
        moving = trip.reachable_from(v.name for v in states)
        trip = factored(trip, self.inner, moving)
        length = saved.trips.length
        stacks = Stacks(emitter, trip, index.name, moving, length, saved)
        names = [v.name for v in trip.outputs]
        rows = names[len(ends) :]
        outside = {n: value[0] for n in rows if n not in moving and (value := stacks(n)) and value[1]}
        scanned = [n for n in rows if n not in outside]
        nodes, read = stacks.left([*names[: len(ends)], *scanned])
        if not read or any(index.name in node.reads for node in nodes):
            zero, one = (emitter.const(np.array(i)) for i in (0, 1))
            read[index.name] = emitter.op("Range", zero, saved.count, one, known=(length,))
        values = {**trip.values, **{v.name: Value(v.name, v.dtype, v.shape) for v in states}}
        body = trip.replace(
            inputs=tuple(values[n] for n in (*(v.name for v in states), *read)), nodes=tuple(nodes), values=values
        ).pruned([*names[: len(ends)], *scanned])
        self._save(body.captured)
        made = emitter.ops(
            "Scan",
            *initial,
            *read.values(),
            outputs=len(states) + len(scanned),
            dtypes=[values[n].dtype for n in (*names[: len(ends)], *scanned)],
            shapes=[*(v.shape for v in states), *(_stacked(values[n].shape, length) for n in scanned)],
            body=body,
            num_scan_inputs=len(read),
            scan_input_directions=[1] * len(read),
            scan_output_directions=[1] * len(scanned),
        )
        outside |= dict(zip(scanned, made[len(states) :], strict=True))
        return made[: len(states)], [outside[n] for n in rows]

    def _save(self, wanted: Sequence[str]) -> None:
        """Extend the forward Loop: output the number of its trips, and the states whose ``saved`` is in ``wanted``.

        If the backward node is a Scan, output the values that `SavedStacks` has requested instead of the number.
        """
        emitter, body = self.emitter, self.node.attrs["body"]
        stacked = [s for s in self.states if s.fixed and s.saved.name in wanted]
        listed = [s for s in self.states if not s.fixed and s.saved.name in wanted]

        # ONNX Runtime may write the last trip's number into all rows of this output; only its length is used.
        sources = self.saved.requested if self.saved else {body.inputs[0].name: self.numbers}
        sources = {**sources, **{s.start: s.saved for s in stacked}}
        outputs = {v.name for v in body.outputs}
        names = {n: n if n in body.producer and n not in outputs else emitter.fresh(n) for n in sources}
        copies = [Value(names[n], v.dtype, (v.shape or ())[1:]) for n, v in sources.items()]
        nodes = [Node("Identity", (n,), (copy,)) for n, copy in names.items() if n != copy]

        empty, start, end = ([emitter.fresh(s.saved.name) for s in listed] for _ in range(3))
        nodes += [Node("SequenceInsert", (a, s.start), (b,)) for a, s, b in zip(start, listed, end, strict=True)]
        sequences = [[Value(n, np.dtype(object), None) for n in names] for names in (start, end)]

        count = 1 + len(self.states)
        finals, rest = self.node.outputs[: count - 1], self.node.outputs[count - 1 :]
        longer = replace(
            body,
            inputs=(*body.inputs, *sequences[0]),
            outputs=(*body.outputs[:count], *sequences[1], *body.outputs[count:], *copies),
            nodes=(*body.nodes, *nodes),
            values={**body.values, **{v.name: v for v in (*copies, *sequences[0], *sequences[1])}},
        )
        node = replace(
            self.node,
            inputs=(*self.node.inputs, *empty),
            outputs=(*finals, *(s.saved.name for s in listed), *rest, *(v.name for v in sources.values())),
            attrs={**self.node.attrs, "body": longer},
        )
        before = [Node("SequenceEmpty", (), (n,), {"dtype": s.final.dtype}) for n, s in zip(empty, listed, strict=True)]
        at = next(i for i, n in enumerate(emitter.nodes) if n.outputs == self.node.outputs)
        emitter.nodes[at : at + 1] = [*before, node]


def _trip(body: Graph, states: Sequence[_State]) -> Graph:
    """Return the body of a Loop as the computation of one trip from its index: it reads the saved states itself."""
    index, go_on = replace(body.inputs[0], shape=()), body.inputs[1].name
    return body.replace(
        inputs=(index,),
        nodes=(*(s.read(index.name) for s in states), *body.nodes),
        constants={**body.constants, go_on: np.array(True)},
        values={**{k: v for k, v in body.values.items() if k != go_on}, index.name: index},
    )


def _input_like(x: Var) -> Var:
    """Return a new input of the body for a cotangent of ``x``."""
    return x.emitter.input(x.name, dtype_of(x), x.shape)


def _unsliced(stack: Var, source: Var, axis: int, whole: bool) -> Var:
    """Return the cotangent of ``source`` from those of its slices, stacked in the order of the trips.

    ``whole``: there is a slice for every position of the axis; otherwise the missing ones get zeros.
    """
    emitter = stack.emitter
    order = [axis, *(a for a in range(source.rank) if a != axis)]
    known = tuple((source.shape or ())[a] for a in order)
    if not whole:  # there may be fewer trips than positions, even none
        missing = concat([source.size(a) for a in order]) - emitter.op("Shape", stack)
        pads = concat([emitter.ints([0] * source.rank), missing])
        stack = emitter.op("Pad", stack, pads, known=known, mode="constant")
    return stack.transpose(np.argsort(order).tolist())
