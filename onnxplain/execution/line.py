"""Points on the line from a baseline to the input."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from onnxplain.distributions.lines import MAX_STEPS, Line, calibrated
from onnxplain.execution.moments import add_weighted
from onnxplain.execution.runner import Answer, Runner, baselines_of, sum_per_sample
from onnxplain.methods.method import Method
from onnxplain.runtime.batching import chunks
from onnxplain.runtime.chunked import Progress

Array = np.ndarray[Any, Any]


def explain_line(
    runner: Runner, method: Method, line: Line, feeds: Mapping[str, Array], target: Array, progress: Progress | None
) -> Answer:
    """Average cotangents over the line; where a tolerance is missed, over more and more points of it."""
    here = runner.tensors(feeds, len(target))
    baselines = baselines_of(runner, line.baseline, feeds, here, len(target))
    names = runner.names
    ends = [names.resolved, names.score, *filter(None, [names.baseline_score])]
    target, score, *known = runner.run({**feeds, **here}, target, ends).values()
    (there,) = known or runner.run({**feeds, **baselines}, target, [names.score]).values()
    change = score.astype(np.float64) - there
    attributions, residual = _steps(runner, method, line, feeds, target, change, progress, here, baselines)
    tolerance = np.inf if line.tolerance is None else line.tolerance
    while 2 * line.steps <= MAX_STEPS:
        line = replace(line, steps=2 * line.steps)
        rough = np.flatnonzero(abs(residual) > tolerance)
        if not len(rough):
            break
        some = {n: a[rough] if n in runner.main.axes else a for n, a in feeds.items()}
        rows = [{n: a[rough] for n, a in arrays.items()} for arrays in (here, baselines)]
        finer, residual[rough] = _steps(runner, method, line, some, target[rough], change[rough], progress, *rows)
        for name, values in attributions.items():
            values[rough] = finer[name]
    return Answer(attributions, target, score, residual)


def _steps(
    runner: Runner,
    method: Method,
    line: Line,
    feeds: Mapping[str, Array],
    target: Array,
    change: Array,
    progress: Progress | None,
    here: Mapping[str, Array],
    baselines: Mapping[str, Array],
) -> tuple[dict[str, Array], Array]:
    """Attributions, and their residuals; ``change``: of the scores from the baselines."""
    program, samples = runner.program, len(target)
    wanted = program.question.tensors
    positions, weights = line.nodes()
    total = samples * line.steps
    means = {name: np.zeros(here[name].shape, np.float64) for name in wanted}
    tilted = {name: np.zeros_like(mean) for name, mean in means.items() if line.calibrate}
    gap, square = np.zeros(samples), np.zeros(samples)  # of slope minus change: weighted mean, and mean of squares
    outputs = [program.names.cotangents[name] for name in wanted]
    for part in chunks(total, runner.main.chunk):
        sample, step = np.divmod(np.arange(part.start, part.stop), line.steps)
        points = {n: a[sample] if n in runner.main.axes else a for n, a in feeds.items()}
        for name, base in baselines.items():
            x = here[name]
            at = positions[step].astype(x.dtype).reshape(-1, *[1] * (x.ndim - 1))
            points[name] = base[sample] + at * (x[sample] - base[sample])
        results = runner.run(points, target[sample], outputs)
        slopes = _slopes(here, baselines, dict(zip(wanted, (results[o] for o in outputs), strict=True)), sample)
        excess = weights[step] * (slopes - change[sample])
        np.add.at(gap, sample, excess)
        np.add.at(square, sample, excess * (slopes - change[sample]))
        for name, output in zip(wanted, outputs, strict=True):
            add_weighted(means[name], sample, weights[step], results[output])
            if line.calibrate:
                add_weighted(tilted[name], sample, excess, results[output])
        if progress:
            progress(part.stop, total)
    spread = square - gap**2
    for name, tilt in tilted.items():
        per_sample = (-1, *[1] * (tilt.ndim - 1))
        safe = np.where(spread > gap**2, spread, np.inf).reshape(per_sample)  # see `calibrated`
        means[name] = calibrated(means[name], tilt, gap.reshape(per_sample), safe)
    arrived = {
        name: np.asarray(method.readout(means[name], here[name], baselines[name]), dtype=here[name].dtype)
        for name in wanted
    }
    found = runner.attributions(arrived, feeds, samples)
    attributions = {name: found[output] for name, output in program.names.attributions.items()}
    return attributions, sum_per_sample(attributions, samples) - change


def _slopes(
    feeds: Mapping[str, Array], baselines: Mapping[str, Array], gradients: Mapping[str, Array], sample: Array
) -> Array:
    """Derivative of the score along the line at each point."""
    parts = [
        ((feeds[n][sample] - baselines[n][sample]) * g).reshape(len(sample), -1).sum(axis=1, dtype=np.float64)
        for n, g in gradients.items()
    ]
    return np.asarray(np.sum(parts, axis=0))
