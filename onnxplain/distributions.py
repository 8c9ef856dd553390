"""Distributions: the points at which a method looks, with their weights. Arrays only, no graphs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from onnxplain.errors import InputError, OptionError, did_you_mean

Array = np.ndarray[Any, Any]
Baseline = float | Array


@dataclass(frozen=True)
class Point:
    """The input itself."""


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
    """

    steps: int = 64
    baseline: Baseline = 0.0
    quadrature: str = "gauss_legendre"

    def __post_init__(self) -> None:
        if self.quadrature not in QUADRATURES:
            raise OptionError(f"there is no quadrature {self.quadrature!r}", did_you_mean(self.quadrature, QUADRATURES))
        least = 2 if self.quadrature == "trapezoid" else 1
        if self.steps < least:
            raise OptionError(f"steps must be at least {least}, not {self.steps}")

    def nodes(self) -> tuple[Array, Array]:
        """Positions between 0 (baseline) and 1 (input), and weights; float64, shape (steps,) each."""
        return QUADRATURES[self.quadrature](self.steps)


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


@dataclass(frozen=True, eq=False)
class Windows:
    """The input with one window after another replaced by the baseline.

    Windows start every ``stride`` elements, ceil((size - window) / stride) + 1 of them an axis, the last cropped at the border
    (captum's convention). They span the trailing axes, all channels together.

    Attributes
    ----------
    window, stride
        One number for all spatial axes, or one per axis; a stride of None is half the window.
    baseline
        A number, or an array that broadcasts to the input.
    """

    window: int | tuple[int, ...] = 32
    stride: int | tuple[int, ...] | None = None
    baseline: Baseline = 0.0

    def __post_init__(self) -> None:
        for name, value in (("window", self.window), ("stride", self.stride)):
            sizes = value if isinstance(value, tuple) else (value,)
            if not sizes or any(s is not None and s < 1 for s in sizes):
                raise OptionError(f"{name} must be at least 1, not {value}")
        strides = self.stride if isinstance(self.stride, tuple) else (self.stride,)
        windows = self.window if isinstance(self.window, tuple) else (self.window,)
        if any(s is not None and s > w for s in strides for w in windows):
            raise OptionError(f"stride {self.stride} is larger than window {self.window}: some elements would never be covered")

    def axes(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The axes that windows span: those after batch and channels; the features of a table."""
        if isinstance(self.window, tuple):
            if len(self.window) >= len(shape):
                raise OptionError(f"window {self.window} has more axes than the input {shape} besides the batch")
            return tuple(range(len(shape) - len(self.window), len(shape)))
        return tuple(range(2, len(shape))) if len(shape) > 2 else tuple(range(1, len(shape)))

    def geometry(self, shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """Axes, window sizes, strides and numbers of windows for an input shape (batch included)."""
        axes = self.axes(shape)
        window = self.window if isinstance(self.window, tuple) else (self.window,) * len(axes)
        window = tuple(min(w, shape[a]) for w, a in zip(window, axes, strict=True))
        if self.stride is None:
            stride = tuple(max(1, w // 2) for w in window)
        else:
            stride = self.stride if isinstance(self.stride, tuple) else (self.stride,) * len(axes)
        if len(stride) != len(axes):
            raise OptionError(f"stride {self.stride} needs one number per axis of the window ({len(axes)})")
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


Distribution = Point | Line | Windows


def baseline_like(baseline: Baseline, x: Array, name: str) -> Array:
    """The baseline in the shape and dtype of ``x``.

    Raises
    ------
    InputError
        It does not broadcast to ``x``, or is not finite.
    """
    array = np.asarray(baseline, dtype=x.dtype)
    if not np.isfinite(array).all():
        raise InputError(f"the baseline of '{name}' holds NaN or infinity")
    try:
        return np.broadcast_to(array, x.shape)
    except ValueError:
        raise InputError(f"a baseline of shape {array.shape} does not fit the input '{name}' of shape {x.shape}") from None
