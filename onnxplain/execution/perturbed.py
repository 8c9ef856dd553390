"""Scores of masked copies of the input."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from onnxplain.distributions import Estimate, Perturbation, Plan, check_named, is_named
from onnxplain.errors import OptionError
from onnxplain.execution.patched import Asked
from onnxplain.execution.runner import Answer, Runner, baselines_of, resolve
from onnxplain.ir import is_float
from onnxplain.perturbation import Windows
from onnxplain.runtime.batching import chunks
from onnxplain.runtime.chunked import Progress

Array = np.ndarray[Any, Any]


def explain_perturbed(
    runner: Runner,
    perturbation: Perturbation,
    feeds: Mapping[str, Array],
    target: Array | None,
    count: int,
    progress: Progress | None,
) -> Answer:
    """Hand the scores of masked copies to the plans that made them; no target: the labels that the model gives.

    A chunk of copies exists at a time. The copies of all samples up to their plans' first stages are run, then those up
    to the second of the samples that miss the tolerance, and so on: whether a sample goes on depends on nothing but its
    own scores.
    """
    here = runner.tensors(feeds, count)
    feeds = {**feeds, **here}
    painted = to_inpaint(perturbation, here)
    baseline = 0.0 if painted else perturbation.baseline  # of other tensors, if there are any
    fills = {n: a for n, a in baselines_of(runner, baseline, feeds, here, count).items() if n not in painted}
    if target is None:
        target = runner.labels(feeds, count)
    target, score = resolve(runner, feeds, target)
    plans = perturbation.plans(here, fills)
    scores = [np.zeros(plan.stages[-1]) for plan in plans]
    found: dict[int, Estimate] = {}
    copies = np.zeros(count, np.int64)  # that each sample has been run with
    stage = 0
    while going := [k for k in range(count) if k not in found]:
        ends = {k: plans[k].stages[stage] for k in going}
        samples = np.repeat(going, [ends[k] - copies[k] for k in going])
        jobs = np.stack([samples, np.concatenate([np.arange(copies[k], ends[k]) for k in going])], axis=1)
        for part, results in _runs(runner, perturbation, plans, feeds, here, fills, target, jobs):
            for (k, index), result in zip(part, results, strict=True):
                scores[k][index] = result
            np.add.at(copies, part[:, 0], 1)
            if all(copies[k] == end for k, end in ends.items()):
                found |= _settled(perturbation, plans, score, scores, ends)
            if progress:
                progress(int(copies.sum()), sum(int(copies[k]) if k in found else len(scores[k]) for k in range(count)))
        stage += 1
    return _answer(here, found, target, score, copies)


def to_inpaint(perturbation: Perturbation, here: Mapping[str, Array]) -> set[str]:
    """Names of the tensors that are inpainted; the batch axis is in front.

    Raises
    ------
    OptionError
        One of them is no picture.
    """
    if not isinstance(perturbation.baseline, str) or perturbation.baseline != "inpaint":
        return set()
    names = {name for name, x in here.items() if is_named("inpaint", x.dtype)}
    for name in names:
        check_named("inpaint", here[name].dtype, name)
        if here[name].ndim != 4:
            what = f"baseline='inpaint' is for pictures, and '{name}' has the shape {here[name].shape}"
            raise OptionError(what, "Give a number or an array; wrt= chooses among several inputs.")
    return names


def _runs(
    runner: Runner,
    perturbation: Perturbation,
    plans: Sequence[Plan],
    feeds: Mapping[str, Array],
    here: Mapping[str, Array],
    fills: Mapping[str, Array],
    target: Array,
    jobs: Array,
) -> Iterator[tuple[Array, Array]]:
    """Run copies: pairs of a sample and the number of its copy, some at a time, and their scores."""
    if isinstance(perturbation, Windows):
        left = np.ones(len(jobs), bool)
        numbers = {(k, index): job for job, (k, index) in enumerate(jobs.tolist())}
        for rows, index, scores in _patched(runner, perturbation, feeds, here, fills, target):
            part = [numbers[k, index] for k in range(len(target))[rows]]
            left[part] = False
            yield jobs[part], scores
        jobs = jobs[left]
    for some in chunks(len(jobs), runner.main.chunk):
        yield jobs[some], _scores(runner, plans, feeds, list(here), target, jobs[some])


def _patched(
    runner: Runner,
    windows: Windows,
    feeds: Mapping[str, Array],
    here: Mapping[str, Array],
    fills: Mapping[str, Array],
    target: Array,
) -> Iterator[tuple[slice, int, Array]]:
    """Samples, the number of one of their copies, and the scores, as far as incremental occlusion finds them."""
    axes, offset = runner.main.axes, 0
    for name, x in here.items():
        fit = runner.patched is not None and name in fills and axes[name] == 0
        patched = runner.patched(Asked(windows, name, x.shape[1:])) if fit and runner.patched else None
        for rows in chunks(len(target), runner.main.chunk):
            if patched is None:
                break
            some = {n: np.moveaxis(a[rows], 0, axes[n]) if n in axes else a for n, a in feeds.items()}
            some[runner.program.target] = target[rows]
            for place, scores in enumerate(patched.scores(some, np.ascontiguousarray(fills[name][rows]))):
                yield rows, offset + place, scores
        offset += sum(1 for _ in windows.slices(x.shape))


def _scores(
    runner: Runner,
    plans: Sequence[Plan],
    feeds: Mapping[str, Array],
    masked: Sequence[str],
    target: Array,
    jobs: Array,
) -> Array:
    """Scores of a chunk of copies: pairs of a sample and the number of its copy."""
    samples = jobs[:, 0]
    points = {n: a[samples] if n in runner.main.axes else a for n, a in feeds.items()}
    for row, (sample, index) in enumerate(jobs.tolist()):
        plans[sample].hide(index, {name: points[name][row, ...] for name in masked})
    return runner.run(points, target[samples], [runner.program.score])[runner.program.score]


def _settled(
    perturbation: Perturbation, plans: Sequence[Plan], score: Array, scores: Sequence[Array], ends: Mapping[int, int]
) -> dict[int, Estimate]:
    """Estimates of the samples that are done: within the tolerance, or all of their copies have been run."""
    done = {}
    for k, end in ends.items():
        last = end == len(scores[k])
        if last or perturbation.tolerance is not None:
            estimate = plans[k].estimate(float(score[k]), scores[k][:end])
            if last or estimate.within(float(perturbation.tolerance or 0)):
                done[k] = estimate
    return done


def _answer(
    here: Mapping[str, Array], found: Mapping[int, Estimate], target: Array, score: Array, copies: Array
) -> Answer:
    values, errors = {}, {}
    for name, x in here.items():
        dtype = x.dtype if is_float(x.dtype) else np.dtype(np.float32)
        values[name] = np.stack([found[k].values[name] for k in sorted(found)]).astype(dtype)
        known = [estimate.errors[name] for _, estimate in sorted(found.items()) if estimate.errors is not None]
        if len(known) == len(found):
            errors[name] = np.stack(known).astype(dtype)
    return Answer(values, target, score, None, errors, copies)
