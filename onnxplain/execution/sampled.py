"""Moments of attributions at sampled points, in the method's own program: noise, and three kinds of lines."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxplain.distributions.sampling import InputLines, LineIncrements, Lines, Moment, Noise, Sampled
from onnxplain.execution.answer import Answer, sum_per_sample
from onnxplain.execution.moments import add_weighted, moment_and_error
from onnxplain.execution.runner import Runner, baselines_of, resolve
from onnxplain.methods.method import Method
from onnxplain.runtime.batching import chunks
from onnxplain.runtime.chunked import Progress

Array = np.ndarray[Any, Any]
Arrays = Mapping[str, Array]

Contribution = Callable[[Array, Array, Arrays], tuple[Arrays, Array]]
"""(numbers of points, their samples, feeds of these samples) -> values at the points by tensor, and their weights."""


def explain_noise(
    runner: Runner, method: Method, noise: Noise, feeds: Arrays, target: Array, progress: Progress | None
) -> Answer:
    """A moment of the readouts at noisy inputs."""
    batch = _Batch.at_input(runner, feeds, target)

    def contribution(index: Array, sample: Array, fixed: Arrays) -> tuple[Arrays, Array]:
        points = {n: _noisy(noise, place, x, index, sample) for place, (n, x) in enumerate(batch.moved.items())}
        return batch.cotangents({**fixed, **points}, sample), noise.weights[index]

    attributions, errors = batch.moment(noise, method.moment, contribution, progress)
    return Answer(attributions, batch.target, batch.score, None, errors)


def explain_lines(
    runner: Runner, method: Method, lines: Lines, feeds: Arrays, target: Array, progress: Progress | None
) -> Answer:
    """A moment of the readouts at points between the explained tensors and their baselines."""
    batch = _Batch.at_input(runner, feeds, target)
    baselines = batch.baselines(lines)

    def contribution(index: Array, sample: Array, fixed: Arrays) -> tuple[Arrays, Array]:
        points = batch.between(lines, lines.positions, baselines, index, sample)
        cotangents = batch.cotangents({**fixed, **points}, sample)
        starts = _starts(lines, baselines, index, sample)
        readouts = {n: method.readout(ct, batch.moved[n][sample], starts[n]) for n, ct in cotangents.items()}
        return readouts, lines.weights[index]

    return _along(batch, method, lines, baselines, contribution, progress)


def explain_input_lines(
    runner: Runner, method: Method, lines: InputLines, feeds: Arrays, target: Array, progress: Progress | None
) -> Answer:
    """A moment of the readouts, which are part of the graph, at points between the model's inputs and baselines."""
    batch = _Batch.at_input(runner, feeds, target)
    baselines = batch.baselines(lines)

    def contribution(index: Array, sample: Array, fixed: Arrays) -> tuple[Arrays, Array]:
        points = batch.between(lines, lines.positions, baselines, index, sample)
        return batch.cotangents({**fixed, **points}, sample), lines.weights[index]

    return _along(batch, method, lines, baselines, contribution, progress)


def explain_increments(
    runner: Runner, method: Method, lines: LineIncrements, feeds: Arrays, target: Array, progress: Progress | None
) -> Answer:
    """Sum over the points of a line of the readouts, times the increments of the explained tensors there."""
    batch = _Batch.at_input(runner, feeds, target)
    baselines = batch.baselines(lines)
    samples = len(target)
    before = batch.values({**feeds, **batch.moved, **baselines[0]}, np.arange(samples))

    def contribution(index: Array, sample: Array, fixed: Arrays) -> tuple[Arrays, Array]:
        nonlocal before  # values of each sample at the end of its last share: points come in order, sample by sample
        points = batch.between(lines, lines.positions, baselines, index, sample)
        cotangents = batch.cotangents({**fixed, **points}, sample)
        ends = batch.between(lines, lines.shares, baselines, index, sample)
        after = batch.values({**fixed, **ends}, sample)
        values = {n: np.concatenate([before[n], a]) for n, a in after.items()}
        before = {n: a[len(sample) :] for n, a in values.items()}
        products = {n: (values[n][samples:] - values[n][: len(sample)]) * ct for n, ct in cotangents.items()}
        return products, np.ones(len(sample))

    return _along(batch, method, lines, baselines, contribution, progress)


@dataclass(frozen=True)
class _Batch:
    """A batch, with the targets and scores at the input itself: a predicted class is the same at every point.

    Attributes
    ----------
    feeds
        Inputs of the model and weights of targets by name, the batch axis in front.
    moved
        Tensors that move from point to point, at the input itself.
    """

    runner: Runner
    feeds: Arrays
    moved: Arrays
    target: Array
    score: Array

    @classmethod
    def at_input(cls, runner: Runner, feeds: Arrays, target: Array) -> _Batch:
        """Run the program at the input itself."""
        moved = runner.tensors(feeds, len(target))
        return cls(runner, feeds, moved, *resolve(runner, {**feeds, **moved}, target))

    def baselines(self, lines: Lines) -> list[dict[str, Array]]:
        """Tensors that move, at each of the baselines."""
        count = lines.references.count
        each = [lines.references.get(k) for k in range(count)]
        return [baselines_of(self.runner, baseline, self.feeds, self.moved, len(self.target)) for baseline in each]

    def between(
        self, lines: Lines, positions: Array, baselines: Sequence[Arrays], index: Array, sample: Array
    ) -> dict[str, Array]:
        """Tensors that move, at ``positions`` on the lines of the points ``index`` of the samples ``sample``."""
        points = {}
        for name, start in _starts(lines, baselines, index, sample).items():
            x = self.moved[name]
            at = positions[index].astype(x.dtype).reshape(-1, *[1] * (x.ndim - 1))
            points[name] = start + at * (x[sample] - start)
        return points

    def cotangents(self, feeds: Arrays, sample: Array) -> dict[str, Array]:
        """Cotangents of the explained tensors, or the readouts of these where they are part of the graph."""
        return self._outputs(self.runner.names.cotangents, feeds, sample)

    def values(self, feeds: Arrays, sample: Array) -> dict[str, Array]:
        """The explained tensors."""
        return self._outputs(self.runner.names.values, feeds, sample)

    def _outputs(self, names: Mapping[str, str], feeds: Arrays, sample: Array) -> dict[str, Array]:
        results = self.runner.run(feeds, self.target[sample], list(names.values()))
        return {name: results[output] for name, output in names.items()}

    def moment(
        self, sampled: Sampled, moment: Moment, contribution: Contribution, progress: Progress | None
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        """A moment of the contributions of all points, and its standard errors, by explained tensor.

        A chunk of points exists at a time; each point is that of all samples, one after the other.
        """
        runner, samples = self.runner, len(self.target)
        sums: dict[str, Array] = {}
        squares: dict[str, Array] = {}
        total = samples * sampled.count
        for part in chunks(total, runner.main.chunk):
            index, sample = np.divmod(np.arange(part.start, part.stop), samples)
            fixed = runner.axes.take(self.feeds, sample)
            contributions, weights = contribution(index, sample, fixed)
            attributions = runner.attributions(contributions, fixed, len(sample))
            for name, output in runner.names.attributions.items():
                values = attributions[output].astype(np.float64)
                for sums_of, power in ((sums, values), (squares, values**2)):
                    totals = sums_of.setdefault(name, np.zeros((samples, *values.shape[1:])))
                    add_weighted(totals, sample, weights, power)
            if progress:
                progress(part.stop, total)
        return moment_and_error(sums, squares, sampled, moment, dict.fromkeys(sums, self.score.dtype))


def _along(
    batch: _Batch,
    method: Method,
    lines: Lines,
    baselines: Sequence[Arrays],
    contribution: Contribution,
    progress: Progress | None,
) -> Answer:
    """A moment over points on lines, with the residual if the method promises a sum."""
    attributions, errors = batch.moment(lines, method.moment, contribution, progress)
    if not method.promise:
        return Answer(attributions, batch.target, batch.score, None, errors)
    ends = [resolve(batch.runner, {**batch.feeds, **batch.moved, **baseline}, batch.target) for baseline in baselines]
    scores = np.asarray([score.astype(np.float64) for _, score in ends])
    shares = np.bincount(lines.lines, lines.weights, len(scores))
    change = batch.score - np.tensordot(shares, scores, axes=1)
    residual = sum_per_sample(attributions, len(batch.target)) - change
    return Answer(attributions, batch.target, batch.score, residual, errors)


def _noisy(noise: Noise, place: int, x: Array, index: Array, sample: Array) -> Array:
    draws = {i: noise.draw(i, place, x.shape[1:]).astype(x.dtype) for i in map(int, np.unique(index))}
    points = np.stack([draws[int(i)] for i in index])
    points *= noise.scale(x)[sample]
    points += x[sample]
    return points


def _starts(lines: Lines, baselines: Sequence[Arrays], index: Array, sample: Array) -> dict[str, Array]:
    """Baseline from which the line of each point starts, by tensor."""
    pairs = list(zip(lines.lines[index], sample, strict=True))
    return {name: np.stack([baselines[k][name][row] for k, row in pairs]) for name in baselines[0]}
