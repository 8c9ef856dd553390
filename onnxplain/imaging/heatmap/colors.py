"""Colour tables: rows of RGB colours, sequential (from zero up) or diverging (zero in the middle)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from onnxplain.errors import OptionError, did_you_mean

Table = npt.NDArray[np.uint8]

# Evenly spaced anchors from -1 to 1, white in the middle: white is zero. All but the first are the eleven classes of
# ColorBrewer (Brewer, 2003) with white for their light grey.
_DIVERGING = {
    "blue_white_red": "0032b4 4b86fa a5c3fc ffffff f7a5aa f05055 c00018",
    "rdbu": "053061 2166ac 4393c3 92c5de d1e5f0 ffffff fddbc7 f4a582 d6604d b2182b 67001f",
    "puor": "2d004b 542788 8073ac b2abd2 d8daeb ffffff fee0b6 fdb863 e08214 b35806 7f3b08",
    "brbg": "003c30 01665e 35978f 80cdc1 c7eae5 ffffff f6e8c3 dfc27d bf812d 8c510a 543005",
}
_SEQUENTIAL = ("inferno", "magma", "plasma", "viridis", "cividis", "turbo", "jet", "hot")  # OpenCV's
COLORS = ("auto", *_DIVERGING, *_SEQUENTIAL)


@dataclass(frozen=True)
class Palette:
    """A colour table, and the row that zero has in it."""

    table: Table
    zero: int

    def paint(self, values: npt.NDArray[Any]) -> Table:
        """Colour values: 0 with row `zero`, 1 with the last one; what lies outside the table is clipped."""
        places = np.clip(values, -1, 1, dtype=np.float64) * (len(self.table) - 1 - self.zero) + self.zero
        rows: npt.NDArray[np.intp] = np.maximum(places + 0.5, 0).astype(np.intp)
        return self.table.take(rows, axis=0)

    def for_photos(self) -> Palette:
        """Take the white out, where zero is white: a colour laid over white at its own strength is the old colour.

        On a photo, white would be a veil over all that is weak; without it the photo stands where the white was.
        """
        white = self.table[self.zero].astype(np.float64)
        if not (white == 255).all():
            return self
        rows = np.arange(len(self.table)) - self.zero
        strength = np.maximum(np.abs(rows), 1)[:, None] / np.abs(rows).max()
        pure = white + (self.table - white) / strength
        return Palette(np.clip(pure + 0.5, 0, 255).astype(np.uint8), self.zero)


def palette(colors: str, signed: bool) -> Palette:
    """Choose the colours of a heatmap.

    Parameters
    ----------
    colors
        A name in `COLORS`; "auto" is "blue_white_red" for signed maps and "inferno" for the others.
    signed
        Whether the map has negative values. Then zero is in the middle of every table, else it is the first row of
        the sequential ones.
    """
    if colors not in COLORS:
        raise OptionError(f"unknown colors {colors!r}", did_you_mean(str(colors), COLORS))
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
