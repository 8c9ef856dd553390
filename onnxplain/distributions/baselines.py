"""Baselines: the values that an input is compared with."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np

from onnxplain.arguments import Valid, one_of
from onnxplain.distributions import fills
from onnxplain.errors import OptionError

Array = np.ndarray[Any, Any]


def check_baseline(baseline: Any) -> None:
    """Raise OptionError unless it is a finite number, a text, or an array of these."""
    array = np.asarray(baseline)
    if array.dtype.kind not in "iufU":
        raise OptionError(f"a baseline must be a number or an array of numbers (or of texts), not {baseline!r}")
    if array.dtype.kind != "U" and not np.isfinite(array).all():
        raise OptionError("the baseline holds NaN or infinity")


VALID_BASELINE = Valid(
    f"a finite number, an array of such numbers (or of texts), or one of {', '.join(fills.NAMES)}",
    "float, str or ndarray",
    lambda _, value: check_baseline(value),
)
Baseline = Annotated[float | str | Array, VALID_BASELINE]
"""A number, a text, an array of either, or one of `onnxplain.distributions.fills.NAMES`."""


def is_named(baseline: Baseline, dtype: np.dtype[Any]) -> bool:
    """Whether a baseline for an input of this dtype is a name, such as "blur"; for inputs of texts it is a text."""
    return isinstance(baseline, str) and dtype.kind != "O"


def check_named(baseline: Baseline, dtype: np.dtype[Any], name: str) -> None:
    """Raise OptionError unless a baseline of that name exists and can be made of the tensor ``name`` of this dtype."""
    if dtype.kind != "f":
        hint = f"Give one in the input's own units; {' and '.join(fills.NAMES)} are for floating-point numbers."
        raise OptionError(f"the input '{name}' of dtype {dtype} cannot hold a baseline of {baseline!r}", hint)
    one_of(fills.NAMES).check("baseline", baseline)


def as_baseline(baseline: Baseline, dtype: np.dtype[Any], name: str) -> Array:
    """Convert a baseline to the dtype of the input ``name``; for inputs of texts, 0 becomes the empty text.

    Raises
    ------
    OptionError
        The input cannot hold it, or it is made of each sample.
    """
    if is_named(baseline, dtype):
        check_named(baseline, dtype, name)
        what = f"baseline={baseline!r} is made of each sample, outside of the graph, so it cannot be part of one"
        raise OptionError(what, "Give a number or an array.")
    array = np.asarray(baseline)
    if dtype.kind == "O" and array.shape == () and array.dtype.kind in "iuf" and array == 0:
        array = np.asarray("")
    text = array.dtype.kind in "OU"
    if text != (dtype.kind == "O") or (dtype.kind in "iub" and np.any(array.astype(dtype) != array)):
        raise OptionError(f"the input '{name}' of dtype {dtype} cannot hold a baseline of {baseline!r}")
    return array.astype(dtype)


def baseline_like(baseline: Baseline, x: Array, name: str, axis: int = 0) -> Array:
    """Bring a baseline to the shape and dtype of ``x``, the input ``name``, whose batch axis is ``axis``.

    Raises
    ------
    OptionError
        It does not broadcast to ``x``, the input cannot hold it, or it cannot be made of ``x``.
    """
    if is_named(baseline, x.dtype):
        check_named(baseline, x.dtype, name)
        if baseline == "inpaint":
            what = "baseline='inpaint' fills only the parts of a picture that a method hides"
            raise OptionError(what, "Use it with methods of forward passes only, such as occlusion, rise or lime.")
        if x.ndim < 2:
            raise OptionError(f"baseline='blur' needs an axis to blur along, and '{name}' has the shape {x.shape}")
        return np.moveaxis(fills.blurred(np.moveaxis(x, axis, 0)), 0, axis)
    array = as_baseline(baseline, x.dtype, name)
    try:
        return np.broadcast_to(array, x.shape)
    except ValueError:
        why = f"does not fit the input '{name}' of shape {x.shape}"
        raise OptionError(f"a baseline of shape {array.shape} {why}") from None


def check_fits(baseline: Baseline, x: Array, name: str, axis: int) -> None:
    """Raise OptionError as `baseline_like` does; of a named baseline, only that of one sample is made, to save time."""
    baseline_like(baseline, x.take([0], axis) if is_named(baseline, x.dtype) else x, name, axis)


def check_internal_baseline(baseline: Baseline, name: str) -> None:
    """Raise OptionError if the internal tensor ``name`` has a named baseline that does not exist."""
    if isinstance(baseline, str):
        check_named(baseline, np.dtype(np.float32), name)
