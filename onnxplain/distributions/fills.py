"""Fills made of a sample itself, by OpenCV: they replace the parts of the sample that a method hides."""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np

Array = np.ndarray[Any, Any]

NamedFill = Literal["blur", "inpaint"]
"""Baselines that are made of each sample."""

NAMES: tuple[NamedFill, ...] = get_args(NamedFill)
CHANNEL_COUNTS = (1, 3, 4)  # sizes of a last axis that can hold the channels of a picture
BLUR_WIDTH = 1 / 22  # standard deviation, as a share of the shorter axis: 10 pixels of 224 (Fong and Vedaldi 2017)
INPAINT_RADIUS = 3  # elements: radius of the neighbourhood in Telea's method, as in OpenCV's examples
INPAINT_RANGE = 65535  # range of the values that OpenCV's inpainting is given


def spatial(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Spatial axes of a sample: all but the channels.

    Channels are the first axis, or the last one where only that has the size of a picture's channels. A sample with
    less than two axes has no channels.
    """
    if len(shape) < 2:
        return tuple(range(len(shape)))
    last = len(shape) > 2 and shape[-1] in CHANNEL_COUNTS and shape[0] not in CHANNEL_COUNTS
    return tuple(range(len(shape) - 1)) if last else tuple(range(1, len(shape)))


def blurred(x: Array) -> Array:
    """Samples blurred by a Gaussian of the same width along all spatial axes, mirrored at the borders.

    Parameters
    ----------
    x
        Floats of shape (N, ...), with at least one axis besides the batch.
    """
    import cv2

    axes = [1 + axis for axis in spatial(x.shape[1:])]
    width = BLUR_WIDTH * min(x.shape[axis] for axis in axes)
    for axis in axes:
        last = np.moveaxis(x, axis, -1)
        rows = np.ascontiguousarray(last.reshape(-1, last.shape[-1]))
        rows = cv2.GaussianBlur(rows, (0, 1), width, borderType=cv2.BORDER_REFLECT)
        x = np.moveaxis(rows.reshape(last.shape), -1, axis)
    return x


def inpainted(sample: Array, hole: Array) -> Array:
    """A picture whose hole is filled from its surroundings, channel by channel (Telea 2004).

    The values in the hole have no influence, except in a channel that is hidden as a whole: that is filled with its
    mean.

    Parameters
    ----------
    sample
        Floats with two spatial axes and one axis for channels.
    hole
        Booleans of the same shape, True where the sample is hidden.
    """
    filled = sample.copy()
    channel = ({0, 1, 2} - set(spatial(sample.shape))).pop()
    for plane, hidden in zip(np.moveaxis(filled, channel, 0), np.moveaxis(hole, channel, 0), strict=True):
        plane[hidden] = plane.mean() if hidden.all() else _telea(plane, hidden)[hidden]
    return filled


def _telea(plane: Array, hidden: Array) -> Array:
    """One channel, inpainted in small units: OpenCV adds up to 1.4 for the slope's direction, whatever the units."""
    import cv2

    visible = plane[~hidden]
    low, span = visible.min(), np.ptp(visible)
    unit = span / INPAINT_RANGE if span > 0 else 1.0 / INPAINT_RANGE
    scaled = np.where(hidden, 0, (plane - low) / unit).astype(np.float32)
    filled = cv2.inpaint(scaled, hidden.astype(np.uint8), INPAINT_RADIUS, cv2.INPAINT_TELEA)
    return np.asarray(low + unit * filled)
