"""Averages over the line from a baseline to the input."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from onnxplain.distributions.lines import MAX_STEPS, Line, calibrated
from onnxplain.execution.answer import Answer, sum_per_sample
from onnxplain.execution.moments import add_weighted
from onnxplain.execution.runner import Runner, baselines_of
from onnxplain.methods.method import Method
from onnxplain.runtime.batching import chunks
from onnxplain.runtime.chunked import Progress

Array = np.ndarray[Any, Any]


def explain_line(
    runner: Runner, method: Method, line: Line, feeds: Mapping[str, Array], target: Array, progress: Progress | None
) -> Answer:
    """Average cotangents over the line; with a tolerance, double the points of the samples that miss it."""
    names = runner.names
    moved = runner.tensors(feeds, len(target))
    baselines = baselines_of(runner, line.baseline, feeds, moved, len(target))
    wanted = [names.resolved, names.score, *filter(None, [names.baseline_score])]
    target, score, *known = runner.run({**feeds, **moved}, target, wanted).values()
    (baseline_score,) = known or runner.run({**feeds, **baselines}, target, [names.score]).values()
    ends = _Ends(feeds, moved, baselines, target, score.astype(np.float64) - baseline_score)
    attributions, residual = _averaged(runner, method, line, ends, progress)
    tolerance = np.inf if line.tolerance is None else line.tolerance
    while 2 * line.steps <= MAX_STEPS:
        line = replace(line, steps=2 * line.steps)
        rough = np.flatnonzero(abs(residual) > tolerance)
        if not len(rough):
            break
        finer, residual[rough] = _averaged(runner, method, line, ends.rows(runner, rough), progress)
        for name, values in attributions.items():
            values[rough] = finer[name]
    return Answer(attributions, target, score, residual)


@dataclass(frozen=True)
class _Ends:
    """Both ends of the lines of some samples.

    Attributes
    ----------
    feeds
        Inputs of the model and weights of targets by name, the batch axis in front.
    moved, baselines
        The tensors that move, at the input and at the baseline.
    target
        Resolved targets.
    change
        Change of the score from the baseline to the input, float64, shape (samples,).
    """

    feeds: Mapping[str, Array]
    moved: Mapping[str, Array]
    baselines: Mapping[str, Array]
    target: Array
    change: Array

    def rows(self, runner: Runner, rows: Array) -> _Ends:
        """The ends of some of the samples."""
        feeds = runner.axes.take(self.feeds, rows)
        moved, baselines = ({n: a[rows] for n, a in arrays.items()} for arrays in (self.moved, self.baselines))
        return _Ends(feeds, moved, baselines, self.target[rows], self.change[rows])

    def between(self, positions: Array, sample: Array) -> dict[str, Array]:
        """The tensors that move, at positions on the lines of the samples ``sample``."""
        points = {}
        for name, baseline in self.baselines.items():
            x = self.moved[name]
            at = positions.astype(x.dtype).reshape(-1, *[1] * (x.ndim - 1))
            points[name] = baseline[sample] + at * (x[sample] - baseline[sample])
        return points

    def slopes(self, cotangents: Mapping[str, Array], sample: Array) -> Array:
        """Derivative of the score along the line, float64, at points with these cotangents."""
        products = [(self.moved[n][sample] - self.baselines[n][sample]) * ct for n, ct in cotangents.items()]
        parts = [product.reshape(len(sample), -1).sum(axis=1, dtype=np.float64) for product in products]
        return np.asarray(np.sum(parts, axis=0))


def _averaged(
    runner: Runner, method: Method, line: Line, ends: _Ends, progress: Progress | None
) -> tuple[dict[str, Array], Array]:
    """Attributions, and their residuals."""
    names, samples = runner.names, len(ends.target)
    positions, weights = line.nodes()
    total = samples * line.steps
    means = {name: np.zeros(ends.moved[name].shape, np.float64) for name in names.cotangents}
    tilted = {name: np.zeros_like(mean) for name, mean in means.items() if line.calibrate}
    gap, square = np.zeros(samples), np.zeros(samples)  # weighted mean of slope - change, and of its square
    for part in chunks(total, runner.main.chunk):
        sample, step = np.divmod(np.arange(part.start, part.stop), line.steps)
        points = runner.axes.take(ends.feeds, sample)
        points |= ends.between(positions[step], sample)
        results = runner.run(points, ends.target[sample], list(names.cotangents.values()))
        cotangents = {name: results[output] for name, output in names.cotangents.items()}
        difference = ends.slopes(cotangents, sample) - ends.change[sample]
        excess = weights[step] * difference
        np.add.at(gap, sample, excess)
        np.add.at(square, sample, excess * difference)
        for name, cotangent in cotangents.items():
            add_weighted(means[name], sample, weights[step], cotangent)
            if line.calibrate:
                add_weighted(tilted[name], sample, excess, cotangent)
        if progress:
            progress(part.stop, total)
    if line.calibrate:
        means = _calibrated(means, tilted, gap, square)
    readouts = {}
    for name, mean in means.items():
        x = ends.moved[name]
        readouts[name] = np.asarray(method.readout(mean, x, ends.baselines[name]), dtype=x.dtype)
    results = runner.attributions(readouts, ends.feeds, samples)
    attributions = {name: results[output] for name, output in names.attributions.items()}
    return attributions, sum_per_sample(attributions, samples) - ends.change


def _calibrated(means: Mapping[str, Array], tilted: Mapping[str, Array], gap: Array, square: Array) -> dict[str, Array]:
    """Means with calibrated weights."""
    spread = square - gap**2
    spread = np.where(spread > gap**2, spread, np.inf)  # see `calibrated`
    results = {}
    for name, mean in means.items():
        per_sample = (-1, *[1] * (mean.ndim - 1))
        results[name] = calibrated(mean, tilted[name], gap.reshape(per_sample), spread.reshape(per_sample))
    return results
