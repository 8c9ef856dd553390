"""One feature after another replaced: by the baseline, or by what other samples of the batch have there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from onnxplain.distributions import Baseline, Estimate, Perturbation, Plan
from onnxplain.errors import OptionError
from onnxplain.perturbation.coalitions import Coalitional, Game, check_options
from onnxplain.perturbation.errors import mean_error
from onnxplain.perturbation.features import Features, Partition, check_shape, partition

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False)
class Ablation(Coalitional):
    """Loss of score when a feature is replaced by the baseline."""

    features: Features = None
    baseline: Baseline = 0.0

    def __post_init__(self) -> None:
        check_options(self.features, self.baseline)

    def game(self, features: int) -> Game:
        """All features but one."""
        everyone = np.arange(features)
        return Game((features,), lambda index: everyone != index, lambda score, scores: (score - scores, None))


@dataclass(frozen=True, eq=False)
class Permutation(Perturbation):
    """Loss of score when a feature is replaced by that of another sample, mean over several others.

    Each sample meets ``samples`` different others, and each is met as often; all others, if there are no more: then
    nothing is random.
    """

    mixes: ClassVar[bool] = True
    features: Features = None
    samples: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        check_options(self.features, 0.0, self.samples, self.seed)
        if isinstance(self.features, str) and self.features == "slic":
            raise OptionError("superpixels of one sample mean nothing in another", "Take features='grid'.")

    def check(self, shape: tuple[int, ...]) -> None:
        """Raise OptionError where the features do not fit an input, or there is only one sample."""
        check_shape(self.features, shape[1:])
        _check_several(shape[0])

    def plans(self, here: Mapping[str, Array], fills: Mapping[str, Array]) -> Sequence[Plan]:
        """One plan per sample."""
        found = partition(self.features, {name: x[0, ...] for name, x in here.items()})
        samples = len(next(iter(here.values())))
        _check_several(samples)
        order = np.random.default_rng(self.seed).permutation(samples)
        shifts = np.arange(1, min(self.samples, samples - 1) + 1)
        donors = np.empty((samples, len(shifts)), np.int64)
        donors[order] = order[(np.arange(samples)[:, None] + shifts) % samples]
        return [Exchanged(found, here, row) for row in donors]


def _check_several(samples: int) -> None:
    if samples < 2:
        raise OptionError("feature_permutation needs at least two samples, whose features it exchanges")


@dataclass(frozen=True, eq=False)
class Exchanged:
    """The plan of `Permutation`: for each donor, one copy per feature."""

    partition: Partition
    here: Mapping[str, Array]
    donors: Array

    @property
    def stages(self) -> Sequence[int]:
        """All copies."""
        return (self.partition.count * len(self.donors),)

    def hide(self, index: int, copy: Mapping[str, Array]) -> None:
        """Take one feature from a donor."""
        donor, feature = divmod(index, self.partition.count)
        for name, labels in self.partition.labels.items():
            np.copyto(copy[name], self.here[name][self.donors[donor], ...], where=labels == feature)

    def estimate(self, score: float, scores: Array) -> Estimate:
        """Mean loss over the donors; of the mean over all others, the standard error, 0 if these are all others."""
        met = scores.reshape(-1, self.partition.count)
        others = len(next(iter(self.here.values()))) - 1
        left = 1 - len(met) / others  # donors are drawn from the others, and none is put back
        errors = mean_error(met) * left**0.5 if left else np.zeros(self.partition.count)
        return Estimate(self.partition.spread(score - met.mean(axis=0)), self.partition.spread(errors))
