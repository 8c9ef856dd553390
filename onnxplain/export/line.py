"""Explainers of methods that average over the line from a baseline to the input, as a loop over its points."""

from __future__ import annotations

import functools
import operator
from collections.abc import Mapping, Sequence

import numpy as np

from onnxplain.distributions.lines import Line, calibrated
from onnxplain.export.specification import Specification, finished
from onnxplain.graph.axes import batch_axis
from onnxplain.graph.emit import Emitter
from onnxplain.graph.ir import Graph
from onnxplain.graph.var import Var, where
from onnxplain.ops.index import zeros
from onnxplain.programs.assembly import gathered
from onnxplain.programs.inside import Inside, rows_of


def write_line(spec: Specification, line: Line) -> Graph:
    """Mean over the points of a line."""
    inside, program = spec.inside(), spec.program
    emitter, names = inside.emitter, program.question.tensors
    positions, weights = line.nodes()
    x = {name: emitter.var(name) for name in names}
    baseline = inside.baselines(line.baseline)
    delta = {name: x[name] - baseline[name] for name in names}
    tables = {
        n: (emitter.const(positions.astype(v.dtype)), emitter.const(weights.astype(v.dtype))) for n, v in x.items()
    }

    def step(body: Emitter, index: Var, sums: list[Var]) -> list[Var]:
        at = {n: body.op("Gather", body.var(tables[n][0].name), index, axis=0) for n in names}
        points = {n: body.var(baseline[n].name) + at[n] * body.var(delta[n].name) for n in names}
        cotangents = inside(body, points, list(program.names.cotangents.values()))
        weight = {n: body.op("Gather", body.var(tables[n][1].name), index, axis=0) for n in names}
        parts = [weight[n] * ct for n, ct in zip(names, cotangents, strict=True)]
        if change is not None:
            products = {n: body.var(delta[n].name) * ct for n, ct in zip(names, cotangents, strict=True)}
            slopes = [p.sum([a for a in range(x[n].rank) if a != axes[n]]) for n, p in products.items()]
            excess = functools.reduce(operator.add, slopes) - body.var(change.name)
            first = weight[names[0]] * excess
            parts += [rows_of(excess, x[n], axes[n]) * p for n, p in zip(names, parts, strict=True)]
            parts += [first, first * excess]
        return [s + part for s, part in zip(sums, parts, strict=True)]

    axes = {name: batch_axis(spec.graph, name) or 0 for name in names}
    start = [zeros(x[name].sizes(), x[name].dtype, x[name].shape) for name in names]
    change = _change(inside, baseline) if line.calibrate else None
    if change is not None:
        start += [*start, change * 0.0, change * 0.0]
    sums = inside.loop(emitter.const(np.array(line.steps)), start, step)
    means = _calibrated(x, axes, sums) if change is not None else sums
    readouts = {n: spec.method.readout(mean, x[n], baseline[n]) for n, mean in zip(names, means, strict=True)}
    return finished(inside, gathered(spec.graph, emitter, program.question, readouts))


def _change(inside: Inside, baseline: Mapping[str, Var]) -> Var:
    """Change of the score from the baseline to the input, per sample."""
    emitter = inside.emitter
    inputs = {n: emitter.var(n) for n in baseline}
    full = {n: emitter.op("Expand", b, inputs[n].sizes(), known=inputs[n].shape) for n, b in baseline.items()}
    (at_baseline,) = inside(emitter, full, [inside.program.names.score])
    return inside.selection.score - at_baseline


def _calibrated(x: Mapping[str, Var], axes: Mapping[str, int], sums: Sequence[Var]) -> list[Var]:
    """Means with calibrated weights, from the loop's sums: means, tilted means, gap, and mean square of the gap."""
    gap, square = sums[-2:]
    spread = square - gap * gap
    spread = where(spread > gap * gap, spread, np.inf)  # see `calibrated`
    gaps, spreads = ([rows_of(v, x[n], axes[n]) for n in x] for v in (gap, spread))
    return [calibrated(*row) for row in zip(sums[: len(x)], sums[len(x) : -2], gaps, spreads, strict=True)]
