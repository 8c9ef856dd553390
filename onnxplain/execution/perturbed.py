"""Scores of masked copies of the input."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxplain.distributions.baselines import check_named, is_named
from onnxplain.distributions.distribution import CopyPlan, Estimate, Perturbation
from onnxplain.distributions.fills import inpainted
from onnxplain.distributions.masked_copies import PLAN, SAMPLE, compact, fill_of, filler_of, samples_of
from onnxplain.distributions.perturbation import Windows
from onnxplain.errors import OptionError
from onnxplain.execution.patched import WindowsOver
from onnxplain.execution.runner import Answer, Runner, baselines_of
from onnxplain.graph.ir import is_float
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
    plans = perturbation.plans(here)
    copies = Copies(runner, feeds, here, fills, plans)
    if target is None:
        (target,) = copies.whole(runner.no_target(count), [runner.program.question.explained])
    target, score = copies.whole(target, [runner.names.resolved, runner.names.score])
    scores = [np.zeros(plan.stages[-1]) for plan in plans]
    found: dict[int, Estimate] = {}
    done = np.zeros(count, np.int64)  # copies that each sample has been run with
    stage = 0
    while going := [k for k in range(count) if k not in found]:
        ends = np.array([plans[k].stages[stage] for k in going])
        numbers = [np.arange(start, end) for start, end in zip(done[going], ends, strict=True)]
        jobs = np.stack([np.repeat(going, ends - done[going]), np.concatenate(numbers)], axis=1)
        for part, results in _runs(copies, perturbation, target, jobs):
            for (k, index), result in zip(part.tolist(), results, strict=True):
                scores[k][index] = result
            np.add.at(done, part[:, 0], 1)
            if (done[going] == ends).all():
                found |= _settled(perturbation, plans, score, scores, dict(zip(going, ends.tolist(), strict=True)))
            if progress:
                progress(int(done.sum()), sum(int(done[k]) if k in found else len(scores[k]) for k in range(count)))
        stage += 1
    return _answer(here, found, target, score, done)


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


@dataclass(frozen=True)
class Copies:
    """What masked copies are made of.

    Attributes
    ----------
    feeds
        All inputs of the program, the batch axis in front.
    here, fills
        The tensors that are masked, and the same at the baseline; pictures that are not in it are inpainted.
    plans
        One per sample.
    """

    runner: Runner
    feeds: Mapping[str, Array]
    here: Mapping[str, Array]
    fills: Mapping[str, Array]
    plans: Sequence[CopyPlan]

    def run(self, jobs: Array, target: Array, outputs: list[str]) -> list[Array]:
        """Outputs for pairs of a sample and the number of its copy, in order of samples; the targets are theirs."""
        parts = []
        for some in chunks(len(jobs), self.runner.main.chunk):
            results = self.runner.run(self.described(jobs[some]), target[some], outputs)
            parts.append([results[name] for name in outputs])
        return [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]

    def whole(self, target: Array, outputs: list[str]) -> list[Array]:
        """Outputs for the samples themselves: nothing is hidden."""
        count = len(target)
        return self.run(np.stack([np.arange(count), np.full(count, -1)], axis=1), target, outputs)

    def described(self, jobs: Array) -> dict[str, Array]:
        """What the graph makes copies of; see `onnxplain.copies.with_copies`."""
        axes, weights = self.runner.main.axes, self.runner.names.weights
        samples, rows = np.unique(jobs[:, 0], return_inverse=True)
        plans = list(dict.fromkeys(self.plans[k] for k in samples))  # several samples may share one
        places = {plan: place for place, plan in enumerate(plans)}
        of = np.array([places[self.plans[k]] for k in samples])[rows]
        copies = np.split(jobs[:, 1], np.flatnonzero(np.diff(of)) + 1)  # of each plan
        fed = {n: a for n, a in self.feeds.items() if n not in axes}
        fed |= {samples_of(n): a[samples] for n, a in self.feeds.items() if n in axes and n != weights}
        fed |= {weights: self.feeds[weights][jobs[:, 0]]} if weights else {}
        fed |= {SAMPLE: rows, PLAN: of, **plans[0].shared}
        fed |= {name: np.stack([plan.own[name] for plan in plans]) for name in plans[0].own}
        described = [plan.describe(some) for plan, some in zip(plans, copies, strict=True)]
        fed |= {name: _joined([one[name] for one in described]) for name in described[0]}
        donors = [plan.donors(some) for plan, some in zip(plans, copies, strict=True)]
        for name in self.here:
            fed[fill_of(name)], fed[filler_of(name)] = self._fill(name, jobs, donors)
        return fed

    def _fill(self, name: str, jobs: Array, donors: Sequence[Array | None]) -> tuple[Array, Array]:
        """What stands where a tensor is hidden, and the row of it for each copy."""
        if name not in self.fills:  # inpainting is OpenCV's, so these are made here, hole by hole
            return np.stack([self._inpainted(name, k, copy) for k, copy in jobs.tolist()]), np.arange(len(jobs))
        given = [rows for rows in donors if rows is not None]
        array = self.here[name] if given else compact(self.fills[name], 1)
        rows, filler = np.unique(np.concatenate(given) if given else jobs[:, 0], return_inverse=True)
        return array[rows], filler

    def _inpainted(self, name: str, sample: int, copy: int) -> Array:
        x = self.here[name][sample]
        return inpainted(x, self.plans[sample].hole(copy)[name]) if copy >= 0 else x


def _joined(parts: Sequence[Array]) -> Array:
    """Rows that describe copies of several samples, which may differ in how many features they have."""
    if len({array.shape[1:] for array in parts}) > 1:
        most = max(array.shape[1] for array in parts)
        parts = [np.pad(array, ((0, 0), (0, most - array.shape[1]))) for array in parts]
    return np.concatenate(parts)


def _runs(copies: Copies, perturbation: Perturbation, target: Array, jobs: Array) -> Iterator[tuple[Array, Array]]:
    """Run copies: pairs of a sample and the number of its copy, some at a time, and their scores."""
    if isinstance(perturbation, Windows):
        left = np.ones(len(jobs), bool)
        numbers = {(k, index): job for job, (k, index) in enumerate(jobs.tolist())}
        for rows, index, scores in _patched(copies, perturbation, target):
            places = [numbers[k, index] for k in range(len(target))[rows]]
            left[places] = False
            yield jobs[places], scores
        jobs = jobs[left]
    for some in chunks(len(jobs), copies.runner.main.chunk):
        part = jobs[some]
        (scores,) = copies.run(part, target[part[:, 0]], [copies.runner.names.score])
        yield part, scores


def _patched(copies: Copies, windows: Windows, target: Array) -> Iterator[tuple[slice, int, Array]]:
    """Samples, the number of one of their copies, and the scores, as far as incremental occlusion finds them."""
    runner, feeds, fills = copies.runner, copies.feeds, copies.fills
    axes, offset = runner.main.axes, 0
    for name, x in copies.here.items():
        fit = runner.patched is not None and name in fills and axes[name] == 0
        patched = runner.patched(WindowsOver(windows, name, x.shape[1:])) if fit and runner.patched else None
        for rows in chunks(len(target), runner.main.chunk):
            if patched is None:
                break
            some = {n: np.moveaxis(a[rows], 0, axes[n]) if n in axes else a for n, a in feeds.items()}
            some[runner.names.target] = target[rows]
            for place, scores in enumerate(patched.scores(some, np.ascontiguousarray(fills[name][rows]))):
                yield rows, offset + place, scores
        offset += sum(1 for _ in windows.slices(x.shape))


def _settled(
    perturbation: Perturbation,
    plans: Sequence[CopyPlan],
    score: Array,
    scores: Sequence[Array],
    ends: Mapping[int, int],
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
