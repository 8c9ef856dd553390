"""Fills made of a sample itself: what is put in the place of what a method takes away, by OpenCV."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

NAMES = ("blur", "inpaint")  # baselines that are made of the sample
CHANNELS = (1, 3, 4)
WIDTH = 1 / 22  # standard deviation of the blur, in shorter axes: 10 pixels of 224 (Fong and Vedaldi 2017)
RADIUS = 3  # of the neighbourhood that Telea's method looks at, in elements; OpenCV's examples use it
RANGE = 65535


def spatial(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The axes of a sample that are no channels; they are last in pictures where only the last axis can hold them."""
    if len(shape) < 2:
        return tuple(range(len(shape)))
    last = len(shape) > 2 and shape[-1] in CHANNELS and shape[0] not in CHANNELS
    return tuple(range(len(shape) - 1)) if last else tuple(range(1, len(shape)))


def blurred(x: Array) -> Array:
    """Samples blurred by a Gaussian along their spatial axes, all by the same width; mirrored at the borders.

    Parameters
    ----------
    x
        Floats, the batch axis in front, and at least one more.
    """
    import cv2

    axes = [1 + axis for axis in spatial(x.shape[1:])]
    width = WIDTH * min(x.shape[axis] for axis in axes)
    for axis in axes:
        last = np.moveaxis(x, axis, -1)
        rows = np.ascontiguousarray(last.reshape(-1, last.shape[-1]))
        rows = cv2.GaussianBlur(rows, (0, 1), width, borderType=cv2.BORDER_REFLECT)
        x = np.moveaxis(rows.reshape(last.shape), -1, axis)
    return x


def inpainted(sample: Array, hole: Array) -> Array:
    """A picture, channel by channel, whose hole is filled from what is left around it (Telea 2004).

    What lies in the hole has no influence, unless nothing else is left of a channel: then the hole becomes its mean.

    Parameters
    ----------
    sample
        Floats with two spatial axes and one for channels.
    hole
        Booleans of the same shape.
    """
    filled = sample.copy()
    channel = ({0, 1, 2} - set(spatial(sample.shape))).pop()
    for plane, hidden in zip(np.moveaxis(filled, channel, 0), np.moveaxis(hole, channel, 0), strict=True):
        plane[hidden] = plane.mean() if hidden.all() else _telea(plane, hidden)[hidden]
    return filled


def _telea(plane: Array, hidden: Array) -> Array:
    """OpenCV adds the direction of the slope, a step of up to 1.4 in any units: so the units are made small."""
    import cv2

    left = plane[~hidden]
    low, span = left.min(), np.ptp(left)
    unit = span / RANGE if span > 0 else 1.0 / RANGE
    scaled = np.where(hidden, 0, (plane - low) / unit).astype(np.float32)
    return np.asarray(low + unit * cv2.inpaint(scaled, hidden.astype(np.uint8), RADIUS, cv2.INPAINT_TELEA))
