"""Heatmaps to RGB images: alone, over a photo, or as bars."""

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

GREYING = 2.0  # share of a photo's colour that turns grey, per unit of the heatmap's opacity (full grey at 0.5)
BAND = 1 << 14  # pixels blended at a time: allocating fresh memory for a whole photo takes longer than the arithmetic
VISIBLE = 1 / 256  # magnitude; half a row of a diverging table, below which a value has the colour of zero
PHOTO_BLUR = 0.01  # standard deviation, as a share of the attribution's shorter side
COARSE = 4  # enlargement factor from which linear interpolation shows visible creases
CANVAS = 448  # pixels: smaller heatmaps are enlarged until the longer side has about this length
STRIP = 64  # pixels: minimum height and width of a drawn heatmap
CHART = (960, 320)  # pixels: width and height of a bar chart
CHART_MARGIN = 16  # pixels
GREY_WEIGHTS = (0.299, 0.587, 0.114)  # of R, G and B in a pixel's luma (ITU-R BT.601)


def render(heatmap: npt.ArrayLike, *, colors: str = "auto") -> Image:
    """Colour a heatmap, one pixel for each value.

    Parameters
    ----------
    heatmap : ndarray of shape (H, W)
        Values in [-1, 1]; others are clipped.
    colors
        A name in `COLORS`; "auto" is blue-white-red if a value is visibly negative (below -1/256), else inferno.

    Returns
    -------
    ndarray of uint8, shape (H, W, 3)
        RGB.

    Raises
    ------
    InputError
        The heatmap is empty, not 2-D, or not finite.
    OptionError
        The name of the colours is unknown.
    """
    values = _checked(heatmap)
    return palette(colors, _signed(values)).paint(values)


def overlay(
    heatmap: npt.ArrayLike, image: Image, *, colors: str = "auto", opacity: float = 0.85, fade: bool = True
) -> Image:
    """Lay a heatmap over a photo, in the photo's size.

    The heatmap is shrunk by area averaging or enlarged by linear interpolation. If it is enlarged four times or more,
    as class activation maps usually are, it is also blurred by a third of the size of its pixels. None of this creates
    values or signs outside the range of neighbouring values.

    Parameters
    ----------
    heatmap : ndarray of shape (H, W)
        Values in [-1, 1]; others are clipped.
    image : ndarray of uint8, shape (height, width, 3)
        The photo, RGB.
    colors
        As in `render`.
    opacity
        Opacity of values of magnitude 1, from 0 (invisible) to 1 (hides the photo).
    fade
        True: opacity is proportional to a value's magnitude, so the photo is unchanged where the heatmap is zero. All
        hues then belong to the heatmap: the photo turns grey where the heatmap is strong, and tables with a white zero
        are used without their white. False: the same opacity everywhere.

    Returns
    -------
    ndarray of uint8, shape (height, width, 3)
        RGB.

    Raises
    ------
    InputError
        The heatmap is empty, not 2-D or not finite, or the photo is not uint8 of shape (H, W, 3).
    OptionError
        The opacity or the name of the colours is invalid.
    """
    values = _checked(heatmap)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise InputError(f"the photo must be uint8 of shape (H, W, 3), not {image.dtype} of shape {image.shape}")
    if not 0 <= opacity <= 1:
        raise OptionError(f"opacity must be in [0, 1], not {opacity!r}")
    table = palette(colors, _signed(values))
    if fade:
        table = table.for_photos()
    values, step = _resized(values, image.shape[:2]), max(1, BAND // image.shape[1])
    bands = [slice(top, top + step) for top in range(0, len(image), step)]
    return np.concatenate([_blend(values[band], image[band], table, opacity, fade) for band in bands])


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
    """Draw an attribution at a visible size: over a photo, alone as enlarged pixels, or a vector as bars.

    Parameters
    ----------
    values, layout, pooling, percentile
        As in `heatmap`.
    image, colors, opacity
        As in `overlay`; without a photo, the heatmap is drawn alone.
    smooth
        As in `heatmap`. None: over a photo, where single pixels would be invisible, 1 % of the attribution's shorter
        side; without a photo, no smoothing. Smoothing averages neighbours, so adjacent opposite signs cancel.
    boxes
        Boxes to draw on top: (x0, y0, x1, y1, label) each, in the photo's pixels (see `with_boxes`).

    Returns
    -------
    ndarray of uint8, shape (height, width, 3)
        RGB.

    Raises
    ------
    InputError, OptionError
        As in `heatmap`, `overlay` and `with_boxes`; or there are boxes and no photo.
    """
    boxes = list(boxes)
    if boxes and image is None:
        raise OptionError("boxes are drawn on a photo, and there is no photo", "Give image=.")
    if np.ndim(values) == 1 and image is None:
        return bars(values, colors=colors)
    if smooth is None:
        smooth = 0.0 if image is None else PHOTO_BLUR * min(channels_first(values, layout).shape[1:])
    values = heatmap_of(values, layout=layout, pooling=pooling, percentile=percentile, smooth=smooth)
    if image is not None:
        return with_boxes(overlay(values, image, colors=colors, opacity=opacity), boxes)
    return _tiles(render(values, colors=colors))


def bars(values: npt.ArrayLike, *, colors: str = "auto") -> Image:
    """Draw a vector as bars above and below a zero line, scaled to its largest magnitude.

    With more values than pixels, several values share a bar, which reaches from the lowest to the highest of them.

    Parameters
    ----------
    values : ndarray of shape (F,)
        The attribution.
    colors
        A name in `COLORS`; "auto" is blue-white-red.

    Returns
    -------
    ndarray of uint8, shape (height, width, 3)
        RGB.
    """
    vector = heatmap_of(values, percentile=100)[0]
    starts = np.arange(0, vector.size, -(-vector.size // CHART[0]))
    lows, highs = np.minimum.reduceat(vector, starts), np.maximum.reduceat(vector, starts)
    levels = np.linspace(1, -1 if _signed(vector[None]) else 0, CHART[1])[:, None]
    above, below = (palette(colors, signed=True).of_sign(side) for side in (1, -1))
    chart = np.full((len(levels), len(starts), 3), 255, np.uint8)
    chart[(levels > 0) & (levels <= highs)] = above
    chart[(levels < 0) & (levels >= lows)] = below
    width = max(1, CHART[0] // len(starts))
    chart = np.repeat(chart, width, axis=1)
    if width > 3:
        chart[:, width - 1 :: width] = 255  # a gap between neighbours
    chart[np.abs(levels).argmin()] = 128  # the zero line
    return np.pad(chart, ((CHART_MARGIN, CHART_MARGIN), (CHART_MARGIN, CHART_MARGIN), (0, 0)), constant_values=255)


def _blend(heatmap: Heatmap, image: Image, colors: Palette, opacity: float, fade: bool) -> Image:
    """Turn the photo towards grey, then lay the colours over it; by channel, as numpy is slow on a last axis of 3."""
    photo, painted = cv2.split(image), cv2.split(colors.paint(heatmap))
    alpha: npt.NDArray[np.float64] | float = opacity
    if fade:
        alpha = opacity * np.minimum(np.abs(heatmap), 1, dtype=np.float64)
        grey = GREY_WEIGHTS[0] * photo[0] + GREY_WEIGHTS[1] * photo[1] + GREY_WEIGHTS[2] * photo[2]
        photo = [_mixed(channel, grey, np.minimum(GREYING * alpha, 1)) for channel in photo]
    mixed = [_mixed(*channels, alpha) + 0.5 for channels in zip(photo, painted, strict=True)]
    return np.asarray(cv2.merge([channel.astype(np.uint8) for channel in mixed]), np.uint8)


def _mixed(start: npt.NDArray[Any], end: npt.NDArray[Any], share: npt.NDArray[Any] | float) -> npt.NDArray[np.float64]:
    """Compute ``start + share (end - start)``, in one temporary array."""
    mixed: npt.NDArray[np.float64] = np.subtract(end, start, dtype=np.float64)
    mixed *= share
    mixed += start
    return mixed


def _tiles(rgb: Image) -> Image:
    """Enlarge a small image by whole factors without blurring; the pixels of a very flat image become rectangles."""
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
        raise InputError(
            f"a heatmap must be a finite, non-empty array of two axes, not one of shape {values.shape}",
            "heatmap() makes one from an attribution.",
        )
    return np.ascontiguousarray(values, np.float32)
