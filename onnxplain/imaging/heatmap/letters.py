"""Short ASCII texts inside pictures, in OpenCV's built-in font, which has no other letters."""

from __future__ import annotations

import unicodedata

import cv2
import numpy as np
import numpy.typing as npt

Image = npt.NDArray[np.uint8]

FONT = cv2.FONT_HERSHEY_SIMPLEX
LONGEST = 48  # characters; longer texts are cut
BLACK, WHITE = (0, 0, 0), (255, 255, 255)  # RGB


def plain(text: str) -> str:
    """Return a text in ASCII, on one line, cut to `LONGEST`: accents are dropped, other characters become "?"."""
    letters = unicodedata.normalize("NFKD", " ".join(text.split()))
    spelt = "".join(c for c in letters if not unicodedata.combining(c)).encode("ascii", "replace").decode()
    spelt = "".join(c if c.isprintable() else "?" for c in spelt)
    return spelt if len(spelt) <= LONGEST else spelt[: LONGEST - 3] + "..."


def extent(text: str, size: float) -> tuple[int, int]:
    """Return width and height of a plain text in pixels; ``size`` 1 has letters 22 pixels high."""
    (width, height), _ = cv2.getTextSize(text, FONT, size, 1)
    return width, height


def write(image: Image, text: str, left: int, baseline: int, size: float, color: tuple[int, int, int] = BLACK) -> None:
    """Draw a plain text into a contiguous image, in place; ``left`` and ``baseline`` are in pixels."""
    cv2.putText(image, text, (left, baseline), FONT, size, color, 1, cv2.LINE_AA)


def readable_on(background: npt.ArrayLike) -> tuple[int, int, int]:
    """Return black or white, whichever has the higher WCAG 2 contrast to an RGB colour: always at least 4.58 : 1."""
    part = np.asarray(background) / 255
    linear = np.where(part <= 0.04045, part / 12.92, ((part + 0.055) / 1.055) ** 2.4)
    luminance = float(linear @ [0.2126, 0.7152, 0.0722])
    return BLACK if (luminance + 0.05) ** 2 > 1.05 * 0.05 else WHITE
