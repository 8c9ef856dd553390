"""One feature after another replaced: by the baseline, or by what other samples of the batch have there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from onnxplain.arguments import Count, Seed, check_fields
from onnxplain.distributions.baselines import Baseline
from onnxplain.distributions.perturbation.coalitions import Coalitional, Coalitions, Game, Sets
from onnxplain.distributions.perturbation.features import Features, check_features_fit, partition
from onnxplain.distributions.perturbation.perturbation import CopyPlan
from onnxplain.distributions.perturbation.standard_errors import mean_error
from onnxplain.errors import OptionError

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False)
class Ablation(Coalitional):
    """Loss of score when a feature is replaced by the baseline."""

    features: Features = None
    baseline: Baseline = 0.0

    def __post_init__(self) -> None:
        check_fields(self)

    def game(self, features: int) -> Game:
        """All features but one."""
        everyone = np.arange(features)
        return Game(
            (features,), lambda copies: everyone != copies[:, None], lambda score, scores: (score - scores, None)
        )


@dataclass(frozen=True, eq=False)
class Permutation(Sets):
    """Loss of score when a feature is replaced by that of another sample, mean over several others.

    Each sample meets ``samples`` different others, and each is met as often; all others, if there are no more: then
    nothing is random.
    """

    mixes_samples: ClassVar[bool] = True
    features: Features = None
    samples: Count = 10
    seed: Seed = 0

    def __post_init__(self) -> None:
        check_fields(self)
        if isinstance(self.features, str) and self.features == "slic":
            raise OptionError("superpixels of one sample mean nothing in another", "Take features='grid'.")

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Raise OptionError where the features do not fit an input, or there is only one sample."""
        check_features_fit(self.features, shape[1:])
        _check_several(shape[0])

    def plans(self, here: Mapping[str, Array]) -> Sequence[CopyPlan]:
        """One plan per sample: for each of its donors, one copy per feature."""
        found = partition(self.features, {name: x[0, ...] for name, x in here.items()})
        samples = len(next(iter(here.values())))
        _check_several(samples)
        order = np.random.default_rng(self.seed).permutation(samples)
        shifts = np.arange(1, min(self.samples, samples - 1) + 1)
        donors = np.empty((samples, len(shifts)), np.int64)
        donors[order] = order[(np.arange(samples)[:, None] + shifts) % samples]
        game = self.game(found.count, len(shifts), samples - 1)
        return [Coalitions(found, game, np.repeat(row, found.count)) for row in donors]

    def game(self, features: int, donors: int, others: int) -> Game:
        """Mean loss over the donors; of the mean over all others, the standard error, 0 if these are all others."""
        everyone = np.arange(features)
        left = 1 - donors / others  # donors are drawn from the others, and none is put back

        def solve(score: float, scores: Array) -> tuple[Array, Array]:
            met = scores.reshape(donors, features)
            return score - met.mean(axis=0), mean_error(met) * left**0.5 if left else np.zeros(features)

        return Game((donors * features,), lambda copies: everyone != (copies % features)[:, None], solve)


def _check_several(samples: int) -> None:
    if samples < 2:
        raise OptionError("feature_permutation needs at least two samples, whose features it exchanges")
