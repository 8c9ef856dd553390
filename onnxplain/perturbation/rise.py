"""RISE (Petsiuk et al. 2018): mean of random smooth masks, weighted by the scores that they leave."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxplain.distributions import Baseline, Estimate, Perturbation, Plan, is_count
from onnxplain.errors import OptionError
from onnxplain.fills import inpainted, spatial
from onnxplain.perturbation.coalitions import check_options, doubling

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False)
class Masks:
    """Random masks for a tensor, each made whenever it is asked for, and each by itself.

    Attributes
    ----------
    shape
        Of a sample.
    seed
        One or more numbers.
    keep
        Probability that a cell is kept.
    extents
        By spatial axis of the sample: number of elements of a cell.
    upsampling
        Per spatial axis: the share of each cell in each place of the up-sampled grid; empty where elements are cells.
    """

    shape: tuple[int, ...]
    seed: tuple[int, ...]
    keep: float
    extents: Mapping[int, int]
    upsampling: tuple[Array, ...]

    def get(self, index: int) -> Array:
        """A mask from 0 (hidden) to 1 (kept), which broadcasts to a sample."""
        rng = np.random.default_rng([*self.seed, index])
        if not self.upsampling:
            return (rng.random(self.shape) < self.keep).astype(np.float64)
        mask = (rng.random([table.shape[1] for table in self.upsampling]) < self.keep).astype(np.float64)
        for k, (axis, table) in enumerate(zip(self.extents, self.upsampling, strict=True)):
            start = rng.integers(self.extents[axis])
            mask = np.moveaxis(np.tensordot(table[start : start + self.shape[axis]], mask, (1, k)), 0, k)
        return mask.reshape([n if axis in self.extents else 1 for axis, n in enumerate(self.shape)])


@dataclass(frozen=True, eq=False)
class Rise(Perturbation):
    """Random masks.

    A grid of ``cells`` per spatial axis, each kept with probability ``keep``, is up-sampled bilinearly to a picture
    larger by one cell, and cut at a random place. Each element of a table or a row of tokens is a cell. What holds no
    floats is masked without interpolation.

    Attributes
    ----------
    cells
        Per spatial axis.
    keep
        Probability that a cell is kept.
    samples
        Number of masks.
    center
        Subtract the mean score, and so a constant from the expected map, which then has a sign: above 0 is what raises
        the score. The paper does not.
    """

    cells: int = 7
    keep: float = 0.5
    samples: int = 1000
    baseline: Baseline = 0.0
    center: bool = False
    seed: int = 0
    tolerance: float | None = None

    def __post_init__(self) -> None:
        check_options(None, self.baseline, self.samples, self.seed, self.tolerance)
        if not is_count(self.cells, 1):
            raise OptionError(f"cells must be a whole number of at least 1, not {self.cells!r}")
        if isinstance(self.keep, bool) or not isinstance(self.keep, int | float) or not 0 < self.keep <= 1:
            raise OptionError(f"keep must be a probability above 0, not {self.keep!r}")
        if not isinstance(self.center, bool):
            raise OptionError(f"center must be True or False, not {self.center!r}")

    def masks(self, x: Array, place: int) -> Masks:
        """The masks for samples like ``x``, the explained tensor number ``place``."""
        seed = (self.seed, place)
        if x.ndim < 2:
            return Masks(x.shape, seed, self.keep, {}, ())
        cells = {axis: min(self.cells, x.shape[axis]) for axis in spatial(x.shape)}
        extents = {axis: -(-x.shape[axis] // n) for axis, n in cells.items()}
        tables = tuple(_upsampling(n, (n + 1) * extents[axis]) for axis, n in cells.items())
        if x.dtype.kind != "f":
            tables = tuple(np.eye(w.shape[1])[w.argmax(axis=1)] for w in tables)
        return Masks(x.shape, seed, self.keep, extents, tables)

    def plans(self, here: Mapping[str, Array], fills: Mapping[str, Array]) -> Sequence[Plan]:
        """One plan per sample; all have the same masks."""
        masks = {name: self.masks(x[0, ...], place) for place, (name, x) in enumerate(here.items())}
        stages = doubling(self.samples, self.tolerance)
        samples = len(next(iter(here.values())))
        return [
            Blended(masks, stages, self.keep, self.center, {n: f[k, ...] for n, f in fills.items()})
            for k in range(samples)
        ]


@dataclass(frozen=True, eq=False)
class Blended:
    """The plan of `Rise`: one copy per mask."""

    masks: Mapping[str, Masks]
    stages: Sequence[int]
    keep: float
    center: bool
    fill: Mapping[str, Array]

    def hide(self, index: int, copy: Mapping[str, Array]) -> None:
        """Blend with the baseline; what is inpainted is where less than half is kept."""
        for name, masks in self.masks.items():
            x, mask = copy[name], masks.get(index)
            if x.dtype.kind == "f":
                hole = np.broadcast_to(mask < 0.5, x.shape)
                fill = self.fill[name] if name in self.fill else inpainted(x, hole)
                x[...] = fill + mask.astype(x.dtype) * (x - fill)
            else:
                np.copyto(x, self.fill[name], where=mask == 0)

    def estimate(self, score: float, scores: Array) -> Estimate:
        """Mean of the masks M times the scores s, over the mean of a mask, p; standard error of the mean.

        The error is the spread of s M / p over the masks, divided by the root of their number; of centred scores, that
        of (s - mean s) (M - mean M) / p.
        """
        weights = scores - scores.mean() if self.center else scores
        found = {name: self._moments(masks, weights) for name, masks in self.masks.items()}
        values, errors = (
            {name: np.broadcast_to(pair[k], self.masks[name].shape) for name, pair in found.items()} for k in (0, 1)
        )
        return Estimate(values, errors)

    def _moments(self, masks: Masks, weights: Array) -> tuple[Array, Array]:
        count = len(weights)
        first = second = crossed = plain = np.zeros(())
        for index, weight in enumerate(weights):
            mask = masks.get(index)
            part = weight * mask
            first, second = first + part, second + part * part
            crossed, plain = crossed + weight * part, plain + mask
        mean = first / count
        middle = plain / count if self.center else np.zeros(())
        square = (second - 2 * middle * crossed + middle**2 * (weights @ weights)) / count
        variance = np.maximum(square - mean**2, 0) / (count - 1) if count > 1 else np.full(mean.shape, np.nan)
        return mean / self.keep, np.sqrt(variance) / self.keep


def _upsampling(cells: int, size: int) -> Array:
    """Shape (size, cells): linear interpolation between the middles of the cells; rows sum to 1."""
    places = np.clip((np.arange(size) + 0.5) * cells / size - 0.5, 0, cells - 1)
    return np.maximum(0, 1 - abs(places[:, None] - np.arange(cells)))
