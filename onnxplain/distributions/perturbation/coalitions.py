"""Masked copies that keep a set of a sample's features each; sets are the coalitions of a cooperative game."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxplain.distributions.masked_copies import Prologue, compact, keep_where, named, take_columns
from onnxplain.distributions.perturbation.features import (
    Features,
    Partition,
    check_features_fit,
    partition,
)
from onnxplain.distributions.perturbation.perturbation import CopyPlan, Estimate, Perturbation
from onnxplain.graph.var import Var

Array = np.ndarray[Any, Any]
KEPT = "copies/kept"  # input with the set of each copy: bools, shape (copies, features)
FIRST_STAGE = 16  # draws (sets, orders or masks): with fewer, standard errors are too uncertain to stop by


@dataclass(frozen=True, eq=False)
class Game:
    """Sets of features, and how the scores that they reach become values of the features.

    Attributes
    ----------
    stages
        Numbers of sets after which values can be estimated, rising; the last is that of all sets.
    keep
        (numbers of sets, shape (K,)) -> whether each feature stays, bools of shape (K, features).
    solve
        (score of the sample, scores of the first sets) -> values of the features, and their standard errors if the
        method has them, of shape (features,) each.
    """

    stages: Sequence[int]
    keep: Callable[[Array], Array]
    solve: Callable[[float, Array], tuple[Array, Array | None]]


@dataclass(frozen=True, eq=False)
class Coalitions:
    """The plan of a game: one copy per set.

    Attributes
    ----------
    partition
        The features of the sample.
    game
        The game.
    others
        For each copy, the sample of the batch whose features replace the hidden ones; None: the baseline does.
    """

    partition: Partition
    game: Game
    others: Array | None = None

    @property
    def stages(self) -> Sequence[int]:
        """Stages of the game."""
        return self.game.stages

    @property
    def shared(self) -> Mapping[str, Array]:
        """Empty: samples may have different features."""
        return {}

    @property
    def own(self) -> Mapping[str, Array]:
        """Feature of each element, in an input per tensor."""
        return {_labels_of(name): compact(labels) for name, labels in self.partition.labels.items()}

    def describe(self, copies: Array) -> Mapping[str, Array]:
        """Set of each copy; copy -1 keeps all features."""
        return {KEPT: self.game.keep(np.maximum(copies, 0)) | (copies < 0)[:, None]}

    def donors(self, copies: Array) -> Array | None:
        """Samples whose features replace the hidden ones, if features are exchanged between samples."""
        return None if self.others is None else self.others[copies]

    def hole(self, copy: int) -> Mapping[str, Array]:
        """Elements of the features that are not in the copy's set."""
        (keep,) = self.game.keep(np.array([copy]))
        return {name: ~keep[labels] for name, labels in self.partition.labels.items()}

    def estimate(self, score: float, scores: Array) -> Estimate:
        """Value of each feature, at each of its elements."""
        values, errors = self.game.solve(score, scores)
        return Estimate(self.partition.spread(values), None if errors is None else self.partition.spread(errors))


class FeatureSets(Perturbation):
    """A method whose copies keep a set of features each."""

    def masked(self, prologue: Prologue, name: str, x: Var, fill: Var) -> Var:
        """Write the nodes that hide the features which are not in a copy's set."""
        kept = prologue.per_copy(KEPT, bool, (None,))
        labels = prologue.per_plan(_labels_of(name), np.int32, (None,) * (x.rank - 1))
        return keep_where(take_columns(kept, labels), x, fill)


class Coalitional(FeatureSets):
    """A method that depends on nothing but which sets of features reach which scores."""

    features: Features = None

    @abstractmethod
    def game(self, features: int) -> Game:
        """The game for a number of features; the same for every sample that has as many."""

    def numbering(self, sample: Mapping[str, Array]) -> Features:
        """Choice of the features for samples like this one."""
        return self.features

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Raise OptionError if the features do not fit an input."""
        check_features_fit(self.features, shape[1:])

    def plans(self, tensors: Mapping[str, Array]) -> Sequence[CopyPlan]:
        """One plan per sample; the same one for all samples unless each has superpixels of its own."""
        count = len(next(iter(tensors.values())))
        numbering = self.numbering({name: x[0, ...] for name, x in tensors.items()})
        superpixels = isinstance(numbering, str) and numbering == "slic"
        samples = range(count if superpixels else 1)
        partitions = [partition(numbering, {name: x[k, ...] for name, x in tensors.items()}) for k in samples]
        games = {features: self.game(features) for features in {part.count for part in partitions}}
        plans = [Coalitions(part, games[part.count]) for part in partitions]
        return plans if superpixels else plans * count


def _labels_of(name: str) -> str:
    """Name of the input with the feature of each element of a tensor."""
    return named("labels", name)


def doubling(most: int, tolerance: float | None) -> tuple[int, ...]:
    """Numbers of draws that end a stage: `FIRST_STAGE`, its doubles, and ``most``; with no tolerance, ``most`` only."""
    counts = [] if tolerance is None else [FIRST_STAGE << k for k in range(max(0, most.bit_length()))]
    return (*(count for count in counts if count < most), most)
