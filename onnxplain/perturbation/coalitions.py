"""Copies of a sample that keep a set of its features each."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxplain.distributions import Baseline, Estimate, Perturbation, Plan, check_baseline, is_count
from onnxplain.errors import OptionError
from onnxplain.fills import inpainted
from onnxplain.perturbation.features import Features, Partition, check_features, check_shape, partition

Array = np.ndarray[Any, Any]
FIRST = 16  # samples without which no standard error is good enough to stop at


@dataclass(frozen=True, eq=False)
class Game:
    """Sets of features, and what is made of the scores that they reach.

    Attributes
    ----------
    stages
        Numbers of sets after which there may be an estimate; the last is that of all sets.
    keep
        Number of a set -> bool for each feature: whether it stays.
    solve
        (score of the sample, scores of the first sets) -> one value per feature, and their standard errors, if known.
    """

    stages: Sequence[int]
    keep: Callable[[int], Array]
    solve: Callable[[float, Array], tuple[Array, Array | None]]


@dataclass(frozen=True, eq=False)
class Coalitions:
    """The plan of a game; ``fill`` is what hidden elements become, and what is not in it is inpainted."""

    partition: Partition
    game: Game
    fill: Mapping[str, Array]

    @property
    def stages(self) -> Sequence[int]:
        """Those of the game."""
        return self.game.stages

    def hide(self, index: int, copy: Mapping[str, Array]) -> None:
        """Put the fill where the features of one set are not."""
        keep = self.game.keep(index)
        for name, labels in self.partition.labels.items():
            x, hole = copy[name], ~keep[labels]
            np.copyto(x, self.fill[name] if name in self.fill else inpainted(x, hole), where=hole)

    def estimate(self, score: float, scores: Array) -> Estimate:
        """The value of a feature at each of its elements."""
        values, errors = self.game.solve(score, scores)
        return Estimate(self.partition.spread(values), None if errors is None else self.partition.spread(errors))


class Coalitional(Perturbation):
    """A method that only asks which sets of features reach which score."""

    features: Features = None

    @abstractmethod
    def game(self, features: int) -> Game:
        """The game for a number of features; the same for every sample that has as many."""

    def partition(self, sample: Mapping[str, Array]) -> Partition:
        """The features of a sample."""
        return partition(self.features, sample)

    def check(self, shape: tuple[int, ...]) -> None:
        """Raise OptionError where the features do not fit an input."""
        check_shape(self.features, shape[1:])

    def plans(self, here: Mapping[str, Array], fills: Mapping[str, Array]) -> Sequence[Plan]:
        """One plan per sample."""
        games: dict[int, Game] = {}
        plans = []
        for k in range(len(next(iter(here.values())))):
            found = self.partition({name: x[k, ...] for name, x in here.items()})
            game = games.get(found.count) or games.setdefault(found.count, self.game(found.count))
            plans.append(Coalitions(found, game, {name: fill[k, ...] for name, fill in fills.items()}))
        return plans


def doubling(most: int, tolerance: float | None) -> tuple[int, ...]:
    """Counts at which a sample may be done: `FIRST`, twice that, ... and ``most``; without a tolerance, only that."""
    counts = [] if tolerance is None else [FIRST << k for k in range(max(0, most.bit_length()))]
    return (*(count for count in counts if count < most), most)


def check_options(features: Any, baseline: Baseline, samples: Any = 1, seed: Any = 0, tolerance: Any = None) -> None:
    """Raise OptionError for a bad value of an option that several methods have."""
    check_features(features)
    check_baseline(baseline)
    if not is_count(samples, 1):
        raise OptionError(f"samples must be a whole number of at least 1, not {samples!r}")
    if not is_count(seed, 0):
        raise OptionError(f"seed must be a whole number of at least 0, not {seed!r}")
    number = isinstance(tolerance, int | float | np.number) and not isinstance(tolerance, bool)
    if tolerance is not None and not (number and tolerance > 0):
        raise OptionError(f"tolerance must be a number above 0, not {tolerance!r}")
