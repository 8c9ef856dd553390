"""Runs a program over the points of its method's distribution and adds up what comes back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from onnxplain.canonize import BATCH
from onnxplain.distributions import (
    MOST_STEPS,
    Baseline,
    Line,
    Perturbation,
    Point,
    References,
    as_baseline,
    baseline_like,
    calibrated,
)
from onnxplain.errors import OptionError, UnsupportedModelError
from onnxplain.ir import Graph, is_float
from onnxplain.methods import Method
from onnxplain.program import Assignment, Program
from onnxplain.questions import Question, Slice, batch_axes, batch_axis, rows
from onnxplain.runtime.batching import chunk_size, chunks
from onnxplain.runtime.chunked import Chunked, Progress
from onnxplain.runtime.providers import Choice
from onnxplain.runtime.session import Session
from onnxplain.sampling import Lines, Noise, Sampled

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Answer:
    """What a run gives: attributions by tensor name, target and score per sample, and the residual if promised."""

    attributions: dict[str, Array]
    target: Array
    score: Array
    residual: Array | None


@dataclass(frozen=True)
class Runner:
    """A program, ready to run, with its front and back (see `Program`) where it has them."""

    program: Program
    main: Chunked
    front: Chunked | None
    back: Chunked | None

    @classmethod
    def load(cls, program: Program, choice: Choice, graph: Graph, fixed_batch: int | None, memory: int) -> Runner:
        """Make the sessions.

        Parameters
        ----------
        choice
            Execution providers.
        graph
            The canonical graph that the program was compiled for.
        fixed_batch
            The batch size that it is bound to, if it is.
        memory
            Bytes; a bound on what one run's activations take.
        """
        question = program.question
        axes = {**batch_axes(graph.inputs), program.target: 0} | ({program.weights: 0} if program.weights else {})
        axes |= {program.attributions[part.name]: part.axis for part in question.slices}
        axes |= {program.baselines[p.name]: p.axis for p in question.slices if p.name in program.baselines}
        tensors = dict.fromkeys((*question.tensors, *program.points))
        for tensor in tensors:
            axis = batch_axis(graph, tensor) or 0
            axes |= {n: axis for n in (tensor, program.cotangents.get(tensor), program.values.get(tensor)) if n}
        alone = question.axis is None or 1 in (rows(graph.value(n)) for n in (question.explained, *tensors))
        if question.axis is None and fixed_batch not in (None, 1):
            raise UnsupportedModelError(f"the model is bound to {fixed_batch} samples, which share one output")
        fixed = fixed_batch or (1 if alone else None)
        chunk = fixed or chunk_size(program.graph, BATCH, memory)

        def chunked(part: Graph) -> Chunked:
            return Chunked(Session(part, choice), axes, chunk, fixed is not None)

        front, back = (chunked(part) if part else None for part in (program.front, program.back))
        return cls(program, chunked(program.graph), front, back)

    def run(
        self, feeds: Mapping[str, Array], target: Array, outputs: Sequence[str], progress: Progress | None = None
    ) -> dict[str, Array]:
        """Run all samples, one target each."""
        program = self.program
        results = self.main.run({**feeds, program.target: target}, len(target), outputs, progress)
        score = results.get(program.score)
        if score is not None and len(score) != len(target):
            raise UnsupportedModelError(
                f"{len(target)} samples give {len(score)} scores: the output has no batch axis in front"
            )
        return results

    def labels(self, feeds: Mapping[str, Array], count: int) -> Array:
        """The labels that the model gives, for outputs that hold no floats."""
        program = self.program
        value = next(v for v in program.graph.inputs if v.name == program.target)
        shape = (count, *[1] * (len(value.shape or (None,)) - 1))
        unused = np.full(shape, "" if value.dtype.kind == "O" else 0, value.dtype)
        name = program.question.explained
        return self.main.run({**feeds, program.target: unused}, count, [name])[name]

    def tensors(self, feeds: Mapping[str, Array], count: int) -> dict[str, Array]:
        """The tensors that move."""
        inner = self.front.run(self._without_weights(feeds), count, self.front.session.outputs) if self.front else {}
        return {name: feeds[name] if name in feeds else inner[name] for name in self.program.points}

    def attributions(self, arrived: Mapping[str, Array], feeds: Mapping[str, Array], count: int) -> dict[str, Array]:
        """Attributions of tensors -> attributions of slices, by name of the output that holds them."""
        program = self.program
        if self.back is None:
            return {program.attributions[name]: a for name, a in arrived.items()}
        inputs = {program.cotangents[name]: a for name, a in arrived.items()}
        return self.back.run({**self._without_weights(feeds), **inputs}, count, list(program.attributions.values()))

    def _without_weights(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        return {name: array for name, array in feeds.items() if name != self.program.weights}


def check(method: Method, feeds: Mapping[str, Array], question: Question) -> None:
    """Raise OptionError where an option does not fit the shape of an explained input."""
    distribution = method.distribution.references if isinstance(method.distribution, Lines) else method.distribution
    if isinstance(distribution, Point | Noise):
        return
    for part in question.slices:
        if part.name in feeds:
            x = feeds[part.name]
            if isinstance(distribution, References) and distribution.baselines is not None:
                baseline_like(distribution.get(0), x.take([0], part.axis), part.name)
            else:
                baseline_like(distribution.baseline, x, part.name)
            if isinstance(distribution, Perturbation):
                distribution.check(np.moveaxis(x, part.axis, 0).shape)


def traced(runner: Runner, lines: Sequence[Assignment], feeds: Mapping[str, Array], target: Array) -> list[Assignment]:
    """Add to the lines of a report what the nodes get and give, where the runner's program tells."""
    names = runner.program.trace
    if not names or runner.program.baselines:
        return list(lines)
    axes = runner.main.axes
    feeds = {name: np.moveaxis(a, axes[name], 0) if name in axes else a for name, a in feeds.items()}
    results = runner.run(feeds, target, [name for pair in names.values() for name in pair])
    found = {node: (results[arrived], results[given]) for node, (arrived, given) in names.items()}

    def completed(line: Assignment) -> Assignment:
        arrived, given = found.get(line.node.outputs[0], (None, None))
        return replace(line, arrived=arrived, given=given)

    return [completed(line) for line in lines]


def run(
    runner: Runner, method: Method, feeds: Mapping[str, Array], target: Array | None, progress: Progress | None
) -> Answer:
    """Explain a batch.

    Parameters
    ----------
    feeds
        By input name; for weighted sums, their weights, too.
    target
        Positions, shape (N,), or (N, K) for weighted sums; labels; None: those that the model gives.
    """
    axes = runner.main.axes
    feeds = {name: np.moveaxis(a, axes[name], 0) if name in axes else a for name, a in feeds.items()}
    count = next((len(a) for name, a in feeds.items() if name in axes), 1)
    if isinstance(method.distribution, Perturbation):
        answer = _perturbed(runner, method.distribution, feeds, target, count, progress)
    elif target is None:
        raise AssertionError("labels have no gradient")
    elif isinstance(method.distribution, Line):
        answer = _line(runner, method, method.distribution, feeds, target, progress)
    elif isinstance(method.distribution, Sampled):
        answer = _sampled(runner, method, method.distribution, feeds, target, progress)
    elif isinstance(method.distribution, References) and runner.program.baselines:
        answer = _references(runner, method, method.distribution, feeds, target, progress)
    else:
        answer = _point(runner, method, feeds, target, progress)
    parts = {p.name: np.moveaxis(answer.attributions[p.name], 0, p.axis) for p in runner.program.question.slices}
    return replace(answer, attributions=parts)


def _point(
    runner: Runner, method: Method, feeds: Mapping[str, Array], target: Array, progress: Progress | None
) -> Answer:
    program = runner.program
    results = runner.run(feeds, target, runner.main.session.outputs, progress)
    attributions = {name: results[output] for name, output in program.attributions.items()}
    score = results[program.score]
    change = score - results[program.baseline_score] if program.baseline_score else score
    residual = _per_sample_sum(attributions, len(score)) - change if method.promise else None
    return Answer(attributions, results[program.resolved], score, residual)


def _references(
    runner: Runner,
    method: Method,
    references: References,
    feeds: Mapping[str, Array],
    target: Array,
    progress: Progress | None,
) -> Answer:
    """Mean over the baselines of a sample, which are inputs of the program."""
    program, samples, count = runner.program, len(target), references.count
    rows = {program.baselines[p.name]: _rows(program, references, p, samples) for p in program.question.slices}
    total = samples * count
    means: dict[str, Array] = {}
    for part in chunks(total, runner.main.chunk):
        sample, index = np.divmod(np.arange(part.start, part.stop), count)
        points = {n: a[sample] if n in runner.main.axes else a for n, a in feeds.items()}
        points |= {n: a[sample if references.baselines is None else index] for n, a in rows.items()}
        for name, values in runner.run(points, target[sample], runner.main.session.outputs).items():
            mean = means.setdefault(name, np.zeros((samples, *values.shape[1:]), np.float64))
            np.add.at(mean, sample, values.astype(np.float64) / count)
        if progress:
            progress(part.stop, total)
    attributions = {p.name: means[program.attributions[p.name]] for p in program.question.slices}
    score = means[program.score]
    residual = _per_sample_sum(attributions, samples) - (score - means[str(program.baseline_score)])
    dtypes = {v.name: v.dtype for v in program.graph.outputs}
    attributions = {n: a.astype(dtypes[program.attributions[n]]) for n, a in attributions.items()}
    resolved = means[program.resolved].round().astype(np.int64)
    return Answer(attributions, resolved, score.astype(dtypes[program.score]), residual if method.promise else None)


def _rows(program: Program, references: References, part: Slice, samples: int) -> Array:
    """The baselines of a slice: one per sample, or those that all samples share; the batch axis in front."""
    value = next(v for v in program.graph.inputs if v.name == program.baselines[part.name])
    arrays = [as_baseline(references.get(k), value.dtype, part.name) for k in range(references.count)]
    rank = len(value.shape or ())
    found = np.concatenate([np.moveaxis(a.reshape((1,) * (rank - a.ndim) + a.shape), part.axis, 0) for a in arrays])
    if len(found) != (samples if references.baselines is None else references.count):
        raise OptionError(f"a baseline of shape {arrays[0].shape} does not fit {samples} samples of '{part.name}'")
    return found


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


def _baselines(
    runner: Runner, baseline: Baseline, feeds: Mapping[str, Array], here: Mapping[str, Array], count: int
) -> dict[str, Array]:
    """The tensors at the baseline: itself, or what the model makes of it where it stands for an input."""
    parts = runner.program.slices
    given = {}
    for part in parts:
        natural = np.moveaxis({**here, **feeds}[part.name], 0, part.axis)
        given[part.name] = np.moveaxis(baseline_like(baseline, natural, part.name), part.axis, 0)
    if all(part.direct for part in parts):
        return given
    return runner.tensors({**feeds, **given}, count)


def _line(
    runner: Runner, method: Method, line: Line, feeds: Mapping[str, Array], target: Array, progress: Progress | None
) -> Answer:
    here = runner.tensors(feeds, len(target))
    baselines = _baselines(runner, line.baseline, feeds, here, len(target))
    answer = _steps(runner, method, line, feeds, target, progress, here, baselines)
    residual = np.asarray(answer.residual)
    tolerance = np.inf if line.tolerance is None else line.tolerance
    while 2 * line.steps <= MOST_STEPS:
        line = replace(line, steps=2 * line.steps)
        rough = np.flatnonzero(abs(residual) > tolerance)
        if not len(rough):
            break
        some = {n: a[rough] if n in runner.main.axes else a for n, a in feeds.items()}
        rows = [{n: a[rough] for n, a in arrays.items()} for arrays in (here, baselines)]
        finer = _steps(runner, method, line, some, answer.target[rough], progress, *rows)
        residual[rough] = np.asarray(finer.residual)
        for name, values in answer.attributions.items():
            values[rough] = finer.attributions[name]
    return replace(answer, residual=residual)


def _steps(
    runner: Runner,
    method: Method,
    line: Line,
    feeds: Mapping[str, Array],
    target: Array,
    progress: Progress | None,
    here: Mapping[str, Array],
    baselines: Mapping[str, Array],
) -> Answer:
    program, samples = runner.program, len(target)
    wanted = program.question.tensors
    target, score = _resolve(runner, {**feeds, **here}, target)
    _, score_at_baseline = _resolve(runner, {**feeds, **baselines}, target)
    positions, weights = line.nodes()
    total = samples * line.steps
    change = score.astype(np.float64) - score_at_baseline
    means = {name: np.zeros(here[name].shape, np.float64) for name in wanted}
    tilted = {name: np.zeros_like(mean) for name, mean in means.items() if line.calibrate}
    gap, square = np.zeros(samples), np.zeros(samples)  # of slope minus change: weighted mean, and mean of squares
    outputs = [program.cotangents[name] for name in wanted]
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
    arrived = {
        name: np.asarray(method.readout(means[name], here[name], baselines[name]), dtype=here[name].dtype)
        for name in wanted
    }
    found = runner.attributions(arrived, feeds, samples)
    attributions = {name: found[output] for name, output in program.attributions.items()}
    return Answer(attributions, target, score, _per_sample_sum(attributions, samples) - change)


def _sampled(
    runner: Runner,
    method: Method,
    sampled: Sampled,
    feeds: Mapping[str, Array],
    target: Array,
    progress: Progress | None,
) -> Answer:
    """A moment of what the method finds at the points; each point is that of all samples, one after the other."""
    program, samples = runner.program, len(target)
    here = runner.tensors(feeds, samples)
    target, score = _resolve(runner, {**feeds, **here}, target)
    baselines: list[dict[str, Array]] = []
    if isinstance(sampled, Lines):
        references = sampled.references
        baselines = [_baselines(runner, references.get(k), feeds, here, samples) for k in range(references.count)]
    changes = isinstance(sampled, Lines) and sampled.changes
    before = _values(runner, {**feeds, **here, **baselines[0]}, target) if changes else {}
    sums: dict[str, Array] = {}
    squares: dict[str, Array] = {}
    total = samples * sampled.count
    for part in chunks(total, runner.main.chunk):
        index, sample = np.divmod(np.arange(part.start, part.stop), samples)
        fixed = {n: a[sample] if n in runner.main.axes else a for n, a in feeds.items()}
        if isinstance(sampled, Noise):
            points = {n: _noisy(sampled, place, here[n], index, sample) for place, n in enumerate(program.points)}
        else:
            points = _between(sampled, sampled.positions, here, baselines, index, sample)
        results = runner.run({**fixed, **points}, target[sample], list(program.cotangents.values()))
        arrived = {n: results[output] for n, output in program.cotangents.items()}
        weights = sampled.weights[index]
        if isinstance(sampled, Lines) and changes:
            ends = _between(sampled, sampled.shares, here, baselines, index, sample)
            after = _values(runner, {**fixed, **ends}, target[sample])
            way = {n: np.concatenate([before[n], a]) for n, a in after.items()}
            arrived = {n: (way[n][samples:] - way[n][: len(sample)]) * ct for n, ct in arrived.items()}
            before = {n: a[len(sample) :] for n, a in way.items()}
            weights = np.ones(len(sample))
        elif isinstance(sampled, Lines) and not sampled.within:
            from_here = {n: x[sample] for n, x in here.items()}
            to = _between(sampled, np.zeros(sampled.count), here, baselines, index, sample)
            arrived = {n: method.readout(ct, from_here[n], to[n]) for n, ct in arrived.items()}
        found = runner.attributions(arrived, fixed, len(sample))
        for name, output in program.attributions.items():
            values = found[output].astype(np.float64)
            weighted = values * weights.reshape(-1, *[1] * (values.ndim - 1))
            for moments, power in ((sums, weighted), (squares, weighted * values)):
                np.add.at(moments.setdefault(name, np.zeros((samples, *values.shape[1:]))), sample, power)
        if progress:
            progress(part.stop, total)
    found = squares if method.moment == "square" else sums
    if method.moment == "variance":
        found = {name: np.maximum(squares[name] - mean**2, 0) for name, mean in sums.items()}
    attributions = {name: values.astype(score.dtype) for name, values in found.items()}
    if not method.promise:
        return Answer(attributions, target, score, None)
    there = [_resolve(runner, {**feeds, **here, **baseline}, target)[1].astype(np.float64) for baseline in baselines]
    share = np.bincount(sampled.lines, sampled.weights, len(there)) if isinstance(sampled, Lines) else np.zeros(0)
    change = score - np.tensordot(share, np.asarray(there), axes=1)
    return Answer(attributions, target, score, _per_sample_sum(attributions, samples) - change)


def _noisy(noise: Noise, place: int, x: Array, index: Array, sample: Array) -> Array:
    draws = {int(i): noise.draw(int(i), place, x.shape[1:]).astype(x.dtype) for i in np.unique(index)}
    return np.asarray(x[sample] + noise.scale(x)[sample] * np.stack([draws[int(i)] for i in index]))


def _between(
    lines: Lines,
    positions: Array,
    here: Mapping[str, Array],
    baselines: Sequence[Mapping[str, Array]],
    index: Array,
    sample: Array,
) -> dict[str, Array]:
    """Points at positions on their lines."""
    points = {}
    for name, x in here.items():
        base = np.stack([baselines[k][name][row] for k, row in zip(lines.lines[index], sample, strict=True)])
        at = positions[index].astype(x.dtype).reshape(-1, *[1] * (x.ndim - 1))
        points[name] = base + at * (x[sample] - base)
    return points


def _values(runner: Runner, feeds: Mapping[str, Array], target: Array) -> dict[str, Array]:
    """The explained tensors themselves."""
    values = runner.program.values
    results = runner.run(feeds, target, list(values.values()))
    return {name: results[output] for name, output in values.items()}


def _slopes(
    feeds: Mapping[str, Array], baselines: Mapping[str, Array], gradients: Mapping[str, Array], sample: Array
) -> Array:
    """Derivative of the score along the line at each point."""
    parts = [
        ((feeds[n][sample] - baselines[n][sample]) * g).reshape(len(sample), -1).sum(axis=1, dtype=np.float64)
        for n, g in gradients.items()
    ]
    return np.asarray(np.sum(parts, axis=0))


def _perturbed(
    runner: Runner,
    perturbation: Perturbation,
    feeds: Mapping[str, Array],
    target: Array | None,
    count: int,
    progress: Progress | None,
) -> Answer:
    program = runner.program
    here = runner.tensors(feeds, count)
    feeds = {**feeds, **here}
    if target is None:
        target = runner.labels(feeds, count)
    target, score = _resolve(runner, feeds, target)
    plans = perturbation.plans(here, _baselines(runner, perturbation.baseline, feeds, here, count))
    ends = np.cumsum([plan.count for plan in plans])
    starts, total = ends - [plan.count for plan in plans], int(ends[-1])
    scores = np.zeros(total)
    for part in chunks(total, runner.main.chunk):
        jobs = np.arange(part.start, part.stop)
        samples = np.searchsorted(ends, jobs, side="right")
        points = {n: a[samples] if n in runner.main.axes else a for n, a in feeds.items()}
        for row, (sample, job) in enumerate(zip(samples, jobs, strict=True)):
            plans[sample].hide(int(job - starts[sample]), {name: points[name][row, ...] for name in here})
        scores[part] = runner.run(points, target[samples], [program.score])[program.score]
        if progress:
            progress(part.stop, total)
    rows = [p.attribute(float(s), scores[a:b]) for p, s, a, b in zip(plans, score, starts, ends, strict=True)]
    dtypes = {name: x.dtype if is_float(x.dtype) else np.dtype(np.float32) for name, x in here.items()}
    attributions = {name: np.stack([row[name] for row in rows]).astype(dtype) for name, dtype in dtypes.items()}
    return Answer(attributions, target, score, None)
