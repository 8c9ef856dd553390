"""Moments of what a method finds at points around the input, or between it and baselines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from onnxplain.distributions.sampling import Lines, Noise, Sampled
from onnxplain.execution.moments import add_weighted, moment_and_error
from onnxplain.execution.runner import Answer, Runner, baselines_of, resolve, sum_per_sample
from onnxplain.methods.method import Method
from onnxplain.runtime.batching import chunks
from onnxplain.runtime.chunked import Progress

Array = np.ndarray[Any, Any]


def explain_sampled(
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
    target, score = resolve(runner, {**feeds, **here}, target)
    baselines: list[dict[str, Array]] = []
    if isinstance(sampled, Lines):
        references = sampled.references
        baselines = [baselines_of(runner, references.get(k), feeds, here, samples) for k in range(references.count)]
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
        results = runner.run({**fixed, **points}, target[sample], list(program.names.cotangents.values()))
        arrived = {n: results[output] for n, output in program.names.cotangents.items()}
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
        for name, output in program.names.attributions.items():
            values = found[output].astype(np.float64)
            for moments, power in ((sums, values), (squares, values**2)):
                add_weighted(moments.setdefault(name, np.zeros((samples, *values.shape[1:]))), sample, weights, power)
        if progress:
            progress(part.stop, total)
    dtypes = dict.fromkeys(sums, score.dtype)
    attributions, errors = moment_and_error(sums, squares, sampled, method.moment, dtypes)
    if not method.promise:
        return Answer(attributions, target, score, None, errors)
    there = [resolve(runner, {**feeds, **here, **baseline}, target)[1].astype(np.float64) for baseline in baselines]
    share = np.bincount(sampled.lines, sampled.weights, len(there)) if isinstance(sampled, Lines) else np.zeros(0)
    change = score - np.tensordot(share, np.asarray(there), axes=1)
    return Answer(attributions, target, score, sum_per_sample(attributions, samples) - change, errors)


def _noisy(noise: Noise, place: int, x: Array, index: Array, sample: Array) -> Array:
    draws = {i: noise.draw(i, place, x.shape[1:]).astype(x.dtype) for i in map(int, np.unique(index))}
    points = np.stack([draws[int(i)] for i in index])
    points *= noise.scale(x)[sample]
    points += x[sample]
    return points


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
    values = runner.names.values
    results = runner.run(feeds, target, list(values.values()))
    return {name: results[output] for name, output in values.items()}
