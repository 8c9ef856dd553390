"""Volumes as radiologists look at them: slices side by side, in order, on one scale."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from onnxplain.errors import InputError, OptionError, did_you_mean
from onnxplain.imaging.heatmap import letters
from onnxplain.imaging.heatmap.draw import Image, overlay, render
from onnxplain.imaging.heatmap.reduce import LAYOUTS
from onnxplain.imaging.heatmap.reduce import heatmap as heatmap_of

SLICES, COLUMNS = 16, 4
SIDE = 224  # pixels: the longer side of a slice is enlarged to about this
WINDOW = (1, 99)  # percentiles of a scan that become black and white
GAP = 4  # pixels between slices


def montage(
    values: npt.ArrayLike,
    scan: npt.ArrayLike | None = None,
    *,
    layout: str = "auto",
    pooling: str = "sum",
    percentile: float = 99.5,
    colors: str = "auto",
    opacity: float = 0.85,
) -> Image:
    """Draw a volume's attribution as slices along its first spatial axis, row by row, each with its number of all.

    All slices if there are at most 16; otherwise the volume is cut into 16 slabs, and each shows its slice with the
    largest sum of magnitudes, so that the strongest of all is seen. All are drawn on one scale and can be compared. It
    is no maximum projection: that would lose depth and sign.

    Parameters
    ----------
    values : ndarray of shape (C, D, H, W) or (D, H, W, C)
        The attribution of one sample.
    scan : ndarray of the same shape, but for C, or (D, H, W)
        The volume to lay it over, in grey from its 1st to its 99th percentile; channels are averaged.
    layout, pooling, percentile
        As for `heatmap`; "CHW" and "HWC" say whether the channels come first or last.
    colors, opacity
        As for `overlay`.

    Raises
    ------
    InputError
        The attribution is no volume, the scan has another size, or either has NaN or infinity.
    """
    given = _channels_first(np.asarray(values), layout)
    channels, depth, height, width = given.shape
    flat = given.reshape(channels, depth * height, width)
    heat = heatmap_of(flat, layout="CHW", pooling=pooling, percentile=percentile).reshape(depth, height, width)
    chosen = _chosen(np.abs(heat).sum((1, 2)))
    factor = max(1, SIDE // max(height, width))
    size = (width * factor, height * factor)
    tiles = [cv2.resize(heat[i], size, interpolation=cv2.INTER_NEAREST) for i in chosen]
    if scan is None:
        drawn = render(_tiled(tiles), colors=colors)
    else:
        grey = _grey(np.asarray(scan), layout, heat.shape)
        under = _tiled([cv2.resize(grey[i], size, interpolation=cv2.INTER_LINEAR) for i in chosen])
        drawn = overlay(_tiled(tiles), np.repeat(under[..., None], 3, axis=2), colors=colors, opacity=opacity)
    return _labelled(drawn, size, [f"{i + 1}/{depth}" for i in chosen])


def _channels_first(array: npt.NDArray[Any], layout: str) -> npt.NDArray[Any]:
    if layout not in LAYOUTS:
        raise OptionError(f"unknown layout {layout!r}", did_you_mean(str(layout), LAYOUTS))
    if array.ndim != 4 or not array.size:
        hint = "Give one sample, without its batch axis: (C, D, H, W) or (D, H, W, C)."
        raise InputError(f"a volume has four axes; this one has shape {array.shape}", hint)
    if layout == "auto":
        layout = "HWC" if array.shape[3] in (1, 3, 4) and array.shape[0] not in (1, 3, 4) else "CHW"
    return np.moveaxis(array, 3, 0) if layout == "HWC" else array


def _chosen(strengths: npt.NDArray[Any]) -> list[int]:
    """The strongest slice of each of at most `SLICES` slabs."""
    slabs = np.array_split(np.arange(len(strengths)), min(SLICES, len(strengths)))
    return [int(slab[strengths[slab].argmax()]) for slab in slabs]


def _grey(scan: npt.NDArray[Any], layout: str, shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    volume = scan if scan.ndim == 3 else _channels_first(scan, layout).mean(axis=0)
    if volume.shape != shape or not np.isfinite(volume).all():
        raise InputError(f"a scan of shape {scan.shape} does not belong to a volume of shape {shape}, or is not finite")
    black, white = np.percentile(volume, WINDOW)
    return np.asarray(np.clip((volume - black) / ((white - black) or 1) * 255, 0, 255), np.uint8)


def _tiled(tiles: list[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """Put tiles of one size side by side, `COLUMNS` in a row; what is left of the last row stays zero."""
    height, width = tiles[0].shape
    columns = min(COLUMNS, len(tiles))
    rows = -(-len(tiles) // columns)
    sheet = np.zeros((rows, height, columns, width), tiles[0].dtype)
    for place, tile in enumerate(tiles):
        sheet[place // columns, :, place % columns] = tile
    return sheet.reshape(rows * height, columns * width)


def _labelled(drawn: Image, size: tuple[int, int], labels: list[str]) -> Image:
    """Part the slices by white lines, number them above their upper left corners, and leave the rest white."""
    width, height = size
    columns = drawn.shape[1] // width
    rows = drawn.shape[0] // height
    band = 18
    sheet = np.full((rows * (height + band) + GAP, columns * (width + GAP) + GAP, 3), 255, np.uint8)
    for place, label in enumerate(labels):
        row, column = divmod(place, columns)
        top, left = row * (height + band) + band, column * (width + GAP) + GAP
        tile = drawn[row * height : (row + 1) * height, column * width : (column + 1) * width]
        sheet[top : top + height, left : left + width] = tile
        letters.write(sheet, label, left + 1, top - 5, 0.4)
    return sheet
