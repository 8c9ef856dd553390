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

WIDTH = 960  # pixels: width of a waveform
PANELS, LEAST = 320, 80  # pixels: height of all channels together, and the minimum height of one
MARGIN = 16  # pixels around a waveform
PANEL_PADDING = 4  # pixels above and below the curve in its panel
TINT = 0.35  # opacity of the background behind a waveform, so that attributions of silent parts are visible too
GREY = 150  # grey level, 0..255, of a curve without attribution
POINT_GREY = 200  # grey level, 0..255, of a point without attribution
FRAME_GREY = 220  # grey level, 0..255, of the frame of a projection
SIDE = 448  # pixels: side of a projection of points
POINT_MARGIN = 32  # pixels between the outermost points and the sides of a projection
POINT_SIZE, POINT_RADII = 120, (2, 8)  # pixels: radius times the square root of the number of points; its bounds


def waveform(values: npt.ArrayLike, signal: npt.ArrayLike, *, colors: str = "auto", percentile: float = 99.5) -> Image:
    """Draw a signal as a curve; the curve and the background behind it have the colour of the attribution.

    With more samples than pixels, several samples share a column of pixels. The column reaches from the lowest to the
    highest of them and has the colour of their mean attribution, so adjacent opposite signs cancel. Parts without
    attribution are grey on white.

    Parameters
    ----------
    values : ndarray of shape (T,) or (C, T)
        The attribution; a single channel colours all channels of the signal.
    signal : ndarray of shape (T,) or (C, T)
        The signal. Each channel is drawn in its own panel, scaled from its lowest to its highest sample.
    colors
        A name in `COLORS`; "auto" is blue-white-red.
    percentile
        As in `heatmap`, over the columns of pixels.

    Returns
    -------
    ndarray of uint8, shape (height, width, 3)
        RGB.

    Raises
    ------
    InputError
        The shapes differ, or a value is NaN or infinite.
    """
    samples = _finite(np.atleast_2d(signal), "signal")
    attribution = _finite(np.atleast_2d(values), "attribution")
    if samples.ndim != 2 or attribution.shape not in (samples.shape, (1, samples.shape[1])):
        raise InputError(
            f"an attribution of shape {np.shape(values)} does not belong to a signal of shape {np.shape(signal)}",
            "Give both as (T,) or (C, T), for one sample. A .npy file can hold any shape.",
        )
    count = samples.shape[1]
    if count > WIDTH:
        starts = np.arange(WIDTH) * count // WIDTH
        lows, highs = np.minimum.reduceat(samples, starts, axis=1), np.maximum.reduceat(samples, starts, axis=1)
        means = np.add.reduceat(attribution, starts, axis=1) / np.diff(starts, append=count)
    else:
        times = np.linspace(0, count - 1, WIDTH)
        lows = highs = np.stack([np.interp(times, np.arange(count), channel) for channel in samples])
        means = attribution[:, np.rint(times).astype(int)]
    strengths = np.broadcast_to(normalize(means, percentile), lows.shape)
    height = max(LEAST, PANELS // len(samples))
    panels = [_panel(*channel, height, colors) for channel in zip(lows, highs, strengths, strict=True)]
    return np.pad(np.concatenate(panels), ((MARGIN, MARGIN), (MARGIN, MARGIN), (0, 0)), constant_values=255)


def _panel(low: Floats, high: Floats, strength: npt.NDArray[np.float32], height: int, colors: str) -> Image:
    """Draw one channel: columns of pixels from ``low`` to ``high`` (units of the signal), in the colour of strength."""
    before_low, before_high = np.append(low[0], low[:-1]), np.append(high[0], high[:-1])
    low, high = np.minimum(low, before_high), np.maximum(high, before_low)  # neighbouring columns touch: no gaps
    top, bottom = high.max(), low.min()
    span = height - 2 * PANEL_PADDING - 1  # pixels between the highest and the lowest level; the line is two thick
    scale = span / ((top - bottom) or np.inf)
    first = PANEL_PADDING + (0 if top > bottom else span // 2)  # row of the highest level; a constant is in the middle
    rows = np.arange(height)[:, None]
    inside = (rows >= np.floor((top - high) * scale) + first) & (rows <= np.ceil((top - low) * scale) + first + 1)
    background, curve = np.full((1, len(low), 3), 255.0), np.full((1, len(low), 3), float(GREY))
    tinted = _toward(background, strength, colors, TINT)
    drawn = np.where(inside[..., None], _toward(curve, strength, colors, 1), tinted)
    return np.asarray(np.rint(drawn), np.uint8)


def _toward(start: Floats, strength: npt.NDArray[np.float32], colors: str, opacity: float) -> Floats:
    """Mix colours of strengths s into other colours: ``start + opacity |s| (colour(s) - start)``."""
    pure = palette(colors, signed=True).for_photos().paint(strength[None])
    return np.asarray(start + opacity * np.abs(strength)[None, :, None] * (pure - start), np.float64)


def projections(
    values: npt.ArrayLike, points: npt.ArrayLike, *, colors: str = "auto", percentile: float = 99.5
) -> Image:
    """Draw a set of points in three projections, each point in the colour of its attribution.

    The projections are x-y, x-z and y-z, from left to right, on one scale. Points without attribution are grey. Where
    points overlap, the one with the strongest attribution is on top.

    Parameters
    ----------
    values : ndarray of shape (P, D), (D, P) or (P,)
        The attribution; a point has the sum over its D values.
    points : ndarray of shape (P, 3) or (3, P)
        The coordinates.
    colors, percentile
        As in `waveform`, over the points.

    Returns
    -------
    ndarray of uint8, shape (height, width, 3)
        RGB.

    Raises
    ------
    InputError
        The shapes differ, or a value is NaN or infinite.
    """
    coordinates, attribution = _finite(points, "point set"), _finite(values, "attribution")
    if coordinates.ndim == 2 and coordinates.shape[1] != 3:
        coordinates, attribution = coordinates.T, attribution.T
    if coordinates.ndim != 2 or coordinates.shape[1] != 3 or attribution.shape[:1] != coordinates.shape[:1]:
        raise InputError(
            f"an attribution of shape {np.shape(values)} does not belong to points of shape {np.shape(points)}",
            "Give points as (P, 3) or (3, P), for one sample. A .npy file can hold any shape.",
        )
    strength = normalize(attribution.reshape(len(attribution), -1).sum(axis=1), percentile)
    shades = np.rint(_toward(np.full((1, len(strength), 3), float(POINT_GREY)), strength, colors, 1))[0]
    order = np.argsort(np.abs(strength), kind="stable")
    low, high = coordinates.min(0), coordinates.max(0)
    centre, extent = (high + low) / 2, float((high - low).max()) or 1.0
    pixels = np.rint(SIDE / 2 + (coordinates - centre) / extent * (SIDE - 2 * POINT_MARGIN)).astype(int)
    radius = int(np.clip(POINT_SIZE / np.sqrt(len(pixels)), *POINT_RADII))
    sides = []
    for right, up in ((0, 1), (0, 2), (1, 2)):
        side = np.full((SIDE, SIDE, 3), 255, np.uint8)
        for i in order:
            at = (int(pixels[i, right]), int(SIDE - 1 - pixels[i, up]))
            cv2.circle(side, at, radius, tuple(map(int, shades[i])), cv2.FILLED, cv2.LINE_AA)
        side[[0, -1]] = side[:, [0, -1]] = FRAME_GREY
        letters.write(side, f"{'xyz'[right]} right, {'xyz'[up]} up", 8, 20, 0.45)
        sides.append(side)
    return np.concatenate(sides, axis=1)


def _finite(values: Any, what: str) -> Floats:
    array = np.asarray(values, np.float64)
    if not array.size or not np.isfinite(array).all():
        raise InputError(f"the {what} is empty, or has values that are NaN or infinite")
    return array
