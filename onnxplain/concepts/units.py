"""What an influence run comes back as: the units of a tensor, how strong they are, and comparisons."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxplain.api import Explainer
from onnxplain.arguments import is_count
from onnxplain.concepts.carried import Carried, carried
from onnxplain.datasets.batches import Data, Progress
from onnxplain.datasets.moments import with_error
from onnxplain.distributions.baselines import Baseline
from onnxplain.errors import OptionError, did_you_mean
from onnxplain.questions.quantities import Neuron, Quantity

Array = np.ndarray[Any, Any]

SIGNS = {"both": np.abs, "positive": np.positive, "negative": np.negative}  # what makes a unit strong


@dataclass(frozen=True)
class Unit:
    """A channel or an element of a tensor.

    Attributes
    ----------
    tensor, index
        Which: the tensor's name, and an index along each of the axes that tell its units apart; a number, if one does.
    influence, error
        Mean over the data, and its standard error (NaN for one sample).
    quantity
        The unit's own activation, summed up, as something to explain: ``target=`` of `onnxplain.explain`. Methods that
        keep positive parts only (guided_backprop, lrp with z_plus) draw nearly the same picture for every unit of a
        deep layer; layer_cam, grad_cam and smoothgrad tell units apart.
    """

    tensor: str
    index: int | tuple[int, ...]
    influence: float
    error: float
    quantity: Quantity

    def __str__(self) -> str:
        return f"{self.index}: {with_error(self.influence, self.error, '+.3g')}"


@dataclass(frozen=True)
class Agreement:
    """How alike two influences are.

    Attributes
    ----------
    k
        Number of top units that were compared.
    overlap
        Units among the top k of both, divided by those among the top k of either (Jaccard index).
    rank_correlation
        Spearman's, over all units; NaN where all are alike.
    correlation
        Pearson's, likewise.
    """

    k: int
    overlap: float
    rank_correlation: float
    correlation: float

    def __str__(self) -> str:
        means = f"rank correlation {self.rank_correlation:.3f}, correlation {self.correlation:.3f}"
        return f"overlap of the top {self.k}: {self.overlap:.0%}; of all units: {means}"


@dataclass(frozen=True, eq=False)
class Influence:
    """Mean influence of the units of a tensor over a data set.

    Attributes
    ----------
    at, method
        The tensor and the method.
    samples
        Number of samples.
    mean, error
        Of each element, float64, in the tensor's shape without its batch axis, and its standard error (NaN for one
        sample). None if the sizes of axes whose elements are summed up differed from sample to sample.
    units, unit_errors
        Of each unit: summed up over the axes that do not tell units apart, sample by sample.
    axes
        The axes that do, counted without the batch axis.
    """

    at: str
    method: str
    samples: int
    mean: Array | None
    error: Array | None
    units: Array
    unit_errors: Array
    axes: tuple[int, ...]
    _rank: int
    _forward: Explainer
    _target: Any

    def top(self, k: int = 10, sign: str = "both") -> list[Unit]:
        """The strongest units, the strongest first.

        Parameters
        ----------
        k
            How many; fewer if there are fewer.
        sign
            "both": by magnitude; "positive", "negative": only those that speak for, or against, the quantity.
        """
        _check_count(k)
        return [self._unit(int(position)) for position in self._order(sign)[:k]]

    def agreement(self, other: Influence, k: int = 10, sign: str = "both") -> Agreement:
        """Compare with the influence on another quantity, or over other instances.

        Raises
        ------
        OptionError
            The other's units are not these.
        """
        _check_count(k)
        if other.units.shape != self.units.shape:
            raise OptionError(f"units of shape {self.units.shape} do not compare with those of {other.units.shape}")
        one, two = (set(found._order(sign)[:k].tolist()) for found in (self, other))
        ours, theirs = self.units.ravel(), other.units.ravel()
        overlap = len(one & two) / len(one | two) if one | two else float("nan")
        return Agreement(k, overlap, _correlation(_ranks(ours), _ranks(theirs)), _correlation(ours, theirs))

    def carried(
        self,
        data: Data,
        ks: Sequence[int] = (1, 5, 10, 50),
        *,
        target: Any = None,
        baseline: Baseline = 0.0,
        sign: str = "both",
        control: int | None = None,
        progress: Progress | None = None,
    ) -> Carried:
        """How much of the score the top k units carry: that of the model with all others of the tensor replaced.

        Forward passes only: one of the part up to the tensor, and one of the part behind it for each k.

        Parameters
        ----------
        data
            As for `onnxplain.influence`; the same instances, or others.
        ks
            Numbers of units; those beyond the number of units are left out. No unit and all units are added.
        target
            What to score; default: what the influence is on.
        baseline
            What the others are replaced by: a number, or an array that broadcasts to one sample of the tensor.
        sign
            See `top`.
        control
            Seed for random units, others for each sample: k of these instead of the top k.
        progress
            Called with (done, total) samples after each piece; total is None for an iterable.

        Raises
        ------
        OptionError
            A bad option.
        InputError, TargetError
            See `onnxplain.influence`.
        """
        asked = self._target if target is None else target
        order, sizes = self._order(sign), self._sizes()
        return carried(self._forward, self.at, data, asked, order, sizes, ks, baseline, control, progress)

    def _order(self, sign: str) -> Array:
        """Positions of the units, the strongest first."""
        if sign not in SIGNS:
            raise OptionError(f"there is no sign {sign!r}", did_you_mean(str(sign), SIGNS))
        strength = SIGNS[sign](self.units.ravel())
        order = np.argsort(-strength, kind="stable")
        return order if sign == "both" else order[strength[order] > 0]

    def _sizes(self) -> tuple[int, ...]:
        """Sizes of the tensor's axes without the batch; 1 where elements are summed up."""
        known = dict(zip(self.axes, self.units.shape, strict=True))
        return tuple(known.get(axis, 1) for axis in range(self._rank))

    def _unit(self, position: int) -> Unit:
        index = tuple(int(i) for i in np.unravel_index(position, self.units.shape))
        where = dict(zip(self.axes, index, strict=True))
        quantity = Neuron(self.at, tuple(where.get(axis, slice(None)) for axis in range(self._rank)))
        influence, error = float(self.units[index]), float(self.unit_errors[index])
        return Unit(self.at, index[0] if len(index) == 1 else index, influence, error, quantity)

    def __str__(self) -> str:
        strongest = self.top()
        title = f"{self.method} at {self.at}: mean of {self.samples} samples, the strongest of {self.units.size} units"
        return "\n".join([title, *(f"  {unit}" for unit in strongest)])


def _check_count(k: int) -> None:
    if not is_count(k, 1):
        raise OptionError(f"k must be a whole number of at least 1, not {k!r}")


def _ranks(values: Array) -> Array:
    """Ranks from 0; equal values share the mean of theirs."""
    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts + 1) / 2)[which]


def _correlation(one: Array, two: Array) -> float:
    one, two = one - one.mean(), two - two.mean()
    size = np.sqrt((one @ one) * (two @ two))
    return float(one @ two / size) if size else float("nan")
