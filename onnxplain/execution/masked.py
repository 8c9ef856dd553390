"""Attributions from the scores of masked copies of the input."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxplain.distributions.fills import inpainted
from onnxplain.distributions.masked_copies import PLAN, SAMPLE, compact, fill_of, filler_of, kept_as, samples_of
from onnxplain.distributions.perturbation import CopyPlan, Estimate, Perturbation
from onnxplain.execution.answer import Answer
from onnxplain.execution.runner import Runner, baselines_of
from onnxplain.graph.ir import is_float
from onnxplain.methods.method import Method
from onnxplain.runtime.batching import chunks
from onnxplain.runtime.chunked import Progress

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class MaskedCopies:
    """The data from which the graph makes masked copies.

    Attributes
    ----------
    feeds
        All inputs of the program by name, the batch axis in front.
    moved, fills
        The tensors that are masked, and the same tensors at the baseline. Pictures without a fill are inpainted.
    plans
        One per sample.
    """

    runner: Runner
    feeds: Mapping[str, Array]
    moved: Mapping[str, Array]
    fills: Mapping[str, Array]
    plans: Sequence[CopyPlan]

    def run(self, jobs: Array, target: Array, outputs: list[str]) -> list[Array]:
        """Outputs for jobs, in order of samples, each with its target.

        Parameters
        ----------
        jobs
            Pairs of a sample and the number of its copy, int64, shape (jobs, 2).
        target
            One per job.
        outputs
            Names of outputs of the program.
        """
        parts = []
        for some in chunks(len(jobs), self.runner.main.chunk):
            results = self.runner.run(self.described(jobs[some]), target[some], outputs)
            parts.append([results[name] for name in outputs])
        return [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]

    def whole(self, target: Array, outputs: list[str]) -> list[Array]:
        """Outputs for the samples themselves, with nothing hidden."""
        count = len(target)
        return self.run(np.stack([np.arange(count), np.full(count, -1)], axis=1), target, outputs)

    def described(self, jobs: Array) -> dict[str, Array]:
        """Inputs from which the graph makes the copies, by name (`onnxplain.distributions.masked_copies`)."""
        axes, weights = self.runner.axes, self.runner.names.weights
        samples, rows = np.unique(jobs[:, 0], return_inverse=True)
        plans = list(dict.fromkeys(self.plans[k] for k in samples))  # several samples may share one
        places = {plan: place for place, plan in enumerate(plans)}
        plan_of_job = np.array([places[self.plans[k]] for k in samples])[rows]
        copies = np.split(jobs[:, 1], np.flatnonzero(np.diff(plan_of_job)) + 1)  # of each plan
        fed = {kept_as(n): a for n, a in self.feeds.items() if n not in axes}
        fed |= {samples_of(n): a[samples] for n, a in self.feeds.items() if n in axes and n != weights}
        fed |= {weights: self.feeds[weights][jobs[:, 0]]} if weights else {}
        fed |= {SAMPLE: rows, PLAN: plan_of_job, **plans[0].shared}
        fed |= {name: np.stack([plan.own[name] for plan in plans]) for name in plans[0].own}
        described = [plan.describe(some) for plan, some in zip(plans, copies, strict=True)]
        fed |= {name: _joined([one[name] for one in described]) for name in described[0]}
        donors = [plan.donors(some) for plan, some in zip(plans, copies, strict=True)]
        for name in self.moved:
            fed[fill_of(name)], fed[filler_of(name)] = self._fill(name, jobs, donors)
        return fed

    def _fill(self, name: str, jobs: Array, donors: Sequence[Array | None]) -> tuple[Array, Array]:
        """Rows that stand in the hidden parts of a tensor, and the number of the row for each copy."""
        if name not in self.fills:  # inpainting is done here, hole by hole: OpenCV does it, not the graph
            return np.stack([self._inpainted(name, k, copy) for k, copy in jobs.tolist()]), np.arange(len(jobs))
        exchanged = [rows for rows in donors if rows is not None]
        array = self.moved[name] if exchanged else compact(self.fills[name], 1)
        rows, filler = np.unique(np.concatenate(exchanged) if exchanged else jobs[:, 0], return_inverse=True)
        return array[rows], filler

    def _inpainted(self, name: str, sample: int, copy: int) -> Array:
        x = self.moved[name][sample]
        return inpainted(x, self.plans[sample].hole(copy)[name]) if copy >= 0 else x


Shortcut = Callable[[MaskedCopies, Array], Iterator[tuple[slice, int, Array]]]
"""(copies, targets) -> samples, the number of one of their copies, and its scores, for copies that need no run."""


def explain_masked(
    runner: Runner,
    method: Method,
    perturbation: Perturbation,
    feeds: Mapping[str, Array],
    target: Array | None,
    progress: Progress | None,
    shortcut: Shortcut | None = None,
) -> Answer:
    """Attributions that the samples' plans estimate from the scores of masked copies.

    A chunk of copies exists at a time. The copies of all samples up to their plans' first stages are run, then those up
    to the second stages of the samples that miss the tolerance, and so on: whether a sample goes on depends on its own
    scores only.

    Parameters
    ----------
    target
        None: the labels that the model gives.
    shortcut
        Scores of copies that need not be run.
    """
    count = runner.axes.count(feeds)
    moved = runner.tensors(feeds, count)
    feeds = {**feeds, **moved}
    painted = perturbation.inpainted(moved)
    baseline = 0.0 if painted else perturbation.baseline  # of the tensors that cannot be inpainted, if there are any
    fills = {n: a for n, a in baselines_of(runner, baseline, feeds, moved, count).items() if n not in painted}
    plans = perturbation.plans(moved)
    copies = MaskedCopies(runner, feeds, moved, fills, plans)
    if target is None:
        (target,) = copies.whole(runner.no_target(count), [kept_as(runner.program.question.explained)])
    target, score = copies.whole(target, [runner.names.resolved, runner.names.score])
    scores = [np.zeros(plan.stages[-1]) for plan in plans]
    estimates: dict[int, Estimate] = {}
    done = np.zeros(count, np.int64)  # copies that each sample has been run with
    stage = 0
    while going := [k for k in range(count) if k not in estimates]:
        ends = np.array([plans[k].stages[stage] for k in going])
        numbers = [np.arange(start, end) for start, end in zip(done[going], ends, strict=True)]
        jobs = np.stack([np.repeat(going, ends - done[going]), np.concatenate(numbers)], axis=1)
        for part, results in _scores(copies, target, jobs, shortcut):
            for (k, index), result in zip(part.tolist(), results, strict=True):
                scores[k][index] = result
            np.add.at(done, part[:, 0], 1)
            if (done[going] == ends).all():
                estimates |= _settled(perturbation, plans, score, scores, dict(zip(going, ends.tolist(), strict=True)))
            if progress:
                left = sum(int(done[k]) if k in estimates else len(scores[k]) for k in range(count))
                progress(int(done.sum()), left)
        stage += 1
    return _answer(moved, estimates, target, score, done)


def _joined(parts: Sequence[Array]) -> Array:
    """Rows that describe copies of several samples, which may have different numbers of features."""
    if len({array.shape[1:] for array in parts}) > 1:
        most = max(array.shape[1] for array in parts)
        parts = [np.pad(array, ((0, 0), (0, most - array.shape[1]))) for array in parts]
    return np.concatenate(parts)


def _scores(
    copies: MaskedCopies, target: Array, jobs: Array, shortcut: Shortcut | None
) -> Iterator[tuple[Array, Array]]:
    """Jobs, some at a time, and the scores of their copies."""
    if shortcut:
        left = np.ones(len(jobs), bool)
        numbers = {(k, index): job for job, (k, index) in enumerate(jobs.tolist())}
        for rows, index, scores in shortcut(copies, target):
            places = [numbers[k, index] for k in range(len(target))[rows]]
            left[places] = False
            yield jobs[places], scores
        jobs = jobs[left]
    for some in chunks(len(jobs), copies.runner.main.chunk):
        part = jobs[some]
        (scores,) = copies.run(part, target[part[:, 0]], [copies.runner.names.score])
        yield part, scores


def _settled(
    perturbation: Perturbation,
    plans: Sequence[CopyPlan],
    score: Array,
    scores: Sequence[Array],
    ends: Mapping[int, int],
) -> dict[int, Estimate]:
    """Estimates of the samples that are done: within the tolerance, or with all of their copies run."""
    done = {}
    for k, end in ends.items():
        last = end == len(scores[k])
        if last or perturbation.tolerance is not None:
            estimate = plans[k].estimate(float(score[k]), scores[k][:end])
            if last or estimate.within(float(perturbation.tolerance or 0)):
                done[k] = estimate
    return done


def _answer(
    moved: Mapping[str, Array], estimates: Mapping[int, Estimate], target: Array, score: Array, copies: Array
) -> Answer:
    values, errors = {}, {}
    for name, x in moved.items():
        dtype = x.dtype if is_float(x.dtype) else np.dtype(np.float32)
        values[name] = np.stack([estimates[k].values[name] for k in sorted(estimates)]).astype(dtype)
        known = [estimate.errors[name] for _, estimate in sorted(estimates.items()) if estimate.errors is not None]
        if len(known) == len(estimates):
            errors[name] = np.stack(known).astype(dtype)
    return Answer(values, target, score, None, errors, copies)
