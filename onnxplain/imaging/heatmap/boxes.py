"""Bounding boxes of detectors, drawn onto a photo."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import cv2
import numpy as np

from onnxplain.errors import OptionError
from onnxplain.imaging.heatmap import letters
from onnxplain.imaging.heatmap.letters import Image

FRAME, EDGE = (255, 235, 0), (0, 0, 0)  # RGB: yellow with black edges stands out from a heatmap's red and blue
LINES_PER_SIDE = 250  # the photo's longer side divided by a line's width
FONT_PER_LINE, SMALLEST_FONT = 0.2, 0.4  # OpenCV font scale per pixel of line width, and its minimum (9-pixel letters)
LABEL_PADDING = 3  # pixels between a label's text and the ends of its background
LIMIT = 2**15  # pixels; coordinates are clipped to this magnitude, as OpenCV uses 32-bit fixed point


def with_boxes(image: Image, boxes: Iterable[Sequence[Any]]) -> Image:
    """Draw boxes and their labels onto a copy of an image.

    Parameters
    ----------
    image : ndarray of uint8, shape (H, W, 3)
        RGB.
    boxes
        (x0, y0, x1, y1) or (x0, y0, x1, y1, label) each: left, top, right and bottom in the image's pixels. Parts
        outside the image are clipped. Labels are drawn in ASCII.

    Returns
    -------
    ndarray of uint8, shape (H, W, 3)

    Raises
    ------
    OptionError
        A box is invalid: it has another length, a number that is not finite, or its right or bottom side is not beyond
        its left or top side.
    """
    drawn = np.ascontiguousarray(image).copy()
    line = max(2, round(max(image.shape[:2]) / LINES_PER_SIDE))
    size = max(SMALLEST_FONT, line * FONT_PER_LINE)
    parsed = [_parsed(box) for box in boxes]
    for corners, _ in parsed:
        cv2.rectangle(drawn, corners[:2], corners[2:], EDGE, line + 2, cv2.LINE_AA)
        cv2.rectangle(drawn, corners[:2], corners[2:], FRAME, line, cv2.LINE_AA)
    for (left, top, right, bottom), text in parsed:  # labels last: no frame crosses them
        in_image = left < image.shape[1] and top < image.shape[0] and right > 0 and bottom > 0
        if text and in_image:
            width, height = letters.extent(text, size)
            width, height = width + 2 * LABEL_PADDING, height + 2 * LABEL_PADDING + 1
            left, base = int(np.clip(left, 0, max(0, image.shape[1] - width))), max(top, height)
            drawn[base - height : base, left : left + width] = FRAME
            letters.write(drawn, text, left + LABEL_PADDING, base - LABEL_PADDING - 1, size)
    return drawn


def _parsed(box: Sequence[Any]) -> tuple[tuple[int, int, int, int], str]:
    """Check a box; return its corners in whole pixels, and its label in ASCII."""
    try:
        x0, y0, x1, y1, *label = box
        corners = np.array([x0, y0, x1, y1], np.float64)
    except (TypeError, ValueError):
        corners, label = np.zeros(4), []
    if len(label) > 1 or not np.isfinite(corners).all() or not (corners[:2] < corners[2:]).all():
        hint = "A box is (x0, y0, x1, y1, label): left, top, right, bottom in the photo's pixels."
        raise OptionError(f"{tuple(np.ravel(np.asarray(box, object)))!r} is not a box", hint)
    x0, y0, x1, y1 = np.rint(np.clip(corners, -LIMIT, LIMIT)).astype(int).tolist()
    return (x0, y0, x1, y1), letters.plain(str(*label))
