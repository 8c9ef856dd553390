"""Runs a program over the points of its method's distribution and adds up what comes back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxplain.distributions import Line, Point, Windows, baseline_like, calibrated
from onnxplain.errors import UnsupportedModelError
from onnxplain.methods import Method
from onnxplain.program import Program
from onnxplain.runtime.batching import chunks
from onnxplain.runtime.session import Session

Array = np.ndarray[Any, Any]
Index = tuple[Any, ...]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Answer:
    """What a run gives: attributions by tensor name, target and score per sample, and the residual if promised."""

    attributions: dict[str, Array]
    target: Array
    score: Array
    residual: Array | None


@dataclass(frozen=True)
class Runner:
    """A program in a session, fed in chunks.

    Attributes
    ----------
    batched
        The inputs whose first axis is the batch; others are the same for all samples.
    chunk
        Samples per run.
    exactly
        Whether every run must have exactly ``chunk`` samples (the model's batch size is fixed): the last is filled up.
    """

    session: Session
    program: Program
    batched: frozenset[str]
    chunk: int
    exactly: bool

    def run(
        self, feeds: Mapping[str, Array], target: Array, outputs: Sequence[str], progress: Progress | None = None
    ) -> dict[str, Array]:
        """Run all samples; the chunks' outputs are joined along the batch."""
        parts = []
        for part in chunks(len(target), self.chunk):
            inputs = {n: a[part] if n in self.batched else a for n, a in feeds.items()}
            parts.append(self._run(inputs, target[part], outputs))
            if progress:
                progress(part.stop, len(target))
        return {name: np.concatenate([p[name] for p in parts]) for name in outputs} if len(parts) > 1 else parts[0]

    def _run(self, feeds: Mapping[str, Array], target: Array, outputs: Sequence[str]) -> dict[str, Array]:
        count = len(target)
        if not self.exactly or count == self.chunk:
            results = self.session.run({**feeds, self.program.target: target}, outputs)
        else:
            fill = np.minimum(np.arange(self.chunk), count - 1)
            inputs = {n: a[fill] if n in self.batched else a for n, a in feeds.items()}
            results = self.session.run({**inputs, self.program.target: target[fill]}, outputs)
            results = {n: a[: len(a) * count // self.chunk] for n, a in results.items()}
        if (score := results.get(self.program.score)) is not None and len(score) != count:
            raise UnsupportedModelError(
                f"{count} samples give {len(score)} scores: the output has no batch axis in front"
            )
        return results


def check(method: Method, feeds: Mapping[str, Array], wanted: Sequence[str]) -> None:
    """Raise OptionError where an option does not fit the shape of an explained input."""
    distribution = method.distribution
    if isinstance(distribution, Point):
        return
    for name in wanted:
        baseline_like(distribution.baseline, feeds[name], name)
        if isinstance(distribution, Windows):
            distribution.geometry(feeds[name].shape)


def run(runner: Runner, method: Method, feeds: Mapping[str, Array], target: Array, progress: Progress | None) -> Answer:
    """Explain a batch: ``feeds`` by input name, ``target`` as positions in the flattened output, shape (N,)."""
    if isinstance(method.distribution, Line):
        return _line(runner, method, method.distribution, feeds, target, progress)
    if isinstance(method.distribution, Windows):
        return _windows(runner, method.distribution, feeds, target, progress)
    program = runner.program
    results = runner.run(feeds, target, runner.session.outputs, progress)
    attributions = {name: results[output] for name, output in program.attributions.items()}
    score = results[program.score]
    residual = _per_sample_sum(attributions, len(score)) - score if method.promise else None
    return Answer(attributions, results[program.resolved], score, residual)


def _per_sample_sum(attributions: Mapping[str, Array], samples: int) -> Array:
    total = np.zeros(samples)
    for values in attributions.values():
        total += values.reshape(samples, -1).sum(axis=1, dtype=np.float64)
    return total


def _resolve(runner: Runner, feeds: Mapping[str, Array], target: Array) -> tuple[Array, Array]:
    """Targets at the input itself (a predicted class stays the same at every other point), and their scores."""
    program = runner.program
    results = runner.run(feeds, target, [program.resolved, program.score])
    return results[program.resolved], results[program.score]


def _line(
    runner: Runner, method: Method, line: Line, feeds: Mapping[str, Array], target: Array, progress: Progress | None
) -> Answer:
    wanted = runner.program.question.wanted
    baselines = {name: baseline_like(line.baseline, feeds[name], name) for name in wanted}
    target, score = _resolve(runner, feeds, target)
    _, score_at_baseline = _resolve(runner, {**feeds, **baselines}, target)
    positions, weights = line.nodes()
    samples, total = len(target), len(target) * line.steps
    change = score.astype(np.float64) - score_at_baseline
    means = {name: np.zeros(feeds[name].shape, np.float64) for name in wanted}
    tilted = {name: np.zeros_like(mean) for name, mean in means.items() if line.calibrate}
    gap, square = np.zeros(samples), np.zeros(samples)  # of slope minus change: weighted mean, and mean of squares
    outputs = [runner.program.attributions[name] for name in wanted]
    for part in chunks(total, runner.chunk):
        sample, step = np.divmod(np.arange(part.start, part.stop), line.steps)
        points = {n: a[sample] if n in runner.batched else a for n, a in feeds.items()}
        for name, base in baselines.items():
            at = positions[step].astype(points[name].dtype).reshape(-1, *[1] * (points[name].ndim - 1))
            points[name] = base[sample] + at * (points[name] - base[sample])
        results = runner.run(points, target[sample], outputs)
        slopes = _slopes(feeds, baselines, dict(zip(wanted, (results[o] for o in outputs), strict=True)), sample)
        excess = weights[step] * (slopes - change[sample])
        np.add.at(gap, sample, excess)
        np.add.at(square, sample, excess * (slopes - change[sample]))
        for name, output in zip(wanted, outputs, strict=True):
            for row in np.unique(sample):
                its = sample == row
                means[name][row] += np.tensordot(weights[step[its]], results[output][its], axes=1)
                if line.calibrate:
                    tilted[name][row] += np.tensordot(excess[its], results[output][its], axes=1)
        if progress:
            progress(part.stop, total)
    spread = square - gap**2
    for name, tilt in tilted.items():
        per_sample = (-1, *[1] * (tilt.ndim - 1))
        safe = np.where(spread > gap**2, spread, np.inf).reshape(per_sample)  # see `calibrated`
        means[name] = calibrated(means[name], tilt, gap.reshape(per_sample), safe)
    attributions = {
        name: np.asarray(method.readout(means[name], feeds[name], baselines[name]), dtype=feeds[name].dtype)
        for name in wanted
    }
    return Answer(attributions, target, score, _per_sample_sum(attributions, samples) - change)


def _slopes(
    feeds: Mapping[str, Array], baselines: Mapping[str, Array], gradients: Mapping[str, Array], sample: Array
) -> Array:
    """Derivative of the score along the line at each point."""
    parts = [
        ((feeds[n][sample] - baselines[n][sample]) * g).reshape(len(sample), -1).sum(axis=1, dtype=np.float64)
        for n, g in gradients.items()
    ]
    return np.asarray(np.sum(parts, axis=0))


def _windows(
    runner: Runner, windows: Windows, feeds: Mapping[str, Array], target: Array, progress: Progress | None
) -> Answer:
    target, score = _resolve(runner, feeds, target)
    wanted = runner.program.question.wanted
    jobs: list[tuple[str, Index]] = [(name, w) for name in wanted for w in windows.slices(feeds[name].shape)]
    losses = {name: np.zeros(feeds[name].shape, np.float64) for name in wanted}
    counts = {name: np.zeros(feeds[name].shape[1:]) for name in losses}
    for name, window in jobs:
        counts[name][window] += 1
    baselines = {name: baseline_like(windows.baseline, feeds[name], name) for name in losses}
    total = len(jobs) * len(target)
    for part in chunks(total, runner.chunk):
        pairs = [divmod(i, len(jobs)) for i in range(part.start, part.stop)]
        points = _masked(feeds, runner.batched, baselines, jobs, pairs)
        samples = np.array([sample for sample, _ in pairs])
        results = runner.run(points, target[samples], [runner.program.score])
        for (sample, job), masked in zip(pairs, results[runner.program.score], strict=True):
            name, window = jobs[job]
            losses[name][(sample, *window)] += float(score[sample]) - float(masked)
        if progress:
            progress(part.stop, total)
    attributions = {n: (losses[n] / counts[n]).astype(feeds[n].dtype) for n in losses}
    return Answer(attributions, target, score, None)


def _masked(
    feeds: Mapping[str, Array],
    batched: frozenset[str],
    baselines: Mapping[str, Array],
    jobs: Sequence[tuple[str, Index]],
    pairs: Sequence[tuple[int, int]],
) -> dict[str, Array]:
    """One copy of a sample per (sample, job) pair, with the job's window replaced by the baseline."""
    points = {n: a[[sample for sample, _ in pairs]] if n in batched else a for n, a in feeds.items()}
    for row, (sample, job) in enumerate(pairs):
        name, window = jobs[job]
        points[name][(row, *window)] = baselines[name][(sample, *window)]
    return points
