"""Explainers of methods that average over sampled points, as a loop over the points.

Points drawn at random are part of the file, so that it gives the same numbers every time and wherever it runs. No
operator could draw them so: ONNX does not say which numbers follow from a seed, and the generators of ONNX Runtime do
not start anew with each call.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from onnxplain.distributions.sampling import InputLines, LineIncrements, Lines, Noise
from onnxplain.errors import OptionError
from onnxplain.export.specification import Specification, finished
from onnxplain.graph.axes import batch_axis
from onnxplain.graph.emit import Emitter
from onnxplain.graph.ir import Graph
from onnxplain.graph.var import Var, concat
from onnxplain.ops.index import zeros
from onnxplain.ops.linear import unsqueeze
from onnxplain.programs.assembly import gathered
from onnxplain.programs.inside import Inside

Array = np.ndarray[Any, Any]

MAX_NOISE_BYTES = 1 << 30  # bytes of noise in a file, which holds at most 2 GiB

Contribution = Callable[[Emitter, Var, list[Var]], tuple[Mapping[str, Var], list[Var]]]
"""(body, number of the point, state) -> values at the point by tensor, and the next state."""


def write_noise(spec: Specification, noise: Noise) -> Graph:
    """A moment of the readouts at noisy inputs."""
    inside = spec.inside()
    points = _Noisy(inside, noise)

    def contribution(body: Emitter, index: Var, state: list[Var]) -> tuple[Mapping[str, Var], list[Var]]:
        return _cotangents(inside, body, points.at(body, index)), []

    return _average(inside, spec, noise.weights, contribution)


def write_lines(spec: Specification, lines: Lines) -> Graph:
    """A moment of the readouts at points between the explained tensors and their baselines."""
    inside, readout = spec.inside(), spec.method.readout
    points = _Between(inside, lines)

    def contribution(body: Emitter, index: Var, state: list[Var]) -> tuple[Mapping[str, Var], list[Var]]:
        cotangents = _cotangents(inside, body, points.at(body, index, lines.positions))
        starts = points.starts(body, index)
        return {n: readout(ct, body.var(n), starts[n]) for n, ct in cotangents.items()}, []

    return _average(inside, spec, lines.weights, contribution)


def write_input_lines(spec: Specification, lines: InputLines) -> Graph:
    """A moment of the readouts, which are part of the program, at points between the model's inputs and baselines."""
    inside = spec.inside()
    points = _Between(inside, lines)

    def contribution(body: Emitter, index: Var, state: list[Var]) -> tuple[Mapping[str, Var], list[Var]]:
        return _cotangents(inside, body, points.at(body, index, lines.positions)), []

    return _average(inside, spec, lines.weights, contribution)


def write_increments(spec: Specification, lines: LineIncrements) -> Graph:
    """Sum over the points of a line of the readouts, times the increments of the explained tensors there."""
    inside, program = spec.inside(), spec.program
    points = _Between(inside, lines)
    values = list(program.names.values.values())

    def contribution(body: Emitter, index: Var, state: list[Var]) -> tuple[Mapping[str, Var], list[Var]]:
        cotangents = _cotangents(inside, body, points.at(body, index, lines.positions))
        after = inside(body, points.at(body, index, lines.shares), values)
        ends = zip(cotangents.items(), state, after, strict=True)
        return {n: (b - a) * ct for (n, ct), a, b in ends}, after

    def initial() -> list[Var]:
        return inside(inside.emitter, points.baseline(), values)

    return _average(inside, spec, np.ones(lines.count), contribution, initial)


def _cotangents(inside: Inside, body: Emitter, points: Mapping[str, Var]) -> dict[str, Var]:
    cotangents = inside(body, points, list(inside.program.names.cotangents.values()))
    return dict(zip(inside.program.question.tensors, cotangents, strict=True))


def _average(
    inside: Inside,
    spec: Specification,
    weights: Array,
    contribution: Contribution,
    initial: Callable[[], list[Var]] = list,
) -> Graph:
    """A moment of the contributions of all points, which have these weights; ``initial`` writes the first state."""
    emitter, program, graph = inside.emitter, spec.program, spec.graph
    question, moment = program.question, spec.method.moment
    explained = {part.name: emitter.var(part.name) for part in question.slices}
    dtype = next(v.dtype for v in program.graph.outputs if v.name == program.names.score)
    table = emitter.const(weights.astype(dtype))
    powers = (1,) if moment == "mean" else (1, 2)
    count = len(explained) * len(powers)

    def step(body: Emitter, index: Var, state: list[Var]) -> list[Var]:
        contributions, further = contribution(body, index, state[count:])
        weight = body.op("Gather", body.var(table.name), index, axis=0)
        values = gathered(graph, body, question, contributions)
        parts = [values[n] * weight if p == 1 else values[n] * values[n] * weight for p in powers for n in explained]
        return [*(total + part for total, part in zip(state[:count], parts, strict=True)), *further]

    sums = [zeros(v.sizes(), dtype, v.shape) for v in explained.values()] * len(powers)
    results = inside.loop(emitter.const(np.array(len(weights))), [*sums, *initial()], step)
    means = dict(zip(explained, results[: len(explained)], strict=True))
    if moment == "mean":
        return finished(inside, means)
    squares = dict(zip(explained, results[len(explained) : count], strict=True))
    if moment == "square":
        return finished(inside, squares)
    return finished(inside, {n: emitter.op("Max", squares[n] - m * m, m.like(0.0)) for n, m in means.items()})


class _Noisy:
    """The input plus noise, from a table with a row for each point."""

    def __init__(self, inside: Inside, noise: Noise) -> None:
        emitter = inside.emitter
        self.x = {name: emitter.var(name) for name in inside.program.points}
        self.tables, self.scales = {}, {}
        for place, (name, x) in enumerate(self.x.items()):
            axis = batch_axis(inside.graph, name) or 0
            size = None if x.shape is None else (*x.shape[:axis], *x.shape[axis + 1 :])
            known = tuple(d for d in size or () if isinstance(d, int))
            if size is None or len(known) < len(size):
                raise OptionError(f"noise is part of the file, and {x} has no fixed size", "Fix the size in the model.")
            if noise.samples * np.prod(known, dtype=float) * x.dtype.itemsize > MAX_NOISE_BYTES:
                raise OptionError(f"{noise.samples} samples of noise for {x} are too large for a file")
            table = np.stack([noise.draw(k, place, known) for k in range(noise.samples)]).astype(x.dtype)
            self.tables[name] = emitter.const(np.expand_dims(table, axis + 1))
            self.scales[name] = x.like(noise.noise)
            if noise.relative:
                others = emitter.ints([a for a in range(x.rank) if a != axis])
                high, low = (
                    emitter.op(op, x, others, keepdims=1, noop_with_empty_axes=1) for op in ("ReduceMax", "ReduceMin")
                )
                self.scales[name] = (high - low) * noise.noise

    def at(self, body: Emitter, index: Var) -> dict[str, Var]:
        """The tensors that move, at a point."""
        points = {}
        for name in self.x:
            draw = body.op("Gather", body.var(self.tables[name].name), index, axis=0)
            points[name] = body.var(name) + draw * body.var(self.scales[name].name)
        return points


class _Between:
    """Points on lines to baselines."""

    def __init__(self, inside: Inside, lines: Lines) -> None:
        emitter = inside.emitter
        self.count = lines.references.count
        self.x = {name: emitter.var(name) for name in inside.program.points}
        baselines = [inside.baselines(lines.references.get(k)) for k in range(self.count)]
        self.line = emitter.const(lines.lines)
        self.rows = {}
        for name in self.x:
            rows = [baseline[name] for baseline in baselines]
            self.rows[name] = concat([unsqueeze(row, [0]) for row in rows]) if len(rows) > 1 else rows[0]

    def starts(self, body: Emitter, index: Var) -> dict[str, Var]:
        """The baselines from which the line of a point starts."""
        rows = {name: body.var(row.name) for name, row in self.rows.items()}
        if self.count == 1:
            return rows
        line = body.op("Gather", body.var(self.line.name), index, axis=0)
        return {name: body.op("Gather", row, line, axis=0) for name, row in rows.items()}

    def baseline(self) -> dict[str, Var]:
        """The only baseline, in the shape of the input."""
        rows = self.rows.items()
        return {n: r.emitter.op("Expand", r, self.x[n].sizes(), known=self.x[n].shape) for n, r in rows}

    def at(self, body: Emitter, index: Var, positions: Array) -> dict[str, Var]:
        """The tensors that move, at the point's position on its line."""
        points = {}
        for name, start in self.starts(body, index).items():
            x = body.var(name)
            at = body.op("Gather", body.const(positions.astype(x.dtype)), index, axis=0)
            points[name] = start + at * (x - start)
        return points
