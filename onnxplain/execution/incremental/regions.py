"""Where in a map a window is felt: intervals, for all windows at once.

Bounds are arrays of shape (K, A, 2), int64: of each of K windows, the first place and the one behind the last, on each
of A spatial axes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxplain.graph.ir import Node

Array = np.ndarray[Any, Any]
Sizes = tuple[int, ...]

PLACES = 7  # on an axis: size of the last maps of most networks


def lengths(bounds: Array) -> Array:
    """Sizes of the regions, shape (K, A)."""
    return np.asarray(bounds[..., 1] - bounds[..., 0])


def area(bounds: Array) -> float:
    """Mean number of places in a region."""
    return float(lengths(bounds).prod(axis=1).mean())


def union(several: Sequence[Array]) -> Array:
    """The smallest regions that hold all of several."""
    starts, ends = (np.stack([b[..., side] for b in several]) for side in (0, 1))
    return np.stack([starts.min(axis=0), ends.max(axis=0)], axis=-1)


def common(inner: Array, outer: Array) -> Array:
    """What of ``inner`` is in ``outer``; where there is nothing, an empty region inside of it."""
    low, high = outer[..., 0], outer[..., 1]
    starts = np.clip(inner[..., 0], low, high)
    return np.stack([starts, np.clip(inner[..., 1], starts, high)], axis=-1)


def whole(sizes: Sizes, count: int) -> Array:
    """All of a map, for each of ``count`` windows."""
    bounds = np.zeros((count, len(sizes), 2), np.int64)
    bounds[..., 1] = sizes
    return bounds


@dataclass(frozen=True, eq=False)
class Reach:
    """A bound on patches: no more than a share of each axis of a map, and of a larger patch what is next to the window.

    But no patch is cut down to less than `PLACES` on an axis. Nakandala et al. cut all maps alike. In the last, small
    maps each place sums up what all of a deep network did with a large part of the picture, and there they lose most:
    of EfficientNet-Lite0's map for a cat, with a share of 0.6, cuts in its maps of 7 x 7 places changed more than the
    map itself (a relative error of 1.1), those in all others together 0.08 of it.

    Attributes
    ----------
    share
        Above 0, and up to 1; rounded to places.
    centers
        Where the middle of each window is on each axis, from 0 to 1; shape (K, A).
    """

    share: float
    centers: Array

    def limit(self, bounds: Array, sizes: Sizes) -> Array:
        """Cut regions of a map of these sizes down."""
        most = np.minimum(lengths(bounds), np.maximum(PLACES, np.round(self.share * np.array(sizes))))
        starts = np.clip(np.round(self.centers * sizes - most / 2), bounds[..., 0], bounds[..., 1] - most)
        return np.stack([starts, starts + most], axis=-1).astype(np.int64)


@dataclass(frozen=True)
class Kernel:
    """How a convolution or a pooling walks over a map; each number per axis."""

    extents: Sizes  # places from the first element of the kernel to the last, dilation included
    strides: Sizes
    pads: Sizes  # in front
    inputs: Sizes  # sizes of the map that it reads
    outputs: Sizes  # and of the one that it writes

    @classmethod
    def of(cls, node: Node, kernel: Sizes, inputs: Sizes, outputs: Sizes) -> Kernel:
        """Read a node's attributes; ``auto_pad`` is resolved."""
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
        """The outputs that read any of these inputs; where none does, one that is close."""
        strides, pads, most = np.array(self.strides), np.array(self.pads), np.array(self.outputs)
        first = -(-(bounds[..., 0] + pads - np.array(self.extents) + 1) // strides)
        last = (bounds[..., 1] - 1 + pads) // strides
        first = np.clip(first, 0, most - 1)
        return np.stack([first, np.clip(last, first, most - 1) + 1], axis=-1)

    def read(self, bounds: Array) -> Array:
        """The inputs that these outputs read; some may be beyond the map, where the padding is."""
        strides, pads = np.array(self.strides), np.array(self.pads)
        first = bounds[..., 0] * strides - pads
        return np.stack([first, (bounds[..., 1] - 1) * strides - pads + np.array(self.extents)], axis=-1)

    def counts(self, padding: bool, end_pads: Sizes) -> Array:
        """How many elements each output of an average is one of; ``padding``: the pads count, too."""
        counts = np.ones(())
        for axis, size in enumerate(self.outputs):
            first = np.arange(size) * self.strides[axis] - self.pads[axis]
            low = -self.pads[axis] if padding else 0
            high = self.inputs[axis] + (end_pads[axis] if padding else 0)
            own = np.minimum(first + self.extents[axis], high) - np.maximum(first, low)
            counts = np.multiply.outer(counts, own)
        return counts
