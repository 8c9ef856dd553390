"""How much of a score the top units of a tensor carry: all others are replaced, and the model goes on from there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxplain.api import Explainer, PreparedBatch
from onnxplain.arguments import is_count
from onnxplain.datasets.batches import Data, Progress, walk
from onnxplain.datasets.moments import Moments, with_error
from onnxplain.distributions.baselines import Baseline, baseline_like, check_baseline
from onnxplain.distributions.perturbation.coalitions import Coalitions, Game
from onnxplain.distributions.perturbation.features import Partition
from onnxplain.errors import OptionError
from onnxplain.execution.masked import MaskedCopies

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False)
class Carried:
    """What is left of a score when only some units of a tensor keep their activations.

    Attributes
    ----------
    samples
        Number of samples.
    ks
        Numbers of units, from 0 to all of them; the other attributes have one element for each.
    score, error
        Mean score with the top k units alone, and its standard error over samples (NaN for one sample).
    share, share_error
        (score - score of none) / (score of all - score of none), 0 to 1 if more units carry more, and its standard
        error (of a ratio of means, to first order).
    control, control_error
        The share of k random units; None if that was not asked for.
    """

    samples: int
    ks: Array
    score: Array
    error: Array
    share: Array
    share_error: Array
    control: Array | None
    control_error: Array | None

    def __str__(self) -> str:
        lines = [f"mean of {self.samples} samples; score with the top k units alone, share of the way to all units"]
        for row, k in enumerate(self.ks):
            score = with_error(self.score[row], self.error[row], ".3g")
            line = f"  {k}: {score}, {with_error(self.share[row], self.share_error[row], '.1%')}"
            if self.control is not None and self.control_error is not None:
                line += f" (random units: {with_error(self.control[row], self.control_error[row], '.1%')})"
            lines.append(line)
        return "\n".join(lines)


def carried(
    explainer: Explainer,
    at: str,
    data: Data,
    target: Any,
    order: Array,
    sizes: tuple[int, ...],
    ks: Sequence[int],
    baseline: Baseline,
    control: int | None,
    progress: Progress | None,
) -> Carried:
    """See `onnxplain.influences.Influence.carried`.

    Parameters
    ----------
    explainer
        Of a method that hides features of the tensor ``at``.
    order
        Positions of the units, the strongest first.
    sizes
        Of the tensor without its batch axis; 1 where its elements are summed up.
    """
    for k in ks:
        if not is_count(k, 1):
            raise OptionError(f"ks are whole numbers of at least 1, not {k!r}")
    if control is not None and not is_count(control, 0):
        raise OptionError(f"control is a seed, a whole number of at least 0, not {control!r}")
    check_baseline(baseline)
    units = int(np.prod(sizes))
    between = sorted({int(k) for k in ks if k <= len(order) and k < units})
    scores = Moments((len(between) * (1 if control is None else 2) + 2,), together=True)

    def score(call: PreparedBatch, count: int) -> None:
        runner, feeds = call.runner, call.runner.in_front(call.feeds)
        here = runner.tensors(feeds, count)
        there = {at: baseline_like(baseline, here[at], at)}
        assert call.target is not None
        top = np.broadcast_to(order, (count, len(order)))
        alone = [top[:, :k] for k in (0, *between, units)]  # units that are kept, shape (count, k)
        if control is not None:
            seeds = [(control, scores.count + row) for row in range(count)]
            random = np.stack([np.random.default_rng(seed).permutation(units) for seed in seeds])
            alone += [random[:, :k] for k in between]
        kept = np.zeros((count, len(alone), units), bool)
        for column, chosen in enumerate(alone):
            np.put_along_axis(kept[:, column], chosen, True, axis=1)
        kept[:, 1 + len(between)] = True
        labels = {at: np.broadcast_to(np.arange(units, dtype=np.int32).reshape(sizes), here[at].shape[1:])}
        games = [Game((len(sets),), sets.__getitem__, lambda _, scores: (scores, None)) for sets in kept]
        plans = [Coalitions(Partition(labels, units), game) for game in games]
        copies = MaskedCopies(runner, {**feeds, **here}, here, there, plans)
        (asked,) = copies.whole(call.target, [runner.names.resolved])
        jobs = np.stack(np.divmod(np.arange(kept[..., 0].size), len(alone)), axis=1)
        (found,) = copies.run(jobs, asked[jobs[:, 0]], [runner.names.score])
        scores.add(found.reshape(count, len(alone)).astype(np.float64))

    walk(explainer, data, target, score, progress)
    rows = np.arange(len(between) + 2)
    random = np.array([0, *range(len(rows), len(scores.mean)), len(rows) - 1]) if control is not None else None
    return Carried(
        scores.count,
        np.array([0, *between, units]),
        scores.mean[rows],
        np.sqrt(np.diag(scores.covariance)[rows]),
        *_shares(scores, rows, len(rows) - 1),
        *((None, None) if random is None else _shares(scores, random, len(rows) - 1)),
    )


def _shares(scores: Moments, rows: Array, last: int) -> tuple[Array, Array]:
    """Shares of the way from column 0 to the last one, and their standard errors."""
    unit = np.eye(len(scores.mean))
    way = unit[last] - unit[0]
    with np.errstate(divide="ignore", invalid="ignore"):
        whole = way @ scores.mean
        share = (unit[rows] - unit[0]) @ scores.mean / whole
        tangent = unit[rows] - unit[0] - share[:, None] * way
        variance = np.einsum("ki,ij,kj->k", tangent, scores.covariance, tangent)
        return share, np.sqrt(np.maximum(variance, 0)) / abs(whole)
