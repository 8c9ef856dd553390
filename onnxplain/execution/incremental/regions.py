"""Regions of a feature map that depend on a window, for all windows at once.

Bounds are arrays of shape (K, A, 2), int64: for each of K windows and each of A spatial axes, the first position in the
region and the one after the last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxplain.graph.ir import Node

Array = np.ndarray[Any, Any]
Sizes = tuple[int, ...]

MIN_LENGTH = 7  # positions on an axis: size of the last feature maps of most networks for pictures of 224 pixels


def lengths(bounds: Array) -> Array:
    """Sizes of the regions, shape (K, A)."""
    return np.asarray(bounds[..., 1] - bounds[..., 0])


def area(bounds: Array) -> float:
    """Mean number of positions in a region."""
    return float(lengths(bounds).prod(axis=1).mean())


def union(several: Sequence[Array]) -> Array:
    """The smallest regions that contain several."""
    starts, ends = (np.stack([b[..., side] for b in several]) for side in (0, 1))
    return np.stack([starts.min(axis=0), ends.max(axis=0)], axis=-1)


def common(inner: Array, outer: Array) -> Array:
    """The intersection of ``inner`` and ``outer``; where it is empty, an empty region inside of ``outer``."""
    low, high = outer[..., 0], outer[..., 1]
    starts = np.clip(inner[..., 0], low, high)
    return np.stack([starts, np.clip(inner[..., 1], starts, high)], axis=-1)


def whole(sizes: Sizes, count: int) -> Array:
    """The whole map, for each of ``count`` windows."""
    bounds = np.zeros((count, len(sizes), 2), np.int64)
    bounds[..., 1] = sizes
    return bounds


@dataclass(frozen=True, eq=False)
class Reach:
    """A bound on the size of patches: a share of each axis of a map. Larger patches are cropped around their window.

    Patches are not cropped to less than `MIN_LENGTH` on an axis, while Nakandala et al. crop in all maps alike. In the
    last, small maps of a deep network, each position depends on a large part of the picture, and cropping costs most
    accuracy there: in the attributions of EfficientNet-Lite0 for a picture of a cat, with a share of 0.6, cropping in
    its maps of 7 x 7 positions caused a relative error of 1.1, and in all other maps together one of 0.08.

    Attributes
    ----------
    share
        Share of each axis, above 0 and up to 1; sizes are rounded.
    centers
        Position of the middle of each window on each axis, as a share of the axis; shape (K, A).
    """

    share: float
    centers: Array

    def limit(self, bounds: Array, sizes: Sizes) -> Array:
        """Crop regions of a map of these sizes."""
        most = np.minimum(lengths(bounds), np.maximum(MIN_LENGTH, np.round(self.share * np.array(sizes))))
        starts = np.clip(np.round(self.centers * sizes - most / 2), bounds[..., 0], bounds[..., 1] - most)
        return np.stack([starts, starts + most], axis=-1).astype(np.int64)


@dataclass(frozen=True)
class Kernel:
    """Geometry of a convolution or a pooling; each number per spatial axis.

    Attributes
    ----------
    extents
        Positions from the first element of the kernel to the last, dilation included.
    strides
        Distances between neighbouring positions of the kernel.
    pads
        Padding before the first element of the map.
    inputs, outputs
        Sizes of the map that the operator reads, and of the map that it writes.
    """

    extents: Sizes
    strides: Sizes
    pads: Sizes
    inputs: Sizes
    outputs: Sizes

    @classmethod
    def of(cls, node: Node, kernel: Sizes, inputs: Sizes, outputs: Sizes) -> Kernel:
        """Read the attributes of a node; ``auto_pad`` is resolved to pads."""
        axes = len(kernel)
        strides = tuple(node.attrs.get("strides") or [1] * axes)
        dilations = tuple(node.attrs.get("dilations") or [1] * axes)
        extents = tuple((k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True))
        pads = tuple(node.attrs.get("pads") or [0] * axes)[:axes]
        automatic = node.attrs.get("auto_pad", "NOTSET")
        if automatic != "NOTSET":
            rows = zip(outputs, strides, extents, inputs, strict=True)
            totals = [max(0, (o - 1) * s + e - n) if automatic != "VALID" else 0 for o, s, e, n in rows]
            pads = tuple((t + (automatic == "SAME_LOWER")) // 2 for t in totals)
        return cls(extents, strides, pads, inputs, outputs)

    def reached(self, bounds: Array) -> Array:
        """Regions of the outputs that read any of these inputs; where none does, a nearby region of one position."""
        strides, pads, most = np.array(self.strides), np.array(self.pads), np.array(self.outputs)
        first = -(-(bounds[..., 0] + pads - np.array(self.extents) + 1) // strides)
        last = (bounds[..., 1] - 1 + pads) // strides
        first = np.clip(first, 0, most - 1)
        return np.stack([first, np.clip(last, first, most - 1) + 1], axis=-1)

    def read(self, bounds: Array) -> Array:
        """Regions of the inputs that these outputs read; they may reach beyond the map, into the padding."""
        strides, pads = np.array(self.strides), np.array(self.pads)
        first = bounds[..., 0] * strides - pads
        return np.stack([first, (bounds[..., 1] - 1) * strides - pads + np.array(self.extents)], axis=-1)

    def counts(self, padding: bool, end_pads: Sizes) -> Array:
        """Number of elements that each output of an average pooling averages; with ``padding``, pads count, too."""
        counts = np.ones(())
        for axis, size in enumerate(self.outputs):
            first = np.arange(size) * self.strides[axis] - self.pads[axis]
            low = -self.pads[axis] if padding else 0
            high = self.inputs[axis] + (end_pads[axis] if padding else 0)
            along = np.minimum(first + self.extents[axis], high) - np.maximum(first, low)
            counts = np.multiply.outer(counts, along)
        return counts
