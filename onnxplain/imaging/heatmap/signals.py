"""Waveforms and point sets, coloured by their attribution."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from onnxplain.errors import InputError
from onnxplain.imaging.heatmap import letters
from onnxplain.imaging.heatmap.colors import palette
from onnxplain.imaging.heatmap.letters import Image
from onnxplain.imaging.heatmap.reduce import normalize

Floats = npt.NDArray[np.float64]

WIDTH = 960  # pixels of a waveform
PANELS, LEAST = 320, 80  # pixels: what the channels of a signal share, and the least height of one
MARGIN = 16
TINT = 0.35  # how much of a colour stands behind a waveform, so that silence can be seen to speak
GREY = 150  # what has no attribution
SIDE = 448  # pixels: side of a projection of points


def waveform(values: npt.ArrayLike, signal: npt.ArrayLike, *, colors: str = "auto", percentile: float = 99.5) -> Image:
    """Draw a signal, its curve and the ground behind it in the colour of its attribution.

    Where there are more samples than pixels, a column reaches from the lowest to the highest of the samples that share
    it and has the colour of their mean attribution, so that opposite signs side by side cancel. What has no attribution
    is grey on white.

    Parameters
    ----------
    values : ndarray of shape (T,) or (C, T)
        The attribution; one channel colours all.
    signal : ndarray of shape (T,) or (C, T)
        Each channel is drawn in a panel of its own, from its lowest to its highest sample.
    colors
        A name in `COLORS`; "auto" is blue-white-red.
    percentile
        As for `heatmap`, of the columns' means.

    Raises
    ------
    InputError
        The shapes differ, or there are values that are no finite numbers.
    """
    samples = _finite(np.atleast_2d(signal), "signal")
    given = _finite(np.atleast_2d(values), "attribution")
    if samples.ndim != 2 or given.shape not in (samples.shape, (1, samples.shape[1])):
        raise InputError(
            f"an attribution of shape {np.shape(values)} does not belong to a signal of shape {np.shape(signal)}",
            "Both are (T,) or (C, T), of one sample; .npy files take any shape.",
        )
    count = samples.shape[1]
    if count > WIDTH:
        starts = np.arange(WIDTH) * count // WIDTH
        lows, highs = np.minimum.reduceat(samples, starts, axis=1), np.maximum.reduceat(samples, starts, axis=1)
        means = np.add.reduceat(given, starts, axis=1) / np.diff(starts, append=count)
    else:
        at = np.linspace(0, count - 1, WIDTH)
        lows = highs = np.stack([np.interp(at, np.arange(count), channel) for channel in samples])
        means = given[:, np.rint(at).astype(int)]
    strengths = np.broadcast_to(normalize(means, percentile), lows.shape)
    height = max(LEAST, PANELS // len(samples))
    panels = [_panel(*channel, height, colors) for channel in zip(lows, highs, strengths, strict=True)]
    return np.pad(np.concatenate(panels), ((MARGIN, MARGIN), (MARGIN, MARGIN), (0, 0)), constant_values=255)


def _panel(low: Floats, high: Floats, strength: npt.NDArray[np.float32], height: int, colors: str) -> Image:
    """One channel: a row of the picture for each level of the signal."""
    before_low, before_high = np.append(low[0], low[:-1]), np.append(high[0], high[:-1])
    low, high = np.minimum(low, before_high), np.maximum(high, before_low)  # the curve has no gaps
    top, bottom = high.max(), low.min()
    scale = (height - 9) / ((top - bottom) or np.inf)
    middle = 0 if top > bottom else (height - 9) // 2
    rows = np.arange(height)[:, None]
    inside = (rows >= np.floor((top - high) * scale) + middle + 4) & (rows <= np.ceil((top - low) * scale) + middle + 5)
    ground, curve = np.full((1, len(low), 3), 255.0), np.full((1, len(low), 3), float(GREY))
    drawn = np.where(inside[..., None], _toward(curve, strength, colors, 1), _toward(ground, strength, colors, TINT))
    return np.asarray(np.rint(drawn), np.uint8)


def _toward(start: Floats, strength: npt.NDArray[np.float32], colors: str, opacity: float) -> Floats:
    """Mix the colours of strengths into others, the more the stronger: ``start + opacity |s| (colour - start)``."""
    pure = palette(colors, signed=True).for_photos().paint(strength[None])
    return np.asarray(start + opacity * np.abs(strength)[None, :, None] * (pure - start), np.float64)


def projections(
    values: npt.ArrayLike, points: npt.ArrayLike, *, colors: str = "auto", percentile: float = 99.5
) -> Image:
    """Draw a set of points from three sides, each point in the colour of its attribution.

    The pictures show x-y, x-z and y-z, left to right, all on one scale. What has no attribution is grey; where points
    hide each other, the strongest is seen.

    Parameters
    ----------
    values : ndarray of shape (P, D), (D, P) or (P,)
        The attribution; a point gets the sum of its coordinates'.
    points : ndarray of shape (P, 3) or (3, P)
        The coordinates.
    colors, percentile
        As for `waveform`.

    Raises
    ------
    InputError
        The shapes do not fit, or there are values that are no finite numbers.
    """
    places, given = _finite(points, "point set"), _finite(values, "attribution")
    if places.ndim == 2 and places.shape[1] != 3:
        places, given = places.T, given.T
    if places.ndim != 2 or places.shape[1] != 3 or given.shape[:1] != places.shape[:1]:
        raise InputError(
            f"an attribution of shape {np.shape(values)} does not belong to points of shape {np.shape(points)}",
            "Points are (P, 3) or (3, P), of one sample; .npy files take any shape.",
        )
    strength = normalize(given.reshape(len(given), -1).sum(axis=1), percentile)
    shades = np.rint(_toward(np.full((1, len(strength), 3), 200.0), strength, colors, 1))[0]
    order = np.argsort(np.abs(strength), kind="stable")
    centre, reach = (places.max(0) + places.min(0)) / 2, float((places.max(0) - places.min(0)).max()) or 1.0
    at = np.rint(SIDE / 2 + (places - centre) / reach * (SIDE - 64)).astype(int)
    radius = int(np.clip(120 / np.sqrt(len(places)), 2, 8))
    sides = []
    for right, up in ((0, 1), (0, 2), (1, 2)):
        side = np.full((SIDE, SIDE, 3), 255, np.uint8)
        for i in order:
            place = (int(at[i, right]), int(SIDE - 1 - at[i, up]))
            cv2.circle(side, place, radius, tuple(map(int, shades[i])), cv2.FILLED, cv2.LINE_AA)
        side[[0, -1]] = side[:, [0, -1]] = 220
        letters.write(side, f"{'xyz'[right]} right, {'xyz'[up]} up", 8, 20, 0.45)
        sides.append(side)
    return np.concatenate(sides, axis=1)


def _finite(values: Any, what: str) -> Floats:
    array = np.asarray(values, np.float64)
    if not array.size or not np.isfinite(array).all():
        raise InputError(f"the {what} is empty, or has values that are NaN or infinite")
    return array
