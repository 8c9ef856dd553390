"""Distributions over which a method that looks at one point can be averaged: noise around the input, and lines.

The points are the same for all samples of a batch, so that no explanation depends on the other samples of its batch.
They depend on the seed alone, not on how the work is split. This module computes with arrays only.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Literal

import numpy as np

from onnxplain.arguments import Count, NotNegative, Seed, check_fields
from onnxplain.distributions.baselines import baseline_like, check_internal_baseline
from onnxplain.distributions.distribution import Distribution, References
from onnxplain.distributions.lines import QUADRATURES, Quadrature, check_quadrature
from onnxplain.errors import OptionError

Array = np.ndarray[Any, Any]

Shape = Literal["gaussian", "uniform"]
"""Probability distribution of noise."""

Moment = Literal["mean", "square", "variance"]
"""Statistic of the attributions at sampled points: their mean, the mean of their squares, or their variance."""


class Sampled(Distribution, ABC):
    """Points whose number and weights are known in advance."""

    @property
    @abstractmethod
    def random(self) -> bool:
        """Whether the points are drawn at random."""

    @property
    @abstractmethod
    def weights(self) -> Array:
        """Weights of the points, which sum to 1; float64, shape (count,)."""

    @property
    def count(self) -> int:
        """Number of points."""
        return len(self.weights)

    @abstractmethod
    def point(self, index: int, place: int, name: str, x: Array) -> Array:
        """Point number ``index`` of each sample of the moved input ``name``, input number ``place``; shape of x.

        The batch axis is in front.
        """


@dataclass(frozen=True)
class Noise(Sampled):
    """The input plus noise.

    Attributes
    ----------
    samples
        Number of points.
    noise
        Standard deviation of a Gaussian, or half the width of a uniform distribution.
    relative
        Whether ``noise`` is a share of the sample's range, max - min over each explained input (Smilkov et al. 2017);
        otherwise it is in units of the input.
    shape
        Probability distribution of the noise.
    seed
        Seed of the NumPy generator.
    """

    moves_inputs: ClassVar[bool] = True
    samples: Count = 32
    noise: NotNegative = 0.15
    relative: bool = True
    shape: Shape = "gaussian"
    seed: Seed = 0

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def random(self) -> bool:
        """True: the points are drawn at random."""
        return True

    @property
    def weights(self) -> Array:
        """Equal weights of the points, which sum to 1; float64, shape (samples,)."""
        return np.full(self.samples, 1 / self.samples)

    def draw(self, index: int, place: int, size: tuple[int, ...]) -> Array:
        """Noise of point ``index``, in units of `scale`, for one sample of the moved input number ``place``; float64.

        Drawn in single precision, which takes half the time.
        """
        random = np.random.default_rng([self.seed, index, place])
        if self.shape == "gaussian":
            return random.standard_normal(size, np.float32).astype(np.float64)
        return 2 * random.random(size, np.float32).astype(np.float64) - 1

    def scale(self, x: Array) -> Array:
        """Width of the noise per sample, in units of x; the batch axis is in front, and the array broadcasts to x."""
        rows = x.reshape(len(x), -1)
        spans = np.fmax.reduce(rows, axis=1) - np.fmin.reduce(rows, axis=1) if self.relative else np.ones(len(x))
        return np.asarray(self.noise * spans.reshape(-1, *[1] * (x.ndim - 1)), dtype=x.dtype)

    def point(self, index: int, place: int, name: str, x: Array) -> Array:
        """Samples plus the noise of point number ``index``."""
        return np.asarray(x + self.scale(x) * self.draw(index, place, x.shape[1:]).astype(x.dtype))


@dataclass(frozen=True, eq=False)
class Lines(Sampled):
    """Points on the lines from one baseline, or from each of several, to the explained tensor.

    Attributes
    ----------
    references
        The baselines.
    steps
        Number of points on each line.
    quadrature
        Positions and weights of the points on each line.
    samples
        Used instead of ``steps`` and ``quadrature``: number of points drawn at random from all lines together. Their
        positions are stratified: one in each of ``samples`` equal parts of the line. The baselines take turns, in a
        random order.
    seed
        Seed of the NumPy generator for points drawn at random.
    """

    references: References = field(default_factory=References)
    steps: Count = 64
    quadrature: Quadrature = "gauss_legendre"
    samples: Count | None = None
    seed: Seed = 0

    def __post_init__(self) -> None:
        check_fields(self)
        check_quadrature(self.quadrature, self.steps)

    @property
    def random(self) -> bool:
        """Whether the points are drawn at random."""
        return self.samples is not None

    @property
    def positions(self) -> Array:
        """Positions of the points on their lines, 0 (baseline) to 1 (input); float64, shape (count,)."""
        return self._points[0]

    @property
    def weights(self) -> Array:
        """Weights of the points, which sum to 1; float64, shape (count,)."""
        return self._points[1]

    @property
    def lines(self) -> Array:
        """Number of the baseline from which each point's line starts; int64, shape (count,)."""
        return self._points[2]

    @cached_property
    def _points(self) -> tuple[Array, Array, Array]:
        lines = self.references.count
        if self.samples is None:
            positions, weights = QUADRATURES[self.quadrature](self.steps)
            return np.tile(positions, lines), np.tile(weights / lines, lines), np.repeat(np.arange(lines), self.steps)
        random = np.random.default_rng(self.seed)
        positions = (random.permutation(self.samples) + random.random(self.samples)) / self.samples
        turns = np.resize(random.permutation(lines), self.samples)
        return positions, np.full(self.samples, 1 / self.samples), turns

    def point(self, index: int, place: int, name: str, x: Array) -> Array:
        """Point number ``index`` on the line to each sample."""
        baseline = baseline_like(self.references.get(int(self.lines[index])), x, name)
        return np.asarray(baseline + x.dtype.type(self.positions[index]) * (x - baseline))

    def check(self, name: str, x: Array, axis: int) -> None:
        """Raise OptionError if a baseline does not fit the explained input ``name``."""
        self.references.check(name, x, axis)

    def check_internal(self, name: str) -> None:
        """Raise OptionError if there is no baseline of that name."""
        check_internal_baseline(self.references.baseline, name)


@dataclass(frozen=True, eq=False)
class InputLines(Lines):
    """Points on lines along which the model's inputs move, whichever tensor is explained.

    The readout is part of the graph at each point, and its results are averaged. With `Lines`, the explained tensor
    itself moves, and the readout, which needs its difference from the baseline, follows the averaging.
    """

    moves_inputs: ClassVar[bool] = True


@dataclass(frozen=True, eq=False)
class LineIncrements(InputLines):
    """Points on a line of the model's inputs, each with the increment of the explained tensor over its share of it.

    The readout at each point is multiplied with that increment, as in a Riemann-Stieltjes sum, and the products are
    added up: conductance. The points are in order along one line.
    """

    reads_values: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.references.count > 1 or self.samples is not None:
            raise OptionError("increments need points in order along one line")

    @property
    def shares(self) -> Array:
        """End of each point's share of the line, which starts where the share of the point before ends; (count,).

        Each share is as long as the point's weight, and contains the point.
        """
        return np.cumsum(self.weights)


@dataclass(frozen=True, eq=False)
class AveragedOver:
    """Points of the inputs over which any method is averaged, whatever its own distribution.

    Attributes
    ----------
    points
        The points.
    moment
        Statistic of the attributions at the points.
    """

    points: Sampled
    moment: Moment = "mean"

    def __post_init__(self) -> None:
        check_fields(self)
