"""Attributions to heatmaps: one number per pixel, in [-1, 1]."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from onnxplain.arguments import one_of
from onnxplain.errors import InputError, OptionError

POOLINGS: Mapping[str, Callable[[npt.NDArray[Any]], npt.NDArray[Any]]] = {  # name -> function of a (C, H, W) array
    "sum": lambda values: values.sum(axis=0, dtype=np.float64),
    "abs_sum": lambda values: np.abs(values).sum(axis=0, dtype=np.float64),
    "mean": lambda values: values.mean(axis=0, dtype=np.float64),
    "max": lambda values: np.abs(values).max(axis=0),
    "norm": lambda values: np.sqrt(np.square(values, dtype=np.float64).sum(axis=0)),
}
LAYOUTS = ("auto", "CHW", "HWC")


def heatmap(
    values: npt.ArrayLike, *, layout: str = "auto", pooling: str = "sum", percentile: float = 99.5, smooth: float = 0.0
) -> npt.NDArray[np.float32]:
    """Pool the channels, smooth, and divide by a percentile of the magnitudes: ``clip(v / P(|v|), -1, 1)``.

    Positive and negative values have the same scale, so zero stays zero and equal magnitudes look equally strong. A map
    of zeros stays a map of zeros.

    Parameters
    ----------
    values : ndarray of shape (C, H, W), (H, W, C), (H, W) or (F,)
        The attribution of one sample. A vector becomes a map of one row.
    layout
        Position of the channels in a 3-D attribution: "CHW" or "HWC". "auto": HWC if the last axis, and not the first,
        has size 1, 3 or 4; else CHW.
    pooling
        Reduction over channels. Signed: "sum" (keeps completeness) and "mean". Unsigned: "abs_sum", "max" (largest
        magnitude, Simonyan et al. 2014) and "norm" (Euclidean).
    percentile
        Percentile of the magnitudes that is scaled to 1, in (0, 100]; larger magnitudes are clipped. 100 clips nothing.
    smooth
        Standard deviation of a Gaussian blur before scaling, in pixels of the attribution; 0 for none.

    Returns
    -------
    ndarray of float32, shape (H, W)

    Raises
    ------
    InputError
        The array has another rank, is empty, or holds NaN or infinity.
    OptionError
        The layout or pooling is unknown, or a number is out of range.
    """
    if not 0 < percentile <= 100:
        raise OptionError(f"percentile must be above 0 and at most 100, not {percentile!r}")
    if not 0 <= smooth < np.inf:
        raise OptionError(f"smooth must be a standard deviation in pixels, 0 or more, not {smooth!r}")
    return normalize(blur(pool(values, layout, pooling), smooth), percentile)


def pool(values: npt.ArrayLike, layout: str = "auto", pooling: str = "sum") -> npt.NDArray[np.float64]:
    """Reduce an attribution over its channels to shape (H, W); a 2-D attribution counts as one channel."""
    one_of(POOLINGS).check("pooling", pooling)
    array = np.ascontiguousarray(channels_first(values, layout))
    if array.dtype not in (np.float32, np.float64):
        array = array.astype(np.float64)
    if not np.isfinite(array).all():
        raise InputError(f"{np.count_nonzero(~np.isfinite(array))} of the attribution's values are NaN or infinite")
    return np.asarray(POOLINGS[pooling](array), np.float64)


def channels_first(values: npt.ArrayLike, layout: str) -> npt.NDArray[Any]:
    """Return a view of one sample's attribution with shape (C, H, W)."""
    one_of(LAYOUTS).check("layout", layout)
    array = np.asarray(values)
    if array.ndim not in (1, 2, 3) or not array.size:
        raise InputError(
            f"cannot draw an attribution of shape {array.shape}",
            "Give one sample, without its batch axis: (C, H, W), (H, W, C), (H, W) or (F,).",
        )
    if array.ndim < 3:
        return array.reshape(1, -1, array.shape[-1])
    if layout == "auto":
        layout = "HWC" if array.shape[2] in (1, 3, 4) and array.shape[0] not in (1, 3, 4) else "CHW"
    return np.moveaxis(array, 2, 0) if layout == "HWC" else array


def blur(values: npt.NDArray[np.float64], sigma: float) -> npt.NDArray[np.float64]:
    """Blur with a Gaussian; borders are mirrored, so that the sum of the map hardly changes."""
    if sigma == 0:
        return values
    blurred = cv2.GaussianBlur(values, (0, 0), sigma, borderType=cv2.BORDER_REFLECT)
    return np.asarray(blurred, np.float64).reshape(values.shape)


def normalize(values: npt.NDArray[np.float64], percentile: float) -> npt.NDArray[np.float32]:
    """Scale by a percentile of the magnitudes and clip to [-1, 1]."""
    strength = np.abs(values)
    # In a map with few nonzero values, the percentile may be zero.
    limit = np.percentile(strength, percentile) or strength.max() or 1.0
    return np.clip(values / limit, -1, 1).astype(np.float32)
