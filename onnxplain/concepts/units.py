"""Results of `onnxplain.influence`: the units of a tensor, their mean influence, and comparisons."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from onnxplain.api import Explainer
from onnxplain.arguments import one_of, whole_number
from onnxplain.concepts.carried import Carried, carried
from onnxplain.datasets import Data, Progress, with_error
from onnxplain.distributions.baselines import Baseline
from onnxplain.errors import OptionError
from onnxplain.questions.quantities import Neuron, Quantity

Array = np.ndarray[Any, Any]

Sign = Literal["both", "positive", "negative"]
"""Which units are strong: those of great magnitude, or those that raise, or lower, the quantity."""

# Influence of a unit -> its strength.
SIGNS: dict[Sign, Any] = {"both": np.abs, "positive": np.positive, "negative": np.negative}


@dataclass(frozen=True)
class Unit:
    """A channel or an element of a tensor, with its mean influence.

    Attributes
    ----------
    tensor
        The tensor's name.
    index
        Position of the unit: a tuple with one index per axis of units, or an int if there is one such axis.
    influence, error
        Mean influence over the data, and its standard error (NaN for one sample).
    quantity
        The unit's activation, summed over its elements, as a quantity to explain: pass it as ``target=`` to
        `onnxplain.explain`. Methods that keep positive parts only (guided_backprop, lrp with z_plus) give nearly the
        same picture for every unit of a deep layer; layer_cam, grad_cam and smoothgrad give different ones.
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
    """Similarity of two influences.

    Attributes
    ----------
    k
        Number of top units that were compared.
    overlap
        Jaccard index of the two sets of top k units: size of the intersection divided by size of the union.
    rank_correlation
        Spearman's correlation over all units; NaN if all units of one influence are equal.
    correlation
        Pearson's correlation over all units; NaN if all units of one influence are equal.
    """

    k: int
    overlap: float
    rank_correlation: float
    correlation: float

    def __str__(self) -> str:
        means = f"rank correlation {self.rank_correlation:.3f}, correlation {self.correlation:.3f}"
        return f"overlap of the top {self.k}: {self.overlap:.0%}; of all units: {means}"


@dataclass(frozen=True, eq=False, kw_only=True)
class Influence:
    """Mean influence of the units of a tensor over a data set.

    Attributes
    ----------
    at
        The tensor's name.
    method
        The method's name.
    samples
        Number of samples.
    mean, error
        Mean influence of each element and its standard error (NaN for one sample): float64 arrays of the tensor's shape
        without its batch axis. None if samples differed in the size of an axis that is summed over.
    units, unit_errors
        Mean influence of each unit and its standard error: float64 arrays with one axis per entry of ``axes``. A unit's
        influence on a sample is the sum over the unit's elements.
    axes
        The axes whose positions are the units, counted without the batch axis.
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

    def top(self, k: int = 10, sign: Sign = "both") -> list[Unit]:
        """Return the k strongest units, the strongest first.

        Parameters
        ----------
        k
            Maximum number of units.
        sign
            "both": by the magnitude of the influence. "positive": only units whose activation raises the quantity.
            "negative": only units whose activation lowers it.

        Raises
        ------
        OptionError
            k is not a positive whole number, or the sign is unknown.
        """
        whole_number(1).check("k", k)
        return [self._unit(int(position)) for position in self._order(sign)[:k]]

    def agreement(self, other: Influence, k: int = 10, sign: Sign = "both") -> Agreement:
        """Compare with the influence on another quantity, or over other samples.

        Parameters
        ----------
        other
            An influence of a tensor with the same units.
        k, sign
            As in `top`.

        Raises
        ------
        OptionError
            The units of ``other`` have another shape.
        """
        whole_number(1).check("k", k)
        if other.units.shape != self.units.shape:
            raise OptionError(f"units of shape {self.units.shape} do not compare with those of {other.units.shape}")
        one, two = (set(influence._order(sign)[:k].tolist()) for influence in (self, other))
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
        sign: Sign = "both",
        control: int | None = None,
        progress: Progress | None = None,
    ) -> Carried:
        """Measure how much of the score the top k units carry, by replacing all other units of the tensor.

        Needs forward passes only: one up to the tensor per sample, and one behind it per sample and k.

        Parameters
        ----------
        data
            As in `onnxplain.influence`; the same samples or others.
        ks
            Numbers of units to keep. Numbers above the number of units are left out; 0 and all units are added.
        target
            The quantity to score; default: the one that the influence is on.
        baseline
            Value of the replaced units: a number, or an array that broadcasts to one sample of the tensor.
        sign
            As in `top`.
        control
            Seed of a control experiment: the scores with k random units, drawn anew for each sample. None: no control.
        progress
            Called with (done, total) in samples after each chunk; total is None for an iterable.

        Returns
        -------
        Carried

        Raises
        ------
        OptionError
            An option is invalid.
        InputError, TargetError
            As in `onnxplain.influence`.
        """
        return carried(
            self._forward,
            self.at,
            data,
            target=self._target if target is None else target,
            order=self._order(sign),
            sizes=self._sizes(),
            ks=ks,
            baseline=baseline,
            control=control,
            progress=progress,
        )

    def _order(self, sign: Sign) -> Array:
        """Return the positions of the units in the flattened ``units``, the strongest first."""
        one_of(SIGNS).check("sign", sign)
        strength = SIGNS[sign](self.units.ravel())
        order = np.argsort(-strength, kind="stable")
        return order if sign == "both" else order[strength[order] > 0]

    def _sizes(self) -> tuple[int, ...]:
        """Return the tensor's shape without the batch axis, with 1 for the axes that are summed over."""
        counts = dict(zip(self.axes, self.units.shape, strict=True))
        return tuple(counts.get(axis, 1) for axis in range(self._rank))

    def _unit(self, position: int) -> Unit:
        index = tuple(int(i) for i in np.unravel_index(position, self.units.shape))
        where = dict(zip(self.axes, index, strict=True))
        quantity = Neuron(self.at, tuple(where.get(axis, slice(None)) for axis in range(self._rank)))
        influence, error = float(self.units[index]), float(self.unit_errors[index])
        return Unit(self.at, index[0] if len(index) == 1 else index, influence, error, quantity)

    def __str__(self) -> str:
        title = f"{self.method} at {self.at}: mean of {self.samples} samples, the strongest of {self.units.size} units"
        return "\n".join([title, *(f"  {unit}" for unit in self.top())])


def _ranks(values: Array) -> Array:
    """Return ranks from 0; equal values get the mean of their ranks."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts + 1) / 2)[inverse]


def _correlation(one: Array, two: Array) -> float:
    one, two = one - one.mean(), two - two.mean()
    size = np.sqrt((one @ one) * (two @ two))
    return float(one @ two / size) if size else float("nan")
