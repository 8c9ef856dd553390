"""Attributions of volumes as radiologists view scans: slices side by side, in order, on one scale."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from onnxplain.arguments import one_of
from onnxplain.errors import InputError
from onnxplain.imaging.heatmap import letters
from onnxplain.imaging.heatmap.draw import Image, overlay, render
from onnxplain.imaging.heatmap.reduce import LAYOUTS
from onnxplain.imaging.heatmap.reduce import heatmap as heatmap_of

SLICES, COLUMNS = 16, 4  # slices shown at most, and in a row
SIDE = 224  # pixels: small slices are enlarged until the longer side has about this length
WINDOW = (1, 99)  # percentiles of a scan that become black and white
GAP = 4  # pixels between slices
LABEL_BAND = 18  # pixels above a slice, for its number
LABEL_SIZE = 0.4  # OpenCV's font scale: letters 9 pixels high


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
    """Draw a volume's attribution as numbered slices along its first spatial axis, row by row.

    A volume of up to 16 slices is drawn completely. A larger one is cut into 16 slabs, and each slab is represented by
    its slice with the largest sum of magnitudes, so the strongest slice of all is always shown. All slices have the
    same scale. A maximum projection would lose depth and sign.

    Parameters
    ----------
    values : ndarray of shape (C, D, H, W) or (D, H, W, C)
        The attribution of one sample.
    scan : ndarray of shape (D, H, W), or as ``values`` with any C
        The volume to lay the attribution over, drawn in grey from its 1st to its 99th percentile; channels are
        averaged.
    layout, pooling, percentile
        As in `heatmap`: "CHW" puts the channels first, "HWC" last.
    colors, opacity
        As in `overlay`.

    Returns
    -------
    ndarray of uint8, shape (height, width, 3)
        RGB.

    Raises
    ------
    InputError
        The attribution does not have four axes, the scan has another size, or one of them has NaN or infinity.
    OptionError
        An option is invalid.
    """
    attribution = _channels_first(np.asarray(values), layout)
    channels, depth, height, width = attribution.shape
    flat = attribution.reshape(channels, depth * height, width)
    heat = heatmap_of(flat, layout="CHW", pooling=pooling, percentile=percentile).reshape(depth, height, width)
    slices = _strongest(np.abs(heat).sum((1, 2)))
    factor = max(1, SIDE // max(height, width))
    size = (width * factor, height * factor)
    tiles = [cv2.resize(heat[i], size, interpolation=cv2.INTER_NEAREST) for i in slices]
    if scan is None:
        drawn = render(_tiled(tiles), colors=colors)
    else:
        grey = _grey(np.asarray(scan), layout, heat.shape)
        under = _tiled([cv2.resize(grey[i], size, interpolation=cv2.INTER_LINEAR) for i in slices])
        drawn = overlay(_tiled(tiles), np.repeat(under[..., None], 3, axis=2), colors=colors, opacity=opacity)
    return _labelled(drawn, size, [f"{i + 1}/{depth}" for i in slices])


def _channels_first(array: npt.NDArray[Any], layout: str) -> npt.NDArray[Any]:
    one_of(LAYOUTS).check("layout", layout)
    if array.ndim != 4 or not array.size:
        hint = "Give one sample, without its batch axis: (C, D, H, W) or (D, H, W, C)."
        raise InputError(f"a volume must have four axes, not shape {array.shape}", hint)
    if layout == "auto":
        layout = "HWC" if array.shape[3] in (1, 3, 4) and array.shape[0] not in (1, 3, 4) else "CHW"
    return np.moveaxis(array, 3, 0) if layout == "HWC" else array


def _strongest(strengths: npt.NDArray[Any]) -> list[int]:
    """Return the position of the strongest slice of each slab; there are at most `SLICES` slabs of equal thickness."""
    slabs = np.array_split(np.arange(len(strengths)), min(SLICES, len(strengths)))
    return [int(slab[strengths[slab].argmax()]) for slab in slabs]


def _grey(scan: npt.NDArray[Any], layout: str, shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    """Return a scan as grey levels, of shape (D, H, W)."""
    volume = scan if scan.ndim == 3 else _channels_first(scan, layout).mean(axis=0)
    if volume.shape != shape or not np.isfinite(volume).all():
        raise InputError(f"a scan of shape {scan.shape} does not belong to a volume of shape {shape}, or is not finite")
    black, white = np.percentile(volume, WINDOW)
    return np.asarray(np.clip((volume - black) / ((white - black) or 1) * 255, 0, 255), np.uint8)


def _tiled(tiles: list[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """Put tiles of one size side by side, `COLUMNS` in a row; the rest of the last row is zero."""
    height, width = tiles[0].shape
    columns = min(COLUMNS, len(tiles))
    rows = -(-len(tiles) // columns)
    sheet = np.zeros((rows, height, columns, width), tiles[0].dtype)
    for number, tile in enumerate(tiles):
        sheet[number // columns, :, number % columns] = tile
    return sheet.reshape(rows * height, columns * width)


def _labelled(drawn: Image, size: tuple[int, int], labels: list[str]) -> Image:
    """Separate the slices of a tiled picture by white lines, with a label above the upper left corner of each."""
    width, height = size
    columns = drawn.shape[1] // width
    rows = drawn.shape[0] // height
    sheet = np.full((rows * (height + LABEL_BAND) + GAP, columns * (width + GAP) + GAP, 3), 255, np.uint8)
    for number, label in enumerate(labels):
        row, column = divmod(number, columns)
        top, left = row * (height + LABEL_BAND) + LABEL_BAND, column * (width + GAP) + GAP
        tile = drawn[row * height : (row + 1) * height, column * width : (column + 1) * width]
        sheet[top : top + height, left : left + width] = tile
        letters.write(sheet, label, left + 1, top - 5, LABEL_SIZE)
    return sheet
