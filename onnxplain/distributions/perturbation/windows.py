"""Occlusion: one window of the input after another is replaced by the baseline."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Annotated, Any

import numpy as np

from onnxplain.arguments import Share, Valid, check_fields, whole_number
from onnxplain.distributions.baselines import Baseline
from onnxplain.distributions.fills import spatial
from onnxplain.distributions.perturbation.coalitions import Coalitions, FeatureSets, Game
from onnxplain.distributions.perturbation.features import Partition, default_parts
from onnxplain.distributions.perturbation.perturbation import CopyPlan
from onnxplain.errors import OptionError

Array = np.ndarray[Any, Any]


def _check_sizes(name: str, value: Any) -> None:
    sizes = value if isinstance(value, tuple) else (value,)
    if not sizes or not all(VALID_SIZE.holds(size) for size in sizes):
        raise OptionError(f"{name} must be {VALID_SIZES.words}, not {value!r}")


VALID_SIZE = whole_number(1)
VALID_SIZES = Valid(f"{VALID_SIZE.words}, or a tuple of them", "int or tuple of int", _check_sizes)
Sizes = Annotated[int | tuple[int, ...], VALID_SIZES]
"""One size for all spatial axes, or one for each of the trailing axes; in elements of the input."""


@dataclass(frozen=True, eq=False)
class Windows(FeatureSets):
    """The input with one window after another replaced by the baseline.

    Windows start every ``stride`` elements, ceil((size - window) / stride) + 1 of them on an axis; the last one is
    cropped at the border (captum's convention). They span the spatial axes (`onnxplain.distributions.fills.spatial`),
    and hide all channels together. Windows given as a tuple span the trailing axes, as many as the tuple is long.

    Attributes
    ----------
    window, stride
        Sizes in elements: one number for all spatial axes, or one per axis. A window of None is a seventh of each axis
        (32 of 224), or a 64th if there is only one axis. A stride of None is half the window; with a window of None, a
        stride above it becomes the window.
    baseline
        See `Perturbation`.
    reach
        None: exact. A number up to 1: where a window changes more than this share of an axis of a feature map (and
        more than 7 elements), elements further from the window are taken as unchanged, which is faster. The result is
        exact all the same where `onnxplain.execution.incremental` is not used, such as on a GPU.
    """

    window: Sizes | None = None
    stride: Sizes | None = None
    baseline: Baseline = 0.0
    reach: Share | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if self.stride is not None:
            if isinstance(self.window, tuple):
                self.per_axis(len(self.window))
            if self.window is not None and any(s > w for s, w in np.broadcast(self.stride, self.window)):
                why = "some elements would never be hidden"
                raise OptionError(f"stride {self.stride} is larger than window {self.window}: {why}")

    def axes(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Axes that the windows span in an input of this shape, batch included."""
        if isinstance(self.window, tuple):
            if len(self.window) >= len(shape):
                raise OptionError(f"window {self.window} has more axes than the input {shape} besides the batch")
            return tuple(range(len(shape) - len(self.window), len(shape)))
        return tuple(axis + 1 for axis in spatial(shape[1:]))

    def per_axis(self, axes: int) -> tuple[tuple[int | None, ...], tuple[int | None, ...]]:
        """Window and stride of each of the axes that the windows span; None for a default."""
        window = self.window if isinstance(self.window, tuple) else (self.window,) * axes
        stride = self.stride if isinstance(self.stride, tuple) else (self.stride,) * axes
        if len(stride) != axes:
            raise OptionError(f"stride {self.stride} needs one number per axis of the window ({axes})")
        return window, stride

    def geometry(self, shape: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
        """Axes, window sizes, strides and numbers of windows, by axis, for an input of this shape, batch included."""
        axes = self.axes(shape)
        windows, strides = self.per_axis(len(axes))
        sizes = [shape[axis] for axis in axes]
        parts = default_parts(len(axes))
        window = tuple(max(1, n // parts) if w is None else min(w, n) for w, n in zip(windows, sizes, strict=True))
        stride = tuple(max(1, w // 2) if s is None else min(s, w) for s, w in zip(strides, window, strict=True))
        counts = tuple(-(-(shape[a] - w) // s) + 1 for a, w, s in zip(axes, window, stride, strict=True))
        return axes, window, stride, counts

    def slices(self, shape: tuple[int, ...]) -> Iterator[tuple[slice, ...]]:
        """The windows, as indices into one sample of an input of this shape, batch included."""
        axes, window, stride, counts = self.geometry(shape)
        for position in product(*map(range, counts)):
            index = [slice(None)] * (len(shape) - 1)
            for axis, w, s, k in zip(axes, window, stride, position, strict=True):
                index[axis - 1] = slice(k * s, min(k * s + w, shape[axis]))
            yield tuple(index)

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Raise OptionError if the windows do not fit an input."""
        self.geometry(shape)

    def check_export(self, method: str) -> None:
        """Raise OptionError for a reach."""
        if self.reach is not None:
            why = "a stand-alone explainer computes all that a window changes"
            raise OptionError(f"{method} with reach= cannot be exported: {why}", "Leave reach= out.")

    def plans(self, tensors: Mapping[str, Array]) -> Sequence[CopyPlan]:
        """The same plan for all samples, with one copy per tensor and window."""
        cells = {name: _Cells.of(self, x.shape) for name, x in tensors.items()}
        labels, features = {}, 0
        for name, part in cells.items():
            labels[name] = np.broadcast_to(part.labels + np.int32(features), tensors[name].shape[1:])
            features += part.count
        parts, windows = [], 0  # cells of each tensor, and the number of its first window
        for part in cells.values():
            parts.append((part, windows))
            windows += part.windows

        def keep(copies: Array) -> Array:
            hidden = []
            for part, first in parts:
                inside = (first <= copies) & (copies < first + part.windows)
                hidden.append(part.covered((copies - first) % part.windows) & inside[:, None])
            return ~np.concatenate(hidden, axis=1)

        def solve(score: float, scores: Array) -> tuple[Array, None]:
            losses = score - scores
            return np.concatenate([part.mean(losses[first : first + part.windows]) for part, first in parts]), None

        plan = Coalitions(Partition(labels, features), Game((windows,), keep, solve))
        return [plan] * len(next(iter(tensors.values())))


@dataclass(frozen=True, eq=False)
class _Cells:
    """Cells: the largest parts of a sample that every window covers as a whole or not at all.

    Attributes
    ----------
    labels
        Number of the cell of each element, int32; broadcasts to a sample.
    covers
        For each axis of a sample, whether a position of the windows (row) covers a position of the cells (column); one
        row and one column where windows span all of an axis.
    """

    labels: Array
    covers: Sequence[Array]

    @classmethod
    def of(cls, windows: Windows, shape: tuple[int, ...]) -> _Cells:
        """Cells of a tensor of this shape, batch included."""
        geometry = {axis: sizes for axis, *sizes in zip(*windows.geometry(shape), strict=True)}
        labels, covers = np.zeros((), np.int32), []
        for axis, size in enumerate(shape[1:], 1):
            window, stride, count = geometry.get(axis, (size, size, 1))
            starts = stride * np.arange(count)
            edges = np.unique([starts, np.minimum(starts + window, size)])
            covers.append((starts[:, None] <= edges[:-1]) & (edges[:-1] < starts[:, None] + window))
            places = np.searchsorted(edges, np.arange(size if axis in geometry else 1), "right") - 1
            labels = np.int32(len(edges) - 1) * labels[..., None] + places.astype(np.int32)
        return cls(labels, covers)

    @cached_property
    def count(self) -> int:
        """Number of cells."""
        return int(np.prod([table.shape[1] for table in self.covers]))

    @cached_property
    def windows(self) -> int:
        """Number of windows."""
        return int(np.prod([len(table) for table in self.covers]))

    def covered(self, windows: Array) -> Array:
        """Whether windows, given by number, cover each cell: bools, shape (windows, cells)."""
        covered = np.ones((len(windows), 1), bool)
        for table in reversed(self.covers):
            windows, places = np.divmod(windows, len(table))
            covered = (table[places][:, :, None] & covered[:, None]).reshape(len(covered), -1)
        return covered

    def mean(self, losses: Array) -> Array:
        """Mean loss of score over the windows that cover each cell, shape (cells,)."""
        return self._summed(losses) / self._covering

    @cached_property
    def _covering(self) -> Array:
        """Number of windows that cover each cell."""
        return self._summed(np.ones(self.windows))

    def _summed(self, values: Array) -> Array:
        """Sum of values over the windows that cover each cell."""
        sums = values.reshape([len(table) for table in self.covers])
        for table in self.covers:
            sums = np.moveaxis(sums, 0, -1) @ table.astype(np.float64)
        return np.asarray(sums.reshape(-1))
