"""Distributions: the points at which a method looks, with their weights. Arrays only, no graphs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, ClassVar, Protocol

import numpy as np

from onnxplain.errors import OptionError, did_you_mean

Array = np.ndarray[Any, Any]
Baseline = float | str | Array

MOST_STEPS = 4096  # up to which a tolerance may double them


@dataclass(frozen=True)
class Point:
    """The input itself."""


@dataclass(frozen=True, eq=False)
class References:
    """The input itself, compared with a baseline or with each of several.

    Attributes
    ----------
    baseline
        A number, or an array: one for all samples, or one each.
    baselines
        An array of shape (K, ...): K baselines instead, each for all samples, that count alike.
    """

    baseline: Baseline = 0.0
    baselines: Array | None = None

    def __post_init__(self) -> None:
        check_baseline(self.baseline)
        if self.baselines is not None:
            check_baseline(self.baselines)
            if np.ndim(self.baselines) == 0 or len(self.baselines) == 0:
                raise OptionError("baselines is an array whose first axis counts the baselines, at least one")

    @property
    def count(self) -> int:
        """Number of baselines of a sample."""
        return 1 if self.baselines is None else len(self.baselines)

    def get(self, index: int) -> Baseline:
        """One of the baselines."""
        return self.baseline if self.baselines is None else np.asarray(self.baselines)[index]


@dataclass(frozen=True, eq=False)
class Line:
    """Points on the straight line from a baseline to the input.

    Attributes
    ----------
    steps
        Number of points.
    baseline
        A number, or an array: one for all samples, or one each.
    quadrature
        ``gauss_legendre``, ``midpoint``, ``trapezoid``, ``left`` or ``right``; weights of all of them sum to 1
        (captum's trapezoid does not).
    calibrate
        Move the weights, as little as possible, so that the slopes of the score at the points add up to its exact
        change, unless that would take more than a moderate move (see `calibrated`).
    tolerance
        Double the steps of a sample until its residual is at most this, in the score's units, or they are `MOST_STEPS`.
    """

    steps: int = 64
    baseline: Baseline = 0.0
    quadrature: str = "gauss_legendre"
    calibrate: bool = False
    tolerance: float | None = None

    def __post_init__(self) -> None:
        if self.quadrature not in QUADRATURES:
            known = did_you_mean(str(self.quadrature), QUADRATURES)
            raise OptionError(f"there is no quadrature {self.quadrature!r}", known)
        least = 2 if self.quadrature == "trapezoid" else 1
        if not is_count(self.steps, least):
            raise OptionError(f"steps must be a whole number of at least {least}, not {self.steps!r}")
        if self.tolerance is not None:
            number = isinstance(self.tolerance, int | float | np.number) and not isinstance(self.tolerance, bool)
            if not number or not self.tolerance > 0:
                raise OptionError(f"tolerance must be a number above 0, not {self.tolerance!r}")
        check_baseline(self.baseline)

    def nodes(self) -> tuple[Array, Array]:
        """Positions between 0 (baseline) and 1 (input), and weights; float64, shape (steps,) each."""
        return QUADRATURES[self.quadrature](self.steps)


def calibrated(mean: Any, tilted: Any, gap: Any, spread: Any) -> Any:
    """Weighted mean with calibrated weights: the slopes' own weighted mean becomes exact at no further cost.

    The exact change F of the score along the line is known, and the slopes s_k at the points estimate it. The weights
    w_k (1 + c (d_k - gap)), d_k = s_k - F, are those nearest to w_k (in the chi-square distance) for which the weighted
    sum of d is 0 [deville]_. Takes numbers, arrays and Vars that broadcast.

    Parameters
    ----------
    mean, tilted
        sum w_k g_k and sum w_k d_k g_k of what is averaged, g.
    gap, spread
        sum w_k d_k, and sum w_k d_k^2 - gap^2. An infinite spread leaves the weights as they are. So they should be
        where it is below gap^2: slopes that equal tell no points apart, and the weights would change by more than
        themselves (their chi-square distance is gap^2 / spread), or by whatever rounding makes of the spread.

    References
    ----------
    .. [deville] Deville and Särndal 1992, Calibration estimators in survey sampling, JASA.
    """
    return mean - gap / spread * (tilted - gap * mean)


def _gauss_legendre(n: int) -> tuple[Array, Array]:
    positions, weights = np.polynomial.legendre.leggauss(n)
    return (1 + positions) / 2, weights / 2


def _trapezoid(n: int) -> tuple[Array, Array]:
    weights = np.full(n, 1 / (n - 1))
    weights[[0, -1]] /= 2
    return np.linspace(0, 1, n), weights


QUADRATURES: dict[str, Callable[[int], tuple[Array, Array]]] = {
    "gauss_legendre": _gauss_legendre,
    "midpoint": lambda n: ((np.arange(n) + 0.5) / n, np.full(n, 1 / n)),
    "trapezoid": _trapezoid,
    "left": lambda n: (np.arange(n) / n, np.full(n, 1 / n)),
    "right": lambda n: (np.arange(1, n + 1) / n, np.full(n, 1 / n)),
}


SEARCHES = ("segment", "gradient")


@dataclass(frozen=True, eq=False)
class Root:
    """The nearest point along a way at which the score is zero.

    Attributes
    ----------
    search
        The way: "segment", straight to the baseline; "gradient", down the gradient at the input.
    baseline
        See `Line`.
    steps
        Forward passes of the search; each halves the way on which the root lies.
    """

    search: str
    baseline: Baseline = 0.0
    steps: int = 20

    def __post_init__(self) -> None:
        if self.search not in SEARCHES:
            known = did_you_mean(str(self.search), ["zero", *SEARCHES])
            raise OptionError(f"there is no root {self.search!r}", known)
        if not is_count(self.steps, 1):
            raise OptionError(f"steps must be a whole number of at least 1, not {self.steps!r}")
        check_baseline(self.baseline)


class Plan(Protocol):
    """Which masked copies of one sample are run, and what becomes of their scores.

    Attributes
    ----------
    count
        Number of copies.
    """

    @property
    def count(self) -> int:
        """Number of copies."""
        ...

    def hide(self, index: int, copy: Mapping[str, Array]) -> None:
        """Mask one copy of the sample, in place: an array without batch axis by name of a tensor."""
        ...

    def attribute(self, score: float, scores: Array) -> dict[str, Array]:
        """Attributions, float64, from the score of the sample and those of its copies."""
        ...


class Perturbation(ABC):
    """Masked copies of the input, and what their scores tell: forward passes only.

    Attributes
    ----------
    baseline
        What is put in the place of what is masked: a number, a text, or an array that broadcasts to the input.
    mixes
        Whether what is found about a sample depends on the others of its batch.
    """

    baseline: Baseline = 0.0
    mixes: ClassVar[bool] = False

    @abstractmethod
    def plans(self, here: Mapping[str, Array], fills: Mapping[str, Array]) -> Sequence[Plan]:
        """One plan per sample.

        Parameters
        ----------
        here
            The explained tensors by name, the batch axis in front.
        fills
            The same at the baseline.
        """

    def check(self, shape: tuple[int, ...]) -> None:  # noqa: B027 - most fit every shape
        """Raise OptionError where an option does not fit the shape of an input, the batch axis in front."""


def share(axes: int) -> int:
    """Part of each axis that a window covers which nobody gives a size: a seventh in pictures, a 64th of a sequence."""
    return 64 if axes == 1 else 7


@dataclass(frozen=True, eq=False)
class Windows(Perturbation):
    """The input with one window after another replaced by the baseline.

    Windows start every ``stride`` elements, ceil((size - window) / stride) + 1 of them an axis, the last cropped at the
    border (captum's convention). They span the trailing axes, all channels together.

    Attributes
    ----------
    window, stride
        One number for all spatial axes, or one per axis. A window of None is a seventh of each axis (32 of 224), or
        a 64th if there is one only; a stride of None half the window. A stride beyond a window so found is that window.
    baseline
        A number, or an array that broadcasts to the input.
    """

    window: int | tuple[int, ...] | None = None
    stride: int | tuple[int, ...] | None = None
    baseline: Baseline = 0.0

    def __post_init__(self) -> None:
        if self.window is not None:
            _check_sizes("window", self.window)
        if self.stride is not None:
            _check_sizes("stride", self.stride)
            if isinstance(self.window, tuple):
                self.per_axis(len(self.window))
            if self.window is not None and any(s > w for s, w in np.broadcast(self.stride, self.window)):
                why = "some elements would never be covered"
                raise OptionError(f"stride {self.stride} is larger than window {self.window}: {why}")
        check_baseline(self.baseline)

    def axes(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The axes that windows span: those after batch and channels; the features of a table."""
        if isinstance(self.window, tuple):
            if len(self.window) >= len(shape):
                raise OptionError(f"window {self.window} has more axes than the input {shape} besides the batch")
            return tuple(range(len(shape) - len(self.window), len(shape)))
        return tuple(range(2, len(shape))) if len(shape) > 2 else tuple(range(1, len(shape)))

    def per_axis(self, axes: int) -> tuple[tuple[int | None, ...], tuple[int | None, ...]]:
        """Window and stride of each of the axes that windows span."""
        window = self.window if isinstance(self.window, tuple) else (self.window,) * axes
        stride = self.stride if isinstance(self.stride, tuple) else (self.stride,) * axes
        if len(stride) != axes:
            raise OptionError(f"stride {self.stride} needs one number per axis of the window ({axes})")
        return window, stride

    def geometry(self, shape: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
        """Axes, window sizes, strides and numbers of windows for an input shape (batch included)."""
        axes = self.axes(shape)
        asked_window, asked = self.per_axis(len(axes))
        sizes = [shape[axis] for axis in axes]
        part = share(len(axes))
        window = tuple(max(1, n // part) if w is None else min(w, n) for w, n in zip(asked_window, sizes, strict=True))
        stride = tuple(max(1, w // 2) if s is None else min(s, w) for s, w in zip(asked, window, strict=True))
        counts = tuple(-(-(shape[a] - w) // s) + 1 for a, w, s in zip(axes, window, stride, strict=True))
        return axes, window, stride, counts

    def slices(self, shape: tuple[int, ...]) -> Iterator[tuple[slice, ...]]:
        """The windows, as indices into an array of ``shape`` without its batch axis."""
        axes, window, stride, counts = self.geometry(shape)
        for position in product(*map(range, counts)):
            index = [slice(None)] * (len(shape) - 1)
            for axis, w, s, k in zip(axes, window, stride, position, strict=True):
                index[axis - 1] = slice(k * s, min(k * s + w, shape[axis]))
            yield tuple(index)

    def check(self, shape: tuple[int, ...]) -> None:
        """Raise OptionError where windows do not fit an input."""
        self.geometry(shape)

    def plans(self, here: Mapping[str, Array], fills: Mapping[str, Array]) -> Sequence[Plan]:
        """One copy per window and tensor."""
        jobs = [(name, window) for name, x in here.items() for window in self.slices(x.shape)]
        counts = {name: np.zeros(x.shape[1:]) for name, x in here.items()}
        for name, window in jobs:
            counts[name][window] += 1
        samples = len(next(iter(here.values())))
        return [_Windowed(jobs, counts, {n: fill[k, ...] for n, fill in fills.items()}) for k in range(samples)]


@dataclass(frozen=True, eq=False)
class _Windowed:
    jobs: Sequence[tuple[str, tuple[slice, ...]]]
    counts: Mapping[str, Array]  # how many windows cover an element
    fill: Mapping[str, Array]

    @property
    def count(self) -> int:
        return len(self.jobs)

    def hide(self, index: int, copy: Mapping[str, Array]) -> None:
        name, window = self.jobs[index]
        copy[name][window] = self.fill[name][window]

    def attribute(self, score: float, scores: Array) -> dict[str, Array]:
        losses = {name: np.zeros(count.shape) for name, count in self.counts.items()}
        for (name, window), masked in zip(self.jobs, scores, strict=True):
            losses[name][window] += score - float(masked)
        return {name: loss / self.counts[name] for name, loss in losses.items()}


Distribution = Point | References | Line | Perturbation | Root


def as_baseline(baseline: Baseline, dtype: np.dtype[Any], name: str) -> Array:
    """Bring the baseline into the dtype of the input ``name``; text has an empty baseline where a number has 0.

    Raises
    ------
    OptionError
        It cannot be.
    """
    array = np.asarray(baseline)
    if dtype.kind == "O" and array.shape == () and array.dtype.kind in "iuf" and array == 0:
        array = np.asarray("")
    text = array.dtype.kind in "OU"
    if text != (dtype.kind == "O") or (dtype.kind in "iub" and np.any(array.astype(dtype) != array)):
        raise OptionError(f"a baseline of {baseline!r} is nothing that the input '{name}' can hold: {dtype}")
    return array.astype(dtype)


def baseline_like(baseline: Baseline, x: Array, name: str) -> Array:
    """Bring the baseline into the shape and dtype of ``x``, the input ``name``.

    Raises
    ------
    OptionError
        It does not broadcast to ``x``, or holds what the input cannot.
    """
    array = as_baseline(baseline, x.dtype, name)
    try:
        return np.broadcast_to(array, x.shape)
    except ValueError:
        why = f"does not fit the input '{name}' of shape {x.shape}"
        raise OptionError(f"a baseline of shape {array.shape} {why}") from None


def is_count(value: Any, least: int) -> bool:
    """Whether it is a whole number of at least ``least``."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and int(value) >= least


def _check_sizes(name: str, value: Any) -> None:
    sizes = value if isinstance(value, tuple) else (value,)
    if not sizes or not all(is_count(size, 1) for size in sizes):
        raise OptionError(f"{name} must be a whole number of at least 1, or a tuple of them, not {value!r}")


def check_baseline(baseline: Any) -> None:
    """Raise OptionError unless it is a finite number, a text, or an array of them."""
    array = np.asarray(baseline)
    if array.dtype.kind not in "iufU":
        raise OptionError(f"a baseline is a number or an array of numbers (or of texts), not {baseline!r}")
    if array.dtype.kind != "U" and not np.isfinite(array).all():
        raise OptionError("the baseline holds NaN or infinity")
