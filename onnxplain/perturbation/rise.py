"""RISE (Petsiuk et al. 2018): mean of random smooth masks, weighted by the scores that they leave."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxplain.distributions import Baseline, Perturbation, Plan, is_count
from onnxplain.errors import OptionError
from onnxplain.perturbation.coalitions import check_options
from onnxplain.perturbation.features import spatial

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False)
class Masks:
    """Random masks for a tensor, each made when it is asked for.

    Attributes
    ----------
    grids
        Shape (masks, cells per spatial axis ...): which cells are kept.
    shifts
        Shape (masks, spatial axes): where a mask begins in its grid, in elements.
    axes
        The spatial axes of a sample.
    weights
        Per axis: the share of each cell in each place of the up-sampled grid.
    """

    grids: Array
    shifts: Array
    axes: tuple[int, ...]
    weights: tuple[Array, ...]
    shape: tuple[int, ...]

    def get(self, index: int) -> Array:
        """A mask from 0 (hidden) to 1 (kept), which broadcasts to a sample."""
        mask: Array = self.grids[index].astype(np.float64)
        for k, (axis, weights) in enumerate(zip(self.axes, self.weights, strict=True)):
            start = self.shifts[index, k]
            mask = np.moveaxis(np.tensordot(weights[start : start + self.shape[axis]], mask, (1, k)), 0, k)
        return mask.reshape([n if axis in self.axes else 1 for axis, n in enumerate(self.shape)])


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

    def __post_init__(self) -> None:
        check_options(None, self.baseline, self.samples, self.seed)
        if not is_count(self.cells, 1):
            raise OptionError(f"cells must be a whole number of at least 1, not {self.cells!r}")
        if isinstance(self.keep, bool) or not isinstance(self.keep, int | float) or not 0 < self.keep <= 1:
            raise OptionError(f"keep must be a probability above 0, not {self.keep!r}")
        if not isinstance(self.center, bool):
            raise OptionError(f"center must be True or False, not {self.center!r}")

    def masks(self, x: Array, rng: np.random.Generator) -> Masks:
        """Draw the masks for a sample like ``x``."""
        axes = spatial(x.shape)
        if x.ndim < 2:
            weights, extents = tuple(np.eye(n) for n in x.shape), [1] * x.ndim
        else:
            extents = [-(-x.shape[axis] // min(self.cells, x.shape[axis])) for axis in axes]
            grid = [min(self.cells, x.shape[axis]) for axis in axes]
            weights = tuple(_upsampling(g, (g + 1) * n) for g, n in zip(grid, extents, strict=True))
        if x.dtype.kind != "f":
            weights = tuple(np.eye(w.shape[1])[w.argmax(axis=1)] for w in weights)
        grids = rng.random((self.samples, *(w.shape[1] for w in weights))) < self.keep
        return Masks(grids, rng.integers(0, extents, (self.samples, len(axes))), axes, weights, x.shape)

    def plans(self, here: Mapping[str, Array], fills: Mapping[str, Array]) -> Sequence[Plan]:
        """One plan per sample; all have the same masks."""
        rng = np.random.default_rng(self.seed)
        masks = {name: self.masks(x[0, ...], rng) for name, x in here.items()}
        samples = len(next(iter(here.values())))
        return [
            Blended(masks, self.samples, self.keep, self.center, {n: f[k, ...] for n, f in fills.items()})
            for k in range(samples)
        ]


@dataclass(frozen=True, eq=False)
class Blended:
    """The plan of `Rise`: one copy per mask."""

    masks: Mapping[str, Masks]
    count: int
    keep: float
    center: bool
    fill: Mapping[str, Array]

    def hide(self, index: int, copy: Mapping[str, Array]) -> None:
        """Blend with the baseline."""
        for name, masks in self.masks.items():
            x, fill, mask = copy[name], self.fill[name], masks.get(index)
            if x.dtype.kind == "f":
                x[...] = fill + mask.astype(x.dtype) * (x - fill)
            else:
                np.copyto(x, fill, where=mask == 0)

    def attribute(self, score: float, scores: Array) -> dict[str, Array]:
        """Mean of the masks times the scores, over the mean of a mask."""
        scores = scores - scores.mean() if self.center else scores
        results = {}
        for name, masks in self.masks.items():
            total = sum(s * masks.get(k) for k, s in enumerate(scores))
            results[name] = np.broadcast_to(total / (len(scores) * self.keep), masks.shape)
        return results


def _upsampling(cells: int, size: int) -> Array:
    """Shape (size, cells): linear interpolation between the middles of the cells; rows sum to 1."""
    places = np.clip((np.arange(size) + 0.5) * cells / size - 0.5, 0, cells - 1)
    return np.maximum(0, 1 - abs(places[:, None] - np.arange(cells)))
