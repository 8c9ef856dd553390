"""Features: groups of elements of a sample that are masked together."""

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
"""Features made of each sample: cells of a grid, or superpixels."""

SEGMENTS = 50  # superpixels per picture, about: what slic aims at


def library(name: str, what: str) -> Any:
    """Import the module ``name`` of an optional library.

    Raises
    ------
    OptionError
        The library is not installed; ``what`` needs it.
    """
    try:
        return importlib.import_module(name)
    except ImportError:
        hint = "Install it with: pip install 'onnxplain[surrogates]'"
        package = {"sklearn": "scikit-learn", "skimage": "scikit-image"}[name.split(".")[0]]
        raise OptionError(f"{what} needs {package}, which is not installed", hint) from None


def check_features(features: Any) -> None:
    """Raise OptionError unless the value is one of `Features`."""
    if isinstance(features, str):
        one_of(get_args(Numbering)).check("feature numbering", features)
    elif features is not None and np.asarray(features).dtype.kind not in "iu":
        raise OptionError(f"features must be {VALID_FEATURES.words}, not {features!r}")


VALID_FEATURES = Valid(
    "an array of whole numbers, 'grid' or 'slic', or None",
    "ndarray or {'grid', 'slic'} or None",
    lambda _, value: check_features(value),
)
Features = Annotated[Array | Numbering | None, VALID_FEATURES]
"""Number of the feature of each element, or the name of a numbering; None: the method's default."""


def check_features_fit(features: Features, shape: tuple[int, ...]) -> None:
    """Raise OptionError if an array of features does not broadcast to a sample of ``shape``."""
    if not isinstance(features, str | None):
        try:
            np.broadcast_to(np.asarray(features), shape)
        except ValueError:
            why = f"do not fit one sample of shape {shape}"
            raise OptionError(f"features of shape {np.shape(features)} {why}") from None


def default_parts(axes: int) -> int:
    """Reciprocal of the default size of windows and cells, as a share of an axis: 7 in pictures, 64 in sequences."""
    return 64 if axes == 1 else 7


def is_picture(x: Array) -> bool:
    """Whether a sample can be segmented: floats or unsigned integers with three axes, one of them for channels."""
    return x.ndim == 3 and x.dtype.kind in "fu"


@dataclass(frozen=True, eq=False)
class Partition:
    """The features of one sample.

    Attributes
    ----------
    labels
        Name of a tensor -> number of the feature of each element, int32, shape of a sample; no number is in two
        tensors.
    count
        Number of features.
    """

    labels: Mapping[str, Array]
    count: int

    def spread(self, values: Array) -> dict[str, Array]:
        """Name of a tensor -> the value of each element's feature, from ``values`` of shape (count,)."""
        return {n: np.broadcast_to(values[compact(labels)], labels.shape) for n, labels in self.labels.items()}


def partition(features: Features, sample: Mapping[str, Array]) -> Partition:
    """Number the features of a sample from 0, one tensor after the other, without gaps."""
    labels, count = {}, 0
    for name, x in sample.items():
        gapped = compact(_numbers(features, x))
        numbers = np.unique(gapped, return_inverse=True)[1].reshape(gapped.shape)
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
    """Cells of a grid over the spatial axes, all channels together; of a table or a row of tokens, each element."""
    axes = spatial(shape)
    if len(shape) < 2:
        return np.arange(int(np.prod(shape))).reshape(shape)
    numbers = np.zeros([1] * len(shape), np.int64)
    for axis in axes:
        cells = min(shape[axis], default_parts(len(axes)))
        along = np.arange(shape[axis]) * cells // shape[axis]
        numbers = numbers * cells + along.reshape([-1 if a == axis else 1 for a in range(len(shape))])
    return np.broadcast_to(numbers, shape)


def _superpixels(x: Array) -> Array:
    """Superpixels of a picture by SLIC (Achanta et al. 2012), its values scaled to 0..1."""
    slic = library("skimage.segmentation", "features='slic'").slic
    channel = ({0, 1, 2} - set(spatial(x.shape))).pop()
    picture = np.moveaxis(x.astype(np.float64), channel, -1)
    low, high = picture.min(), picture.max()
    scaled = (picture - low) / (high - low if high > low else 1)
    # Three channels are converted to Lab, with a lightness up to 100: there 10 is the usual weight of nearness.
    compactness = 10 if picture.shape[-1] == 3 else 0.1
    labels = slic(scaled, SEGMENTS, compactness, channel_axis=-1)
    return np.broadcast_to(np.expand_dims(labels, channel), x.shape)
