"""Share of a score that the top units of a tensor carry, with all other units replaced."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxplain.api import Explainer
from onnxplain.arguments import or_none, whole_number
from onnxplain.datasets import Data, Moments, Progress, for_each_chunk, with_error
from onnxplain.distributions.baselines import Baseline, baseline_like, check_baseline
from onnxplain.distributions.perturbation.coalitions import Coalitions, Game
from onnxplain.distributions.perturbation.features import Partition
from onnxplain.execution.masked import MaskedCopies
from onnxplain.execution.requests import PreparedBatch

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False)
class Carried:
    """Scores of a model in which only some units of a tensor keep their activations.

    Attributes
    ----------
    samples
        Number of samples.
    ks
        Numbers of units, from 0 to all of them; int array of shape (K,).
    score, error
        Mean score with the top k units alone, and its standard error over samples (NaN for one sample); float64 arrays
        of shape (K,).
    share, share_error
        (score - score of no unit) / (score of all units - score of no unit), and its standard error (of a ratio of
        means, to first order); float64 arrays of shape (K,). The share rises from 0 to 1 if every unit adds to the
        score.
    control, control_error
        The share of k random units and its standard error, likewise; None without a control.
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
        lines = [f"mean of {self.samples} samples; score with the top k units alone, share of all units' score"]
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
    *,
    target: Any,
    order: Array,
    sizes: tuple[int, ...],
    ks: Sequence[int],
    baseline: Baseline,
    control: int | None,
    progress: Progress | None,
) -> Carried:
    """Compute `Carried`; `onnxplain.concepts.Influence.carried` is the public entry and documents the other options.

    Parameters
    ----------
    explainer
        An explainer of the tensor ``at`` whose method replaces features, such as feature_ablation.
    order
        Positions of the units in the flattened tensor, the strongest first.
    sizes
        Shape of the tensor without its batch axis; 1 for axes over which a unit extends.
    """
    _check(ks, baseline, control)
    units = int(np.prod(sizes))
    sets = _KeptSets(order, units, sorted({int(k) for k in ks if k <= len(order) and k < units}), control)
    scores = Moments((sets.count,), together=True)

    def add(call: PreparedBatch, count: int) -> None:
        kept = sets.of_samples(scores.count, count)
        scores.add(_scores(call, at, kept, sizes, baseline))

    for_each_chunk(explainer, data, target, add, progress)
    rows, last = sets.rows, sets.rows[-1]
    shares = _shares(scores, rows, last)
    controls = (None, None) if sets.control_rows is None else _shares(scores, sets.control_rows, last)
    return Carried(
        samples=scores.count,
        ks=np.array([0, *sets.between, units]),
        score=scores.mean[rows],
        error=np.sqrt(np.diag(scores.covariance)[rows]),
        share=shares[0],
        share_error=shares[1],
        control=controls[0],
        control_error=controls[1],
    )


def _check(ks: Sequence[int], baseline: Baseline, control: int | None) -> None:
    for k in ks:
        whole_number(1).check("each of ks", k)
    or_none(whole_number(0)).check("control", control)
    check_baseline(baseline)


@dataclass(frozen=True, eq=False)
class _KeptSets:
    """The sets of units that keep their activations, one score each.

    In this order: no unit, the top k for each k of ``between``, all units; and with a control, k random units for each
    k of ``between``.

    Attributes
    ----------
    order
        Positions of the units, the strongest first.
    units
        Number of units.
    between
        Numbers of units, ascending, without 0 and ``units``.
    control
        Seed of the random units; None for no control.
    """

    order: Array
    units: int
    between: list[int]
    control: int | None

    @property
    def count(self) -> int:
        """Number of sets per sample."""
        return len(self.between) * (1 if self.control is None else 2) + 2

    @property
    def rows(self) -> Array:
        """Positions of the sets of top units: from no unit to all."""
        return np.arange(len(self.between) + 2)

    @property
    def control_rows(self) -> Array | None:
        """Positions of the sets of random units, from no unit to all; None without a control."""
        last = len(self.between) + 1
        return None if self.control is None else np.array([0, *range(last + 1, self.count), last])

    def of_samples(self, start: int, count: int) -> Array:
        """Return which units stay: bools of shape (count, sets, units), for ``count`` samples from number ``start``.

        The random units depend on the seed and on the sample's number in the data set only.
        """
        top = np.broadcast_to(self.order, (count, len(self.order)))
        positions = [top[:, :k] for k in (0, *self.between, self.units)]  # of the units that stay, shape (count, k)
        if self.control is not None:
            seeds = [(self.control, start + row) for row in range(count)]
            random = np.stack([np.random.default_rng(seed).permutation(self.units) for seed in seeds])
            positions += [random[:, :k] for k in self.between]
        kept = np.zeros((count, len(positions), self.units), bool)
        for column, chosen in enumerate(positions):
            np.put_along_axis(kept[:, column], chosen, True, axis=1)
        kept[:, 1 + len(self.between)] = True  # all units, while ``order`` may hold those of one sign only
        return kept


def _scores(call: PreparedBatch, at: str, kept: Array, sizes: tuple[int, ...], baseline: Baseline) -> Array:
    """Run the model behind tensor ``at`` for each sample and set of ``kept``: scores of shape (samples, sets)."""
    assert call.target is not None
    count, sets, units = kept.shape
    runner, feeds = call.runner, call.runner.axes.to_front(call.feeds)
    tensors = runner.tensors(feeds, count)
    fills = {at: baseline_like(baseline, tensors[at], at)}
    labels = {at: np.broadcast_to(np.arange(units, dtype=np.int32).reshape(sizes), tensors[at].shape[1:])}
    games = [Game((sets,), of_sample.__getitem__, lambda _, scores: (scores, None)) for of_sample in kept]
    plans = [Coalitions(Partition(labels, units), game) for game in games]
    copies = MaskedCopies(runner, {**feeds, **tensors}, tensors, fills, plans)
    (targets,) = copies.whole(call.target, [runner.names.resolved])
    jobs = np.stack(np.divmod(np.arange(count * sets), sets), axis=1)
    (scores,) = copies.run(jobs, targets[jobs[:, 0]], [runner.names.score])
    return scores.reshape(count, sets).astype(np.float64)


def _shares(scores: Moments, rows: Array, last: int) -> tuple[Array, Array]:
    """Return (mean of each row - mean of row 0) / (mean of ``last`` - mean of row 0), and its standard error.

    The error of a ratio of means, to first order (delta method).
    """
    unit = np.eye(len(scores.mean))
    span = unit[last] - unit[0]
    with np.errstate(divide="ignore", invalid="ignore"):
        whole = span @ scores.mean
        share = (unit[rows] - unit[0]) @ scores.mean / whole
        tangent = unit[rows] - unit[0] - share[:, None] * span
        variance = np.einsum("ki,ij,kj->k", tangent, scores.covariance, tangent)
        return share, np.sqrt(np.maximum(variance, 0)) / abs(whole)
