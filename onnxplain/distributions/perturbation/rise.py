"""RISE (Petsiuk et al. 2018): mean of random smooth masks, weighted by the scores of the masked samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from onnxplain.arguments import Count, Positive, Seed, Share, check_fields
from onnxplain.distributions.baselines import Baseline
from onnxplain.distributions.fills import spatial
from onnxplain.distributions.masked_copies import Prologue, keep_where, named
from onnxplain.distributions.perturbation.coalitions import doubling
from onnxplain.distributions.perturbation.perturbation import CopyPlan, Estimate, Perturbation
from onnxplain.graph.ir import BATCH, is_float
from onnxplain.graph.var import Var, concat

Array = np.ndarray[Any, Any]
BLOCK = 1 << 18  # elements of the masks that exist at a time when they are summed
STEPS = 1 << 23  # positions are rounded to multiples of 1 / STEPS, so that shares are exact in single precision


@dataclass(frozen=True, eq=False)
class Masks:
    """Random masks for a tensor, from 0 (hidden) to 1 (kept); each depends on its number alone, and is drawn once.

    Attributes
    ----------
    shape
        Shape of a sample.
    seed
        Seed of the NumPy generators.
    keep
        Probability that a cell is kept.
    extents
        Spatial axis of the sample -> number of elements in a cell; empty if each element is a cell.
    upsampling
        For each spatial axis, the share of each cell in each position of the up-sampled grid, shape (positions, cells);
        empty if each element is a cell.
    """

    shape: tuple[int, ...]
    seed: tuple[int, ...]
    keep: float
    extents: Mapping[int, int]
    upsampling: tuple[Array, ...]
    _drawn: list[tuple[Array, list[int]]] = field(default_factory=list)  # a bit per cell, and the shifts

    @property
    def cells(self) -> tuple[int, ...]:
        """Shape of the grid of cells."""
        return tuple(table.shape[1] for table in self.upsampling) if self.upsampling else self.shape

    @property
    def own_shape(self) -> tuple[int, ...]:
        """Shape of a mask, which broadcasts to a sample."""
        return tuple(n if axis in self.extents or not self.extents else 1 for axis, n in enumerate(self.shape))

    def drawn(self, numbers: Array) -> tuple[Array, Array]:
        """Kept cells of masks, and their starts in the up-sampled grid: bools (masks, *cells), int64 (masks, axes)."""
        cells = self.cells
        for number in range(len(self._drawn), 1 + numbers.max(initial=-1)):
            random = np.random.default_rng([*self.seed, number])
            kept = random.random(cells) < self.keep
            shifts = [int(random.integers(extent)) for extent in self.extents.values()]
            self._drawn.append((np.packbits(kept), shifts))
        bits, begins = zip(*(self._drawn[number] for number in numbers.tolist()), strict=True)
        grids = np.unpackbits(np.stack(bits), axis=1, count=int(np.prod(cells))).astype(bool)
        return grids.reshape(len(numbers), *cells), np.array(begins, np.int64)

    def whole(self, numbers: Array) -> Array:
        """Masks by number, each of which broadcasts to a sample; float64, shape (masks, *own_shape)."""
        grids, shifts = self.drawn(numbers)
        masks = grids.astype(np.float64)
        for k, axis in reversed(list(enumerate(self.extents))):
            rows = self.upsampling[k][shifts[:, k, None] + np.arange(self.shape[axis])]
            turned = np.moveaxis(masks, -1, 1)
            masks = rows @ turned.reshape(*turned.shape[:2], -1)
            masks = masks.reshape(*masks.shape[:2], *turned.shape[2:])
        return masks.reshape(len(numbers), *self.own_shape)


@dataclass(frozen=True, eq=False)
class Rise(Perturbation):
    """Random masks.

    A grid with ``cells`` cells on each spatial axis, each kept with probability ``keep``, is up-sampled bilinearly to a
    picture larger by one cell, and cropped at a random position. Each element of a table or a row of tokens is a cell.
    Tensors of other types than floats are masked without interpolation.

    Attributes
    ----------
    cells
        Number of cells on each spatial axis.
    keep
        Probability that a cell is kept.
    samples
        Number of masks.
    baseline, tolerance
        See `Perturbation`.
    center
        Subtract the mean score from all scores. That subtracts a constant from the expected attributions, which are
        then positive where an element raises the score, and negative where it lowers it. The paper does not subtract.
    seed
        Seed of the NumPy generators.
    """

    cells: Count = 7
    keep: Share = 0.5
    samples: Count = 1000
    baseline: Baseline = 0.0
    center: bool = False
    seed: Seed = 0
    tolerance: Positive | None = None

    def __post_init__(self) -> None:
        check_fields(self)

    def masks(self, x: Array, place: int) -> Masks:
        """Masks for samples like the sample ``x`` of the explained tensor number ``place``."""
        seed = (self.seed, place)
        if x.ndim < 2:
            return Masks(x.shape, seed, self.keep, {}, ())
        cells = {axis: min(self.cells, x.shape[axis]) for axis in spatial(x.shape)}
        extents = {axis: -(-x.shape[axis] // n) for axis, n in cells.items()}
        tables = tuple(_upsampling(n, (n + 1) * extents[axis]) for axis, n in cells.items())
        if x.dtype.kind != "f":
            tables = tuple(np.eye(w.shape[1])[w.argmax(axis=1)] for w in tables)
        return Masks(x.shape, seed, self.keep, extents, tables)

    def plans(self, tensors: Mapping[str, Array]) -> Sequence[CopyPlan]:
        """The same plan for all samples, with one copy per mask."""
        masks = {name: self.masks(x[0, ...], place) for place, (name, x) in enumerate(tensors.items())}
        plan = Blended(masks, doubling(self.samples, self.tolerance), self.keep, self.center)
        return [plan] * len(next(iter(tensors.values())))

    def masked(self, prologue: Prologue, name: str, x: Var, fill: Var) -> Var:
        """Write the nodes that up-sample the grids, and blend a tensor with its fill.

        Where a mask is 1 or 0, the result is exactly the tensor or the fill.
        """
        emitter, axes = prologue.emitter, x.rank - 2
        if axes < 1:
            return keep_where(prologue.per_copy(named("grid", name), bool, (None,) * (x.rank - 1)), x, fill)
        number = np.dtype(x.dtype if is_float(x.dtype) else np.float32)
        mask = prologue.per_copy(named("grid", name), bool, (None,) * axes).cast(number)
        for k in reversed(range(axes)):  # the same steps as in `Masks.whole`
            table = prologue.shared(named(f"table{k}", name), np.float32, (None, None))
            places = prologue.shared(named(f"places{k}", name), np.int64, (None,))
            begin = prologue.per_copy(named(f"shift{k}", name), np.int64, (1,))
            rows = emitter.op("Gather", table, begin + places, known=(BATCH, None, None), axis=0).cast(number)
            turned = mask.transpose([0, axes, *range(1, axes)])
            product = emitter.op("MatMul", rows, turned.reshape([0, 0, -1]), known=(BATCH, None, None))
            mask = product.reshape(concat([product.sizes(0, 2), turned.sizes(2)]), turned.shape)
        channel = prologue.shared(named("channel", name), np.int64, (1,))
        mask = emitter.op("Unsqueeze", mask, channel, known=(BATCH, *[None] * (axes + 1)))
        if not is_float(x.dtype):
            return keep_where(mask > 0.5, x, fill)
        if np.ndim(self.baseline) == 0 and self.baseline == 0:
            return mask * x
        return mask * x + (1 - mask) * fill


@dataclass(frozen=True, eq=False)
class Blended:
    """The plan of `Rise`: one copy per mask."""

    masks: Mapping[str, Masks]
    stages: Sequence[int]
    keep: float
    center: bool

    @property
    def shared(self) -> Mapping[str, Array]:
        """Tables by which the graph up-samples the grids."""
        inputs: dict[str, Array] = {}
        for name, masks in self.masks.items():
            for k, (axis, table) in enumerate(zip(masks.extents, masks.upsampling, strict=True)):
                inputs[named(f"table{k}", name)] = table.astype(np.float32)
                inputs[named(f"places{k}", name)] = np.arange(masks.shape[axis])
            if masks.extents:
                channels = [axis + 1 for axis in range(len(masks.shape)) if axis not in masks.extents]
                inputs[named("channel", name)] = np.array(channels)
        return inputs

    @property
    def own(self) -> Mapping[str, Array]:
        """Empty: all samples share the plan."""
        return {}

    def describe(self, copies: Array) -> Mapping[str, Array]:
        """Grid of each copy, and the start of its mask in the up-sampled grid; copy -1 keeps all cells."""
        inputs = {}
        for name, masks in self.masks.items():
            grids, shifts = masks.drawn(np.maximum(copies, 0))
            inputs[named("grid", name)] = grids | (copies < 0).reshape(-1, *[1] * len(masks.cells))
            inputs |= {named(f"shift{k}", name): starts[:, None] for k, starts in enumerate(shifts.T)}
        return inputs

    def donors(self, copies: Array) -> Array | None:
        """None: the baseline replaces what is hidden."""
        return None

    def hole(self, copy: int) -> Mapping[str, Array]:
        """Elements whose mask is below one half."""
        numbers = np.array([copy])
        return {name: np.broadcast_to(m.whole(numbers)[0] < 0.5, m.shape) for name, m in self.masks.items()}

    def estimate(self, score: float, scores: Array) -> Estimate:
        """Mean over the masks M of s M / keep, s the score of the mask's copy, and the standard error of that mean.

        The error is the standard deviation of s M / keep over the masks, divided by the root of their number; for
        centred scores, that of (s - mean s) (M - mean M) / keep.
        """
        weights = scores - scores.mean() if self.center else scores
        pairs = {name: self._moments(masks, weights) for name, masks in self.masks.items()}
        values, errors = (
            {name: np.broadcast_to(pair[k], self.masks[name].shape) for name, pair in pairs.items()} for k in (0, 1)
        )
        return Estimate(values, errors)

    def _moments(self, masks: Masks, weights: Array) -> tuple[Array, Array]:
        """Values and standard errors of one tensor, of the shape of a mask."""
        count = len(weights)
        powers = np.stack([np.ones(count), weights, weights**2])
        size = int(np.prod(masks.own_shape))
        sums, part = np.zeros((4, size)), np.empty((4, size))  # of M, s M, s^2 M and (s M)^2
        at_once = max(1, BLOCK // size)
        for numbers in np.split(np.arange(count), range(at_once, count, at_once)):
            some = masks.whole(numbers).reshape(len(numbers), size)
            np.matmul(powers[:, numbers], some, out=part[:3])
            np.matmul(powers[2:, numbers], np.square(some, out=some), out=part[3:])
            sums += part
        plain, mean, crossed, second = sums.reshape(4, *masks.own_shape) / count
        middle = plain if self.center else np.zeros(())
        square = second - 2 * middle * crossed + middle**2 * powers[2].mean()
        variance = np.maximum(square - mean**2, 0) / (count - 1) if count > 1 else np.full(mean.shape, np.nan)
        return mean / self.keep, np.sqrt(variance) / self.keep


def _upsampling(cells: int, size: int) -> Array:
    """Weights of a linear interpolation between the middles of the cells, shape (size, cells).

    Positions are rounded, so that weights are exact in single precision, too, and those of a position sum to exactly 1.
    """
    positions = np.clip((np.arange(size) + 0.5) * cells / size - 0.5, 0, cells - 1)
    return np.maximum(0, 1 - abs(np.round(positions[:, None] * STEPS) / STEPS - np.arange(cells)))
