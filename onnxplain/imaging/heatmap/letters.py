"""Short texts inside pictures, with OpenCV's own fonts: these have ASCII letters only."""

from __future__ import annotations

import unicodedata

import cv2
import numpy as np
import numpy.typing as npt

Image = npt.NDArray[np.uint8]

FONT = cv2.FONT_HERSHEY_SIMPLEX
LONGEST = 48  # letters: longer texts are cut
BLACK, WHITE = (0, 0, 0), (255, 255, 255)


def plain(text: str) -> str:
    """Spell a text in ASCII on one line, cut to `LONGEST`: accents fall off, what has no such letter becomes "?"."""
    letters = unicodedata.normalize("NFKD", " ".join(text.split()))
    spelt = "".join(c for c in letters if not unicodedata.combining(c)).encode("ascii", "replace").decode()
    spelt = "".join(c if c.isprintable() else "?" for c in spelt)
    return spelt if len(spelt) <= LONGEST else spelt[: LONGEST - 3] + "..."


def extent(text: str, size: float) -> tuple[int, int]:
    """Width and height of a plain text in pixels; a size of 1 has letters 22 pixels high."""
    (width, height), _ = cv2.getTextSize(text, FONT, size, 1)
    return width, height


def write(image: Image, text: str, left: int, baseline: int, size: float, color: tuple[int, int, int] = BLACK) -> None:
    """Write a plain text into a contiguous image."""
    cv2.putText(image, text, (left, baseline), FONT, size, color, 1, cv2.LINE_AA)


def readable_on(background: npt.ArrayLike) -> tuple[int, int, int]:
    """Black or white, whichever has more contrast to a colour as WCAG 2 defines it; that is at least 4.58 : 1."""
    part = np.asarray(background) / 255
    linear = np.where(part <= 0.04045, part / 12.92, ((part + 0.055) / 1.055) ** 2.4)
    luminance = float(linear @ [0.2126, 0.7152, 0.0722])
    return BLACK if (luminance + 0.05) ** 2 > 1.05 * 0.05 else WHITE
