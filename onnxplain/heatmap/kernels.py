"""Compiled loops over pixels: each reads its arrays once and makes no temporary array."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

import numba
import numpy as np
import numpy.typing as npt

P = ParamSpec("P")
R = TypeVar("R")

SUM, ABS_SUM, MEAN, MAX, NORM = range(5)
GREYING = 2.0  # how much faster than the heatmap gains opacity a photo loses its own colour


def compiled(function: Callable[P, R]) -> Callable[P, R]:
    """Compile at the first call; keep the machine code on disk if any folder for it can be written."""
    try:
        return cast("Callable[P, R]", numba.njit(nogil=True, cache=True)(function))
    except RuntimeError:  # Numba found no such folder: a read-only container
        return cast("Callable[P, R]", numba.njit(nogil=True)(function))


@compiled
def pool(values: npt.NDArray[Any], mode: int) -> npt.NDArray[np.float64]:
    """Reduce a (C, H, W) array over its channels; `mode` is one of the constants above."""
    channels, height, width = values.shape
    out = np.empty((height, width))
    for i in range(height):
        for j in range(width):
            total = 0.0
            for c in range(channels):
                value = np.float64(values[c, i, j])
                if mode in (SUM, MEAN):
                    total += value
                elif mode == ABS_SUM:
                    total += abs(value)
                elif mode == MAX:
                    total = max(total, abs(value))
                else:
                    total += value * value
            if mode == MEAN:
                total /= channels
            elif mode == NORM:
                total = np.sqrt(total)
            out[i, j] = total
    return out


@compiled
def row_of(value: float, zero: int, last: int) -> int:
    """Row of a colour table: 0 has row `zero`, 1 has row `last`; what lies outside the table is clipped."""
    clipped = min(max(value, -1.0), 1.0)
    return max(int(np.floor(zero + clipped * (last - zero) + 0.5)), 0)


@compiled
def paint(heatmap: npt.NDArray[Any], table: npt.NDArray[np.uint8], zero: int) -> npt.NDArray[np.uint8]:
    """Colour each value by a table of (rows, 3) colours."""
    height, width = heatmap.shape
    out = np.empty((height, width, 3), np.uint8)
    for i in range(height):
        for j in range(width):
            row = row_of(heatmap[i, j], zero, len(table) - 1)
            for c in range(3):
                out[i, j, c] = table[row, c]
    return out


@compiled
def blend(
    heatmap: npt.NDArray[Any],
    image: npt.NDArray[np.uint8],
    table: npt.NDArray[np.uint8],
    zero: int,
    opacity: float,
    fade: bool,
) -> npt.NDArray[np.uint8]:
    """Paint over an image: ``base + alpha * (colour - base)``.

    With `fade`, alpha is the opacity times the magnitude, and base is the image losing its colour as the magnitude
    grows; else alpha is the opacity and base the image.
    """
    height, width = heatmap.shape
    out = np.empty((height, width, 3), np.uint8)
    for i in range(height):
        for j in range(width):
            value = heatmap[i, j]
            row = row_of(value, zero, len(table) - 1)
            alpha, greyed = opacity, 0.0
            if fade:
                alpha = opacity * min(abs(value), 1.0)
                greyed = min(GREYING * alpha, 1.0)
            grey = 0.299 * image[i, j, 0] + 0.587 * image[i, j, 1] + 0.114 * image[i, j, 2]
            for c in range(3):
                base = image[i, j, c] + greyed * (grey - image[i, j, c])
                out[i, j, c] = np.uint8(base + alpha * (table[row, c] - base) + 0.5)
    return out
