"""Detectors' boxes on a photo."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import cv2
import numpy as np

from onnxplain.errors import OptionError
from onnxplain.imaging.heatmap import letters
from onnxplain.imaging.heatmap.letters import Image

FRAME, EDGE = (255, 235, 0), (0, 0, 0)  # yellow between black lines: neither a heatmap's red nor its blue
PART = 250  # a line is that part of the photo's longer side


def with_boxes(image: Image, boxes: Iterable[Sequence[Any]]) -> Image:
    """Draw boxes and their labels onto a copy of an RGB image.

    Parameters
    ----------
    image : ndarray of uint8, shape (H, W, 3)
        RGB.
    boxes
        (x0, y0, x1, y1) or (x0, y0, x1, y1, label) each, in the image's pixels: left, top, right, bottom. What lies
        outside of the image is not seen. Labels are spelt in ASCII.

    Raises
    ------
    OptionError
        A box that is none: another length, no finite numbers, or the right side not right of the left one.
    """
    drawn = np.ascontiguousarray(image).copy()
    line = max(2, round(max(image.shape[:2]) / PART))
    size = max(0.4, line * 0.2)
    places = [_place(box) for box in boxes]
    for corners, _ in places:
        cv2.rectangle(drawn, corners[:2], corners[2:], EDGE, line + 2, cv2.LINE_AA)
        cv2.rectangle(drawn, corners[:2], corners[2:], FRAME, line, cv2.LINE_AA)
    for (left, top, right, bottom), text in places:  # labels last: no frame crosses them
        seen = left < image.shape[1] and top < image.shape[0] and right > 0 and bottom > 0
        if text and seen:
            width, height = letters.extent(text, size)
            left, base = int(np.clip(left, 0, max(0, image.shape[1] - width - 6))), max(top, height + 7)
            drawn[base - height - 7 : base, left : left + width + 6] = FRAME
            letters.write(drawn, text, left + 3, base - 4, size)
    return drawn


def _place(box: Sequence[Any]) -> tuple[tuple[int, int, int, int], str]:
    try:
        x0, y0, x1, y1, *label = box
        corners = np.array([x0, y0, x1, y1], np.float64)
    except (TypeError, ValueError):
        corners, label = np.zeros(4), []
    if len(label) > 1 or not np.isfinite(corners).all() or not (corners[:2] < corners[2:]).all():
        hint = "A box is (x0, y0, x1, y1, label): left, top, right, bottom in the photo's pixels."
        raise OptionError(f"{tuple(np.ravel(np.asarray(box, object)))!r} is no box", hint)
    x0, y0, x1, y1 = np.rint(np.clip(corners, -(2**15), 2**15)).astype(int).tolist()  # OpenCV counts in 32 bits
    return (x0, y0, x1, y1), letters.plain(str(*label))
