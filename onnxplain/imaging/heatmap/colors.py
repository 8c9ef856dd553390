"""Colour tables: rows of RGB colours, sequential (zero in the first row) or diverging (zero in the middle row)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from onnxplain.arguments import one_of

Table = npt.NDArray[np.uint8]

# Evenly spaced RGB anchors for -1 to 1; the middle one, zero, is white. All tables but the first are the eleven-class
# schemes of ColorBrewer (Brewer, 2003) with white in place of their light grey.
_DIVERGING = {
    "blue_white_red": "0032b4 4b86fa a5c3fc ffffff f7a5aa f05055 c00018",
    "rdbu": "053061 2166ac 4393c3 92c5de d1e5f0 ffffff fddbc7 f4a582 d6604d b2182b 67001f",
    "puor": "2d004b 542788 8073ac b2abd2 d8daeb ffffff fee0b6 fdb863 e08214 b35806 7f3b08",
    "brbg": "003c30 01665e 35978f 80cdc1 c7eae5 ffffff f6e8c3 dfc27d bf812d 8c510a 543005",
}
_SEQUENTIAL = ("inferno", "magma", "plasma", "viridis", "cividis", "turbo", "jet", "hot")  # names of OpenCV's tables
COLORS = ("auto", *_DIVERGING, *_SEQUENTIAL)
CHART_STRENGTH = 2 / 3  # value whose colour a chart's bars have: clearly coloured, and lighter than the strongest


@dataclass(frozen=True)
class Palette:
    """A colour table.

    Attributes
    ----------
    table
        RGB colours, uint8 of shape (rows, 3).
    zero
        The row of value 0; value 1 has the last row.
    """

    table: Table
    zero: int

    def paint(self, values: npt.NDArray[Any]) -> Table:
        """Return the colours of values in [-1, 1], with a last axis for RGB; values outside the table are clipped."""
        positions = np.clip(values, -1, 1, dtype=np.float64) * (len(self.table) - 1 - self.zero) + self.zero
        rows: npt.NDArray[np.intp] = np.maximum(positions + 0.5, 0).astype(np.intp)
        return self.table.take(rows, axis=0)

    def of_sign(self, sign: int) -> Table:
        """Return the colour, of shape (3,), that stands for positive (1) or negative (-1) values in charts."""
        return np.asarray(self.table[self.zero + sign * int(self.zero * CHART_STRENGTH)], np.uint8)

    def for_photos(self) -> Palette:
        """Return the palette to lay over a photo with opacity equal to the value: without white, if zero is white.

        The new colour over white, at the opacity of its value, gives the old colour. Over a photo, the photo then shows
        where the old palette is white; with the white, weak values would veil it.
        """
        white = self.table[self.zero].astype(np.float64)
        if not (white == 255).all():
            return self
        rows = np.arange(len(self.table)) - self.zero
        strength = np.maximum(np.abs(rows), 1)[:, None] / np.abs(rows).max()
        pure = white + (self.table - white) / strength
        return Palette(np.clip(pure + 0.5, 0, 255).astype(np.uint8), self.zero)


def palette(colors: str, signed: bool) -> Palette:
    """Return the palette of a heatmap.

    Parameters
    ----------
    colors
        A name in `COLORS`; "auto" is "blue_white_red" for signed maps and "inferno" for others.
    signed
        Whether the map has negative values. Zero is then the middle row of any table; otherwise it is the first row of
        sequential tables.

    Raises
    ------
    OptionError
        The name is unknown.
    """
    one_of(COLORS).check("color scale", colors)
    if colors == "auto":
        colors = "blue_white_red" if signed else "inferno"
    table = _table(colors)
    return Palette(table, len(table) // 2 if signed or colors in _DIVERGING else 0)


@cache
def _table(name: str) -> Table:
    if name in _DIVERGING:
        anchors = np.array([list(bytes.fromhex(color)) for color in _DIVERGING[name].split()])
        at, rows = np.linspace(-1, 1, len(anchors)), np.linspace(-1, 1, 257)  # odd: zero has a row of its own
        table = np.stack([np.interp(rows, at, anchors[:, c]) for c in range(3)], axis=1)
        return np.asarray(np.rint(table), np.uint8)
    code = getattr(cv2, f"COLORMAP_{name.upper()}")
    bgr = cv2.applyColorMap(np.arange(256, dtype=np.uint8)[:, None], code)[:, 0]
    return np.ascontiguousarray(bgr[:, ::-1], np.uint8)
