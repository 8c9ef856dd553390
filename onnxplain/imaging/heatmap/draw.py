"""Heatmaps become RGB images: alone, over a photo, or as bars."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from onnxplain.errors import InputError, OptionError
from onnxplain.imaging.heatmap.boxes import with_boxes
from onnxplain.imaging.heatmap.colors import Palette, palette
from onnxplain.imaging.heatmap.reduce import channels_first
from onnxplain.imaging.heatmap.reduce import heatmap as heatmap_of

Image = npt.NDArray[np.uint8]
Heatmap = npt.NDArray[np.float32]

GREYING = 2.0  # how much faster than the heatmap gains opacity a photo loses its own colour
BAND = 1 << 14  # pixels of a photo at a time: fresh memory for all of it would take longer than the arithmetic
VISIBLE = 1 / 256  # half a colour step of a diverging table: a smaller magnitude looks like zero
PHOTO_BLUR = 0.01  # of the shorter side of an attribution
COARSE = 4  # enlarged that much, linear interpolation shows its creases
CANVAS = 448  # pixels: smaller heatmaps are drawn as tiles until the longer side has about this length
STRIP = 64  # pixels: the least height or width of a drawn heatmap
CHART = (960, 320)  # pixels: width and height of a bar chart


def render(heatmap: npt.ArrayLike, *, colors: str = "auto") -> Image:
    """Colour a heatmap, one pixel for each value.

    Parameters
    ----------
    heatmap : ndarray of shape (H, W)
        Values in [-1, 1], others are clipped.
    colors
        A name in `COLORS`; "auto" is blue-white-red if any value is visibly negative, else inferno.
    """
    values = _checked(heatmap)
    chosen = palette(colors, _signed(values))
    return chosen.paint(values)


def overlay(
    heatmap: npt.ArrayLike, image: Image, *, colors: str = "auto", opacity: float = 0.85, fade: bool = True
) -> Image:
    """Lay a heatmap over a photo, in the photo's size.

    The heatmap is shrunk by averages or enlarged linearly; enlarged four times or more, as activation maps are, it is
    also blurred by a third of its pixels' size. None of these makes a value or a sign that its neighbours do not have.

    Parameters
    ----------
    heatmap : ndarray of shape (H, W)
        Values in [-1, 1], others are clipped.
    image : ndarray of uint8, shape (height, width, 3)
        RGB.
    colors
        As for `render`.
    opacity
        How much the strongest value hides the photo, in [0, 1].
    fade
        True: opacity is proportional to a value's magnitude, so the photo is untouched where the heatmap is zero. So
        that hues are the heatmap's only, tables with a white zero lose their white, and the photo turns grey where the
        heatmap is strong. False: the same opacity everywhere.
    """
    values = _checked(heatmap)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise InputError(f"the photo must be uint8 of shape (H, W, 3), not {image.dtype} of shape {image.shape}")
    if not 0 <= opacity <= 1:
        raise OptionError(f"opacity must be in [0, 1], not {opacity!r}")
    chosen = palette(colors, _signed(values))
    if fade:
        chosen = chosen.for_photos()
    values, step = _resized(values, image.shape[:2]), max(1, BAND // image.shape[1])
    bands = [slice(top, top + step) for top in range(0, len(image), step)]
    return np.concatenate([_blend(values[band], image[band], chosen, opacity, fade) for band in bands])


def picture(
    values: npt.ArrayLike,
    image: Image | None = None,
    *,
    layout: str = "auto",
    pooling: str = "sum",
    percentile: float = 99.5,
    smooth: float | None = None,
    colors: str = "auto",
    opacity: float = 0.85,
    boxes: Iterable[Sequence[Any]] = (),
) -> Image:
    """Draw any attribution in a size that can be seen: over a photo, as tiles, or a vector as bars.

    Parameters
    ----------
    values, layout, pooling, percentile
        As for `heatmap`.
    image, colors, opacity
        As for `overlay`; without a photo the heatmap is drawn alone.
    smooth
        As for `heatmap`. None: nothing is smoothed, except over a photo, where single pixels could not be seen; there
        the standard deviation is 1 % of the attribution's shorter side. Blurring adds up what neighbours say, so
        opposite signs side by side cancel.
    boxes
        (x0, y0, x1, y1, label) each, in the photo's pixels: frames over all (see `with_boxes`).
    """
    boxes = list(boxes)
    if boxes and image is None:
        raise OptionError("boxes are drawn on a photo, and there is none", "Give image=.")
    if np.ndim(values) == 1 and image is None:
        return bars(values, colors=colors)
    if smooth is None:
        smooth = 0.0 if image is None else PHOTO_BLUR * min(channels_first(values, layout).shape[1:])
    values = heatmap_of(values, layout=layout, pooling=pooling, percentile=percentile, smooth=smooth)
    if image is not None:
        return with_boxes(overlay(values, image, colors=colors, opacity=opacity), boxes)
    return _tiles(render(values, colors=colors))


def bars(values: npt.ArrayLike, *, colors: str = "auto") -> Image:
    """Draw a vector as bars up and down from a zero line, scaled to its largest magnitude.

    Where there are more values than pixels, a bar reaches from the lowest to the highest of the values that share it.
    """
    vector = heatmap_of(values, percentile=100)[0]
    starts = np.arange(0, vector.size, -(-vector.size // CHART[0]))
    lows, highs = np.minimum.reduceat(vector, starts), np.maximum.reduceat(vector, starts)
    levels = np.linspace(1, -1 if _signed(vector[None]) else 0, CHART[1])[:, None]
    chosen = palette(colors, signed=True)
    above, below = (chosen.table[chosen.zero + side * (chosen.zero * 2 // 3)] for side in (1, -1))
    chart = np.full((len(levels), len(starts), 3), 255, np.uint8)
    chart[(levels > 0) & (levels <= highs)] = above
    chart[(levels < 0) & (levels >= lows)] = below
    width = max(1, CHART[0] // len(starts))
    chart = np.repeat(chart, width, axis=1)
    if width > 3:
        chart[:, width - 1 :: width] = 255  # a gap between neighbours
    chart[np.abs(levels).argmin()] = 128  # the zero line
    return np.pad(chart, ((16, 16), (16, 16), (0, 0)), constant_values=255)


def _blend(heatmap: Heatmap, image: Image, colors: Palette, opacity: float, fade: bool) -> Image:
    """Mix the photo's grey into it, then the colours into both; channel by channel, as numpy is slow on rows of 3."""
    photo, painted = cv2.split(image), cv2.split(colors.paint(heatmap))
    alpha: npt.NDArray[np.float64] | float = opacity
    if fade:
        alpha = opacity * np.minimum(np.abs(heatmap), 1, dtype=np.float64)
        grey = 0.299 * photo[0] + 0.587 * photo[1] + 0.114 * photo[2]
        photo = [_mixed(channel, grey, np.minimum(GREYING * alpha, 1)) for channel in photo]
    mixed = [_mixed(*channels, alpha) + 0.5 for channels in zip(photo, painted, strict=True)]
    return np.asarray(cv2.merge([channel.astype(np.uint8) for channel in mixed]), np.uint8)


def _mixed(start: npt.NDArray[Any], end: npt.NDArray[Any], share: npt.NDArray[Any] | float) -> npt.NDArray[np.float64]:
    """``start + share (end - start)``."""
    mixed: npt.NDArray[np.float64] = np.subtract(end, start, dtype=np.float64)
    mixed *= share
    mixed += start
    return mixed


def _tiles(rgb: Image) -> Image:
    """Enlarge a small image without blurring it; cells of a very flat one become rectangles."""
    height, width = rgb.shape[:2]
    factor = max(1, CANVAS // max(height, width))
    size = (max(width * factor, -(-STRIP // width) * width), max(height * factor, -(-STRIP // height) * height))
    return np.asarray(cv2.resize(rgb, size, interpolation=cv2.INTER_NEAREST), np.uint8)


def _resized(values: Heatmap, shape: tuple[int, int]) -> Heatmap:
    if values.shape == shape:
        return values
    shrinks = shape[0] < values.shape[0] or shape[1] < values.shape[1]
    how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    resized = cv2.resize(values, (shape[1], shape[0]), interpolation=how)
    factors = shape[0] / values.shape[0], shape[1] / values.shape[1]
    if min(factors) >= COARSE:
        resized = cv2.GaussianBlur(resized, (0, 0), sigmaX=factors[1] / 3, sigmaY=factors[0] / 3)
    return np.asarray(resized, np.float32).reshape(shape)


def _signed(values: Heatmap) -> bool:
    return bool(values.min() < -VISIBLE)


def _checked(heatmap: npt.ArrayLike) -> Heatmap:
    values: npt.NDArray[Any] = np.asarray(heatmap)
    if values.ndim != 2 or not values.size or not np.isfinite(values).all():
        raise InputError(f"a heatmap is a finite array of two axes (see heatmap()); this one has shape {values.shape}")
    return np.ascontiguousarray(values, np.float32)
