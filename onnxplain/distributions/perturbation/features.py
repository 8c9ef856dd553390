"""Features: which elements of a sample are masked together."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args

import numpy as np

from onnxplain.arguments import Valid, one_of
from onnxplain.distributions.fills import spatial
from onnxplain.distributions.masked_copies import compact
from onnxplain.errors import OptionError

Array = np.ndarray[Any, Any]
Numbering = Literal["grid", "slic"]
"""Names of the ways to number the features of a sample."""

SEGMENTS = 50  # superpixels of slic


def library(name: str, what: str) -> Any:
    """A module of a library that only some methods need."""
    try:
        return importlib.import_module(name)
    except ImportError:
        hint = "Install it with: pip install 'onnxplain[surrogates]'"
        package = {"sklearn": "scikit-learn", "skimage": "scikit-image"}[name.split(".")[0]]
        raise OptionError(f"{what} needs {package}, which is not installed", hint) from None


def check_features(features: Any) -> None:
    """Raise OptionError unless it is an array of whole numbers, one of `Numbering`, or None."""
    if isinstance(features, str):
        one_of(get_args(Numbering)).check("feature numbering", features)
    elif features is not None and np.asarray(features).dtype.kind not in "iu":
        raise OptionError(f"features must be {VALID_FEATURES.words}, not {features!r}")


VALID_FEATURES = Valid(
    "an array of whole numbers, 'grid' or 'slic', or None",
    "ndarray or {'grid', 'slic'} or None",
    lambda _, value: check_features(value),
)
Features = Annotated[Array | str | None, VALID_FEATURES]
"""Number of the feature of each element, or the name of a numbering; None: the method's default."""


def check_features_fit(features: Features, shape: tuple[int, ...]) -> None:
    """Raise OptionError where an array of features does not broadcast to a sample of ``shape``."""
    if not isinstance(features, str | None):
        try:
            np.broadcast_to(np.asarray(features), shape)
        except ValueError:
            why = f"do not fit one sample of shape {shape}"
            raise OptionError(f"features of shape {np.shape(features)} {why}") from None


def share(axes: int) -> int:
    """Part of each axis that a window covers which nobody gives a size: a seventh in pictures, a 64th of a sequence."""
    return 64 if axes == 1 else 7


def is_picture(x: Array) -> bool:
    """Whether a sample can be segmented: floats or pixels with two spatial axes."""
    return x.ndim == 3 and x.dtype.kind in "fu"


@dataclass(frozen=True, eq=False)
class Partition:
    """The features of one sample.

    Attributes
    ----------
    labels
        Name of a tensor -> number of the feature that each element belongs to, int32; no number is in two tensors.
    count
        Number of features.
    """

    labels: Mapping[str, Array]
    count: int

    def spread(self, values: Array) -> dict[str, Array]:
        """One value per feature -> one per element."""
        return {n: np.broadcast_to(values[compact(labels)], labels.shape) for n, labels in self.labels.items()}


def partition(features: Features, sample: Mapping[str, Array]) -> Partition:
    """Number the features of a sample from 0, one tensor after the other."""
    labels, count = {}, 0
    for name, x in sample.items():
        given = compact(_numbers(features, x))
        numbers = np.unique(given, return_inverse=True)[1].reshape(given.shape)
        labels[name] = np.broadcast_to((numbers + count).astype(np.int32), x.shape)
        count += int(numbers.max()) + 1
    return Partition(labels, count)


def _numbers(features: Features, x: Array) -> Array:
    if isinstance(features, str) and features == "slic":
        return _superpixels(x) if is_picture(x) else _grid(x.shape)
    if isinstance(features, str) or features is None:
        return _grid(x.shape)
    check_features_fit(features, x.shape)
    return np.broadcast_to(np.asarray(features), x.shape)


def _grid(shape: tuple[int, ...]) -> Array:
    """Each element of a table or a row of tokens; else cells over the spatial axes, all channels together."""
    axes = spatial(shape)
    if len(shape) < 2:
        return np.arange(int(np.prod(shape))).reshape(shape)
    numbers = np.zeros([1] * len(shape), np.int64)
    for axis in axes:
        cells = min(shape[axis], share(len(axes)))
        along = np.arange(shape[axis]) * cells // shape[axis]
        numbers = numbers * cells + along.reshape([-1 if a == axis else 1 for a in range(len(shape))])
    return np.broadcast_to(numbers, shape)


def _superpixels(x: Array) -> Array:
    """SLIC (Achanta et al. 2012) of the picture, its values scaled to 0..1."""
    slic = library("skimage.segmentation", "features='slic'").slic
    channel = ({0, 1, 2} - set(spatial(x.shape))).pop()
    picture = np.moveaxis(x.astype(np.float64), channel, -1)
    low, high = picture.min(), picture.max()
    scaled = (picture - low) / (high - low if high > low else 1)
    # Three channels become Lab, whose lightness is up to 100: there 10 is the usual weight of nearness.
    compactness = 10 if picture.shape[-1] == 3 else 0.1
    labels = slic(scaled, SEGMENTS, compactness, channel_axis=-1)
    return np.broadcast_to(np.expand_dims(labels, channel), x.shape)
