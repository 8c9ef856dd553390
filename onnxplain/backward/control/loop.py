"""Loop: its cotangents come from a Loop over the trips it has made, from the last to the first.

The forward Loop is told to save the states that its trips started with, from which each trip back calculates forward
once more. The states of the Loop back are the cotangents of the forward one's states, and sums of those of what it
captures.

Where the number of trips is known, the way back is a Scan. Then the forward Loop saves all that is needed of its trips,
and what a trip back makes of that alone is calculated for all trips at once (`Stacks`).
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
from onnxplain.backward.control.trips import Saved, Trips
from onnxplain.graph.emit import Emitter
from onnxplain.graph.ir import Dim, Graph, Node, Shape, Value
from onnxplain.graph.var import Var, concat
from onnxplain.ops.parts import Sums
from onnxplain.ops.table import Call, Cotangent

CELL = 100  # nodes; what a larger body calculates is too much to be kept for all trips


def active_loop(node: Node, active: set[str], activity: Activity) -> set[str]:
    """Names of the outputs that depend on ``active`` values, after however many trips."""
    inside = _active_inside(node, active, activity)
    body: Graph = node.attrs["body"]
    count = len(body.inputs) - 2
    inner = [v.name for v in (*body.inputs[2:], *body.outputs[1 + count :])]
    return {o for o, name in zip(node.outputs, inner, strict=False) if o and name in inside}


def _active_inside(node: Node, active: set[str], activity: Activity) -> set[str]:
    """Names of the body's active values; a state is active if it is so in any trip."""
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
    """A state of a Loop.

    Attributes
    ----------
    initial, start, end
        Its names: before the loop; in the body, at the start of a trip and at its end.
    final
        It after the loop.
    saved
        What all trips started with, once the forward Loop is told to save that.
    fixed
        Whether its size is the same in all trips, so that ``saved`` is one tensor; otherwise it is a sequence.
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
        """Fetch what the trip ``index`` started with."""
        if self.fixed:
            return Node("Gather", (self.saved.name, index), (self.start,), {"axis": 0})
        return Node("SequenceAt", (self.saved.name, index), (self.start,))


def _stacked(shape: Shape | None, length: Dim = None) -> Shape | None:
    return None if shape is None else (length, *shape)


@dataclass(frozen=True)
class LoopCall(ControlCall):
    """Attributes.

    body, inner
        The calculation of one trip, which has the trip's index as its only input, and the emitter that holds it.
    states
        All states.
    carried
        Those whose cotangents go from trip to trip.
    slices
        Name in the body -> a captured tensor and its axis, of which each trip reads the slice at its index. Their
        cotangents are collected: adding each to a sum of the whole tensor's size takes time quadratic in the trips.
    numbers
        A number for each trip, once the forward Loop is told to save that.
    saved
        What the trips leave behind, where the way back is a Scan.
    """

    body: Graph
    inner: Emitter
    states: Sequence[_State]
    carried: Sequence[_State]
    slices: Mapping[str, tuple[str, int]]
    numbers: Var
    saved: Saved | None

    @classmethod
    def enter(
        cls, call: Call, needed: set[str], active: set[str], plan: Planner, activity: Activity
    ) -> tuple[ControlCall, WalkPlan]:
        """Plan the walk through one trip; ``needed`` are the names to start from."""
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
        saved = Saved(call.emitter, inner, call.node, trips, kept) if trips and scanned else None
        fields = (call.emitter, call.node, call.inputs, call.outputs, call.active)
        call = cls(*fields, body, inner, states, carried, slices, numbers, saved)
        return call, replace(path, needed=reached)

    @property
    def flows(self) -> Iterator[tuple[str, str]]:
        """Into the first trip, from trip to trip, and out of the last."""
        for state in self.states:
            yield from ((state.initial, state.start), (state.initial, state.final.name), (state.end, state.start))
        yield from zip((v.name for v in self.body.outputs[1:]), self.node.outputs, strict=False)
        yield from ((source, name) for name, (source, _) in self.slices.items())

    def vjp(self, cotangents: Sequence[Cotangent], walk: Walk) -> Sequence[Cotangent]:
        """Write the Loop back."""
        inner, emitter, index = self.inner, self.emitter, self.inner.var(self.body.inputs[0].name)
        carried = [_input_like(inner.var(s.start)) for s in self.carried]
        seeds = Sums()
        for state, ct in zip(self.carried, carried, strict=True):
            seeds.add(state.end, ct)
        for value, stack in list(zip(self.body.outputs[1:], cotangents, strict=False))[len(self.states) :]:
            if stack is not None:
                known = stack.shape[1:] if stack.shape else None
                seeds.add(value.name, inner.op("Gather", inner.var(stack.name), index, known=known, axis=0))
        arrived = walk(inner, seeds)

        captured = [n for n in self.node.captured if n in arrived]
        slices = [n for n in self.slices if n in arrived]
        sums = [_input_like(inner.var(n)) for n in captured]
        states = [*carried, *sums]
        ends = [or_zeros(arrived.get(s.start), inner.var(s.start)) for s in self.carried]
        ends += [total + arrived[n] for n, total in zip(captured, sums, strict=True)]
        given = dict(zip((s.start for s in self.states), cotangents, strict=False))
        initial = [or_zeros(given.get(s.start), s.final) for s in self.carried]
        initial += [zeros_like(emitter.var(n)) for n in captured]
        rows = [arrived[n] for n in slices]
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
        """Write the trips back as a Loop; return the last states, and what each trip gives, in their order."""
        inner, emitter, index = self.inner, self.emitter, self.inner.var(self.body.inputs[0].name)
        go_on = inner.input("go_on", bool, ())
        inputs = [inner.input("trip", np.int64, ()), go_on, index, *states]
        body = inner.body(inputs, [go_on, index - 1, *ends, *outputs], "backward")
        self._save(body.captured)
        count = self.numbers.size(0).reshape([])
        _, *found = emitter.ops(
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
            emitter.op("Slice", v, first, last, emitter.ints([0]), step, known=v.shape) for v in found[len(states) :]
        ]
        return found[: len(states)], stacks

    def _scan(
        self, saved: Saved, states: Sequence[Var], initial: Sequence[Var], ends: Sequence[Var], outputs: Sequence[Var]
    ) -> tuple[Sequence[Var], Sequence[Var]]:
        """Write the trips back as a Scan of what does not depend on the states; see `_loop`."""
        emitter, index = self.emitter, self.inner.var(self.body.inputs[0].name)
        trip = self.inner.body([index], [*ends, *outputs], "backward")
        moving = trip.reachable_from(v.name for v in states)
        trip = factored(trip, self.inner, moving)
        length = saved.trips.length
        stacks = Stacks(emitter, trip, index.name, moving, length, saved)
        names = [v.name for v in trip.outputs]
        rows = names[len(ends) :]
        apart = {n: found[0] for n in rows if n not in moving and (found := stacks(n)) and found[1]}
        scanned = [n for n in rows if n not in apart]
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
        apart |= dict(zip(scanned, made[len(states) :], strict=True))
        return made[: len(states)], [apart[n] for n in rows]

    def _save(self, wanted: Sequence[str]) -> None:
        """Make the forward Loop save the number of its trips, and the states whose ``saved`` is wanted."""
        emitter, body = self.emitter, self.node.attrs["body"]
        stacked = [s for s in self.states if s.fixed and s.saved.name in wanted]
        listed = [s for s in self.states if not s.fixed and s.saved.name in wanted]

        # ONNX Runtime may put the last trip's number everywhere, but there are as many as there were trips.
        sources = self.saved.found if self.saved else {body.inputs[0].name: self.numbers}
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
    """The body of a Loop as the calculation of one trip, given its index."""
    index, go_on = replace(body.inputs[0], shape=()), body.inputs[1].name
    return body.replace(
        inputs=(index,),
        nodes=(*(s.read(index.name) for s in states), *body.nodes),
        constants={**body.constants, go_on: np.array(True)},
        values={**{k: v for k, v in body.values.items() if k != go_on}, index.name: index},
    )


def _input_like(x: Var) -> Var:
    """A new input for a cotangent of ``x``."""
    return x.emitter.input(x.name, dtype_of(x), x.shape)


def _unsliced(stack: Var, source: Var, axis: int, whole: bool) -> Var:
    """The cotangent of ``source`` from those of its slices, which are stacked in the order of the trips."""
    emitter = stack.emitter
    order = [axis, *(a for a in range(source.rank) if a != axis)]
    known = tuple((source.shape or ())[a] for a in order)
    if not whole:  # there may be fewer trips, even none
        missing = concat([source.size(a) for a in order]) - emitter.op("Shape", stack)
        pads = concat([emitter.ints([0] * source.rank), missing])
        stack = emitter.op("Pad", stack, pads, known=known, mode="constant")
    return stack.transpose(np.argsort(order).tolist())
