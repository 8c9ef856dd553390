"""Copies of a sample that keep a set of its features each."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxplain.distributions.masked_copies import Prologue, chosen, compact, looked_up, named
from onnxplain.distributions.perturbation.features import (
    Features,
    Partition,
    check_features_fit,
    partition,
)
from onnxplain.distributions.perturbation.perturbation import CopyPlan, Estimate, Perturbation
from onnxplain.graph.var import Var

Array = np.ndarray[Any, Any]
KEPT = "copies/kept"  # the features in a copy's set
FIRST = 16  # samples without which no standard error is good enough to stop at


@dataclass(frozen=True, eq=False)
class Game:
    """Sets of features, and what is made of the scores that they reach.

    Attributes
    ----------
    stages
        Numbers of sets after which there may be an estimate; the last is that of all sets.
    keep
        Numbers of sets, (K,) -> bools, (K, features): whether a feature stays.
    solve
        (score of the sample, scores of the first sets) -> one value per feature, and their standard errors, if known.
    """

    stages: Sequence[int]
    keep: Callable[[Array], Array]
    solve: Callable[[float, Array], tuple[Array, Array | None]]


@dataclass(frozen=True, eq=False)
class Coalitions:
    """The plan of a game; ``others``: per copy, whose features stand where the sample's own are hidden."""

    partition: Partition
    game: Game
    others: Array | None = None

    @property
    def stages(self) -> Sequence[int]:
        """Those of the game."""
        return self.game.stages

    @property
    def shared(self) -> Mapping[str, Array]:
        """Nothing."""
        return {}

    @property
    def own(self) -> Mapping[str, Array]:
        """The features of the elements."""
        return {_labels_of(name): compact(labels) for name, labels in self.partition.labels.items()}

    def describe(self, copies: Array) -> Mapping[str, Array]:
        """The sets."""
        return {KEPT: self.game.keep(np.maximum(copies, 0)) | (copies < 0)[:, None]}

    def donors(self, copies: Array) -> Array | None:
        """Those of exchanged features."""
        return None if self.others is None else self.others[copies]

    def hole(self, copy: int) -> Mapping[str, Array]:
        """The features that are not in the set."""
        (keep,) = self.game.keep(np.array([copy]))
        return {name: ~keep[labels] for name, labels in self.partition.labels.items()}

    def estimate(self, score: float, scores: Array) -> Estimate:
        """The value of a feature at each of its elements."""
        values, errors = self.game.solve(score, scores)
        return Estimate(self.partition.spread(values), None if errors is None else self.partition.spread(errors))


class Sets(Perturbation):
    """A method that hides sets of features."""

    def masked(self, prologue: Prologue, name: str, x: Var, fill: Var) -> Var:
        """Write what hides the features that are not in a copy's set."""
        kept = prologue.per_copy(KEPT, bool, (None,))
        labels = prologue.per_plan(_labels_of(name), np.int32, (None,) * (x.rank - 1))
        return chosen(looked_up(kept, labels), x, fill)


class Coalitional(Sets):
    """A method that only asks which sets of features reach which score."""

    features: Features = None

    @abstractmethod
    def game(self, features: int) -> Game:
        """The game for a number of features; the same for every sample that has as many."""

    def numbering(self, sample: Mapping[str, Array]) -> Features:
        """How the features of samples like this one are numbered."""
        return self.features

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Raise OptionError where the features do not fit an input."""
        check_features_fit(self.features, shape[1:])

    def plans(self, here: Mapping[str, Array]) -> Sequence[CopyPlan]:
        """One plan per sample."""
        samples = range(len(next(iter(here.values()))))
        numbering = self.numbering({name: x[0, ...] for name, x in here.items()})
        apart = isinstance(numbering, str) and numbering == "slic"  # else, features are the same for all
        some = samples if apart else samples[:1]
        found = [partition(numbering, {name: x[k, ...] for name, x in here.items()}) for k in some]
        games = {count: self.game(count) for count in {one.count for one in found}}
        plans = [Coalitions(one, games[one.count]) for one in found]
        return plans if apart else plans * len(samples)


def _labels_of(name: str) -> str:
    return named("labels", name)


def doubling(most: int, tolerance: float | None) -> tuple[int, ...]:
    """Counts at which a sample may be done: `FIRST`, twice that, ... and ``most``; without a tolerance, only that."""
    counts = [] if tolerance is None else [FIRST << k for k in range(max(0, most.bit_length()))]
    return (*(count for count in counts if count < most), most)
