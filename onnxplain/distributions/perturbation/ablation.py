"""Ablation: one feature after another replaced, by the baseline or by the feature of another sample of the batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from onnxplain.arguments import Count, Seed, check_fields
from onnxplain.distributions.baselines import Baseline
from onnxplain.distributions.perturbation.coalitions import Coalitional, Coalitions, FeatureSets, Game
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
        """One set per feature: all features but that one."""
        everyone = np.arange(features)
        return Game(
            (features,), lambda copies: everyone != copies[:, None], lambda score, scores: (score - scores, None)
        )


@dataclass(frozen=True, eq=False)
class Permutation(FeatureSets):
    """Loss of score when a feature is replaced by that of another sample, mean over several other samples.

    The features of each sample are replaced by those of ``samples`` different donors, and each sample is a donor as
    often. If the batch has no more other samples than that, all of them are donors, and nothing is random.

    Attributes
    ----------
    features
        See `Features`; superpixels are refused, since they differ from sample to sample.
    samples
        Number of donors of each sample.
    seed
        Seed of the NumPy generator.
    """

    mixes_samples: ClassVar[bool] = True
    features: Features = None
    samples: Count = 10
    seed: Seed = 0

    def __post_init__(self) -> None:
        check_fields(self)
        if isinstance(self.features, str) and self.features == "slic":
            raise OptionError("superpixels of one sample do not fit another sample", "Use features='grid'.")

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Raise OptionError if the features do not fit an input, or the batch has one sample only."""
        check_features_fit(self.features, shape[1:])
        _check_several(shape[0])

    def plans(self, tensors: Mapping[str, Array]) -> Sequence[CopyPlan]:
        """One plan per sample: for each of its donors, one copy per feature."""
        features = partition(self.features, {name: x[0, ...] for name, x in tensors.items()})
        samples = len(next(iter(tensors.values())))
        _check_several(samples)
        order = np.random.default_rng(self.seed).permutation(samples)
        shifts = np.arange(1, min(self.samples, samples - 1) + 1)
        donors = np.empty((samples, len(shifts)), np.int64)
        donors[order] = order[(np.arange(samples)[:, None] + shifts) % samples]
        game = self.game(features.count, len(shifts), samples - 1)
        return [Coalitions(features, game, np.repeat(row, features.count)) for row in donors]

    def game(self, features: int, donors: int, others: int) -> Game:
        """Mean loss over the donors, as an estimate of that over all others, with its standard error.

        The error is 0 if all others are donors.
        """
        everyone = np.arange(features)
        correction = 1 - donors / others  # for a finite population: donors are drawn without replacement

        def solve(score: float, scores: Array) -> tuple[Array, Array]:
            by_donor = scores.reshape(donors, features)
            errors = mean_error(by_donor) * correction**0.5 if correction else np.zeros(features)
            return score - by_donor.mean(axis=0), errors

        return Game((donors * features,), lambda copies: everyone != (copies % features)[:, None], solve)


def _check_several(samples: int) -> None:
    if samples < 2:
        raise OptionError("feature_permutation exchanges features between samples, and needs at least two samples")
