"""Distributions over which any method that looks at one point is averaged: neighbourhoods, and lines. Arrays only.

Points are the same for all samples of a batch, so that no explanation depends on what else is in the batch, and they
depend on nothing but the seed: not on how the work is split.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from onnxplain.arguments import is_count
from onnxplain.distributions.distribution import QUADRATURES, Line, References
from onnxplain.errors import OptionError, did_you_mean

Array = np.ndarray[Any, Any]

SHAPES = ("gaussian", "uniform")


@dataclass(frozen=True)
class Noise:
    """The input plus noise.

    Attributes
    ----------
    samples
        Number of points.
    noise
        Standard deviation of a Gaussian, or half the width of a uniform distribution.
    relative
        Whether it is a part of the sample's range, max - min over each explained input (Smilkov et al. 2017).
    shape
        One of `SHAPES`.
    seed
        Of a NumPy generator.
    """

    samples: int = 32
    noise: float = 0.15
    relative: bool = True
    shape: str = "gaussian"
    seed: int = 0

    def __post_init__(self) -> None:
        _check_count("samples", self.samples)
        _check_seed(self.seed)
        number = isinstance(self.noise, int | float | np.number) and not isinstance(self.noise, bool)
        if not number or not np.isfinite(self.noise) or self.noise < 0:
            raise OptionError(f"noise must be a finite number of at least 0, not {self.noise!r}")
        if not isinstance(self.relative, bool):
            raise OptionError(f"relative must be True or False, not {self.relative!r}")
        if self.shape not in SHAPES:
            raise OptionError(f"there is no shape {self.shape!r}", did_you_mean(str(self.shape), SHAPES))

    @property
    def random(self) -> bool:
        """Whether points are drawn."""
        return True

    @property
    def count(self) -> int:
        """Number of points."""
        return self.samples

    @property
    def weights(self) -> Array:
        """Weights of the points, which sum to 1."""
        return np.full(self.samples, 1 / self.samples)

    def draw(self, index: int, place: int, size: tuple[int, ...]) -> Array:
        """What a point adds to one sample of the explained input number ``place``, in units of `scale`; float64.

        Drawn in single precision, which takes half the time.
        """
        random = np.random.default_rng([self.seed, index, place])
        if self.shape == "gaussian":
            return random.standard_normal(size, np.float32).astype(np.float64)
        return 2 * random.random(size, np.float32).astype(np.float64) - 1

    def scale(self, x: Array) -> Array:
        """Width of the noise per sample, the batch in front; broadcasts to x."""
        rows = x.reshape(len(x), -1)
        spans = np.fmax.reduce(rows, axis=1) - np.fmin.reduce(rows, axis=1) if self.relative else np.ones(len(x))
        return np.asarray(self.noise * spans.reshape(-1, *[1] * (x.ndim - 1)), dtype=x.dtype)


@dataclass(frozen=True, eq=False)
class Lines:
    """Points between the input and a baseline, or each of several.

    Attributes
    ----------
    references
        The baselines.
    steps
        Points on the line to each baseline.
    quadrature
        See `Line`.
    samples
        Instead: number of points drawn at random, from all places on all lines. Places are stratified: one in each of
        ``samples`` equal parts of the way; baselines take turns, in a random order.
    seed
        Of a NumPy generator, for those.
    within
        Whether the model's inputs move, wherever the attribution is read, which then is averaged as it is. If not, the
        explained tensor itself moves, and the readout follows the averaging: it is the one that sees a difference.
    changes
        Multiply what is found at each point with the tensor's change over the point's share of the way.
    """

    references: References = field(default_factory=References)
    steps: int = 64
    quadrature: str = "gauss_legendre"
    samples: int | None = None
    seed: int = 0
    within: bool = False
    changes: bool = False

    def __post_init__(self) -> None:
        Line(self.steps, 0.0, self.quadrature)  # checks them
        if self.samples is not None:
            _check_count("samples", self.samples)
        _check_seed(self.seed)

    @property
    def random(self) -> bool:
        """Whether points are drawn."""
        return self.samples is not None

    @property
    def count(self) -> int:
        """Number of points."""
        return len(self.weights)

    @property
    def positions(self) -> Array:
        """Places of the points: 0 is a baseline, 1 the input."""
        return self._points[0]

    @property
    def weights(self) -> Array:
        """Weights of the points, which sum to 1."""
        return self._points[1]

    @property
    def lines(self) -> Array:
        """To which baseline each point belongs."""
        return self._points[2]

    @property
    def shares(self) -> Array:
        """Where the point's share of the way ends, for one line; it starts where that of the point before ends.

        Each share is as long as the point's weight, and holds the point.
        """
        return np.cumsum(self.weights)

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


Sampled = Noise | Lines


@dataclass(frozen=True, eq=False)
class AveragedOver:
    """Points of the inputs around which any method is averaged, whatever points that looks at itself.

    Attributes
    ----------
    points
        The points.
    moment
        What is made of the attributions there: "mean", "square" or "variance".
    """

    points: Sampled
    moment: str = "mean"


def moves_inputs(distribution: object) -> bool:
    """Whether points move the model's inputs, even where an internal tensor is explained."""
    return isinstance(distribution, Noise) or (isinstance(distribution, Lines) and distribution.within)


def _check_count(name: str, value: Any) -> None:
    if not is_count(value, 1):
        raise OptionError(f"{name} must be a whole number of at least 1, not {value!r}")


def _check_seed(value: Any) -> None:
    if not is_count(value, 0):
        raise OptionError(f"seed must be a whole number of at least 0, not {value!r}")
