"""Averages over sampled points inside of a graph: what `execution` does, as a loop in a stand-alone explainer.

Points drawn at random are part of the file, so that it gives the same numbers every time and wherever it runs. No
operator could: ONNX leaves open what a seed gives, and ONNX Runtime's generators go on from call to call.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from onnxplain.distributions.sampling import Lines, Noise, Sampled
from onnxplain.errors import OptionError
from onnxplain.graph.axes import batch_axis
from onnxplain.graph.emit import Emitter, Var, concat
from onnxplain.methods.method import Method
from onnxplain.ops.index import zeros
from onnxplain.ops.linear import unsqueeze
from onnxplain.programs.assembly import gathered
from onnxplain.programs.inside import Inside

Array = np.ndarray[Any, Any]

MAX_NOISE_BYTES = 1 << 30  # bytes of noise in a file, which holds at most 2 GiB


def average(inside: Inside, method: Method, sampled: Sampled) -> dict[str, Var]:
    """Attributions of the slices: a moment of what the method finds at the points."""
    emitter, program, graph = inside.emitter, inside.program, inside.graph
    question = program.question
    points = _Noisy(inside, sampled) if isinstance(sampled, Noise) else _Between(inside, sampled)
    explained = {part.name: emitter.var(part.name) for part in question.slices}
    changes = isinstance(sampled, Lines) and sampled.changes
    dtype = next(v.dtype for v in program.graph.outputs if v.name == program.names.score)
    weights = emitter.const(sampled.weights.astype(dtype))

    def step(body: Emitter, index: Var, state: list[Var]) -> list[Var]:
        found = inside(body, points.at(body, index), list(program.names.cotangents.values()))
        arrived = dict(zip(question.tensors, found, strict=True))
        weight = body.op("Gather", body.var(weights.name), index, axis=0)
        before, after = state[len(explained) * len(powers) :], []
        if isinstance(points, _Between) and changes:
            after = inside(body, points.share(body, index), list(program.names.values.values()))
            arrived = {n: (b - a) * arrived[n] for n, a, b in zip(question.tensors, before, after, strict=True)}
            weight = weight.like(1.0)
        elif isinstance(points, _Between) and not points.lines.within:
            there = points.baseline(body, index)
            arrived = {n: method.readout(ct, body.var(n), there[n]) for n, ct in arrived.items()}
        values = gathered(graph, body, question, arrived)
        sums = [values[n] * weight if p == 1 else values[n] * values[n] * weight for p in powers for n in explained]
        return [*(total + part for total, part in zip(state, sums, strict=False)), *after]

    powers = (1,) if method.moment == "mean" else (1, 2)
    start = [zeros(v.sizes(), dtype, v.shape) for v in explained.values()] * len(powers)
    if isinstance(points, _Between) and changes:
        start += inside(emitter, points.start(), list(program.names.values.values()))
    results = inside.loop(emitter.const(np.array(sampled.count)), start, step)
    means = dict(zip(explained, results, strict=False))
    squares = dict(zip(explained, results[len(explained) :], strict=False))
    if method.moment == "mean":
        return means
    if method.moment == "square":
        return squares
    return {n: emitter.op("Max", squares[n] - m * m, m.like(0.0)) for n, m in means.items()}


class _Noisy:
    """The input plus noise, which is a table."""

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
                ends = [
                    emitter.op(op, x, others, keepdims=1, noop_with_empty_axes=1) for op in ("ReduceMax", "ReduceMin")
                ]
                self.scales[name] = (ends[0] - ends[1]) * noise.noise

    def at(self, body: Emitter, index: Var) -> dict[str, Var]:
        """A point."""
        points = {}
        for name in self.x:
            draw = body.op("Gather", body.var(self.tables[name].name), index, axis=0)
            points[name] = body.var(name) + draw * body.var(self.scales[name].name)
        return points


class _Between:
    """Points on lines to baselines."""

    def __init__(self, inside: Inside, lines: Lines) -> None:
        emitter = inside.emitter
        self.lines = lines
        self.x = {name: emitter.var(name) for name in inside.program.points}
        baselines = [inside.baselines(lines.references.get(k)) for k in range(lines.references.count)]
        self.line = emitter.const(lines.lines)
        self.rows = {}
        for name in self.x:
            rows = [baseline[name] for baseline in baselines]
            self.rows[name] = concat([unsqueeze(row, [0]) for row in rows]) if len(rows) > 1 else rows[0]

    def baseline(self, body: Emitter, index: Var) -> dict[str, Var]:
        """The baselines of a point."""
        rows = {name: body.var(row.name) for name, row in self.rows.items()}
        if self.lines.references.count == 1:
            return rows
        line = body.op("Gather", body.var(self.line.name), index, axis=0)
        return {name: body.op("Gather", row, line, axis=0) for name, row in rows.items()}

    def start(self) -> dict[str, Var]:
        """The first baseline, in the input's shape."""
        rows = self.rows.items()
        return {n: r.emitter.op("Expand", r, self.x[n].sizes(), known=self.x[n].shape) for n, r in rows}

    def at(self, body: Emitter, index: Var) -> dict[str, Var]:
        """A point."""
        return self._place(body, index, self.lines.positions)

    def share(self, body: Emitter, index: Var) -> dict[str, Var]:
        """The end of its share of the way."""
        return self._place(body, index, self.lines.shares)

    def _place(self, body: Emitter, index: Var, positions: Array) -> dict[str, Var]:
        points = {}
        for name, row in self.baseline(body, index).items():
            x = body.var(name)
            at = body.op("Gather", body.const(positions.astype(x.dtype)), index, axis=0)
            points[name] = row + at * (x - row)
        return points
