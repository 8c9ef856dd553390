"""Checks of what a user hands in, before any work starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from onnxplain.canonize.prepare import rank_of
from onnxplain.errors import InputError, did_you_mean
from onnxplain.ir import Value

Array = np.ndarray[Any, Any]


def check_inputs(
    x: Array | Mapping[str, Array], inputs: Sequence[Value], axes: Mapping[str, int], nan: bool = False
) -> tuple[dict[str, Array], int, dict[str, int]]:
    """Check input arrays against what the model declares.

    Parameters
    ----------
    x
        One array for a model of one input, or name -> array.
    inputs
        The model's inputs; a dimension is a size, or the name of a free one.
    axes
        Inputs with a batch axis -> which it is, whatever its declared size.
    nan
        Whether NaN is allowed.

    Returns
    -------
    feeds, samples, sizes
        Arrays by name, the number of samples, and the sizes of the free dimensions (other than the batch) and ranks.

    Raises
    ------
    InputError
        The first thing that is wrong, with the input's name.
    """
    declared = {v.name: v for v in inputs}
    if not isinstance(x, Mapping):
        if len(inputs) != 1:
            raise InputError(
                f"the model has {len(inputs)} inputs: {', '.join(declared)}", "Give a dict of name -> array."
            )
        x = {inputs[0].name: x}
    for name in x:
        if name not in declared:
            raise InputError(f"the model has no input '{name}'", did_you_mean(str(name), declared))
    if missing := [name for name in declared if name not in x]:
        raise InputError(f"no array for input {', '.join(missing)}")
    feeds: dict[str, Array] = {}
    sizes: dict[str, int] = {}
    samples: dict[str, int] = {}
    for name, value in declared.items():
        try:
            array = np.asarray(x[name])
        except ValueError:
            raise InputError(f"what was given for input '{name}' is no regular array") from None
        array = _check_array(array, value, axes.get(name), nan)
        feeds[name] = array
        if name in axes:
            if not array.ndim:
                raise InputError(f"the array for input '{name}' has no batch axis")
            samples[name] = array.shape[axes[name]]
        if value.shape is None:
            sizes[rank_of(name)] = array.ndim
            sizes |= {f"{name}_dim{axis}": size for axis, size in enumerate(array.shape) if axis}
        for dim, size in zip(value.shape or (), array.shape, strict=False):
            if isinstance(dim, str) and sizes.setdefault(dim, size) != size:
                raise InputError(f"dimension '{dim}' is {sizes[dim]} in one input and {size} in '{name}'")
    if len(set(samples.values())) > 1:
        raise InputError(f"the inputs have different numbers of samples: {samples}")
    count = next(iter(samples.values()), 1)
    batch = {v.shape[axes[n]] for n, v in declared.items() if n in axes and v.shape}
    return feeds, count, {name: size for name, size in sizes.items() if name not in batch}


def _check_array(array: Array, value: Value, batch_axis: int | None, nan: bool) -> Array:
    """The array as the canonical graph takes it."""
    expected = " x ".join("?" if d is None else str(d) for d in value.shape or ())
    if value.is_float and value.dtype.itemsize == 2 and array.dtype in (value.dtype, np.float32):
        array = array.astype(np.float32)  # half precision is calculated in single
    elif value.dtype == object and array.dtype.kind in "US":
        array = array.astype(object)
    elif array.dtype != value.dtype:
        raise InputError(
            f"input '{value.name}' takes {value.dtype}, not {array.dtype}",
            f"Convert it: x.astype('{value.dtype}'), after scaling it as the model expects.",
        )
    if value.shape is not None:
        if array.ndim != len(value.shape):
            hint = "Add a batch axis: x[None]." if array.ndim == len(value.shape) - 1 else ""
            raise InputError(
                f"input '{value.name}' has {len(value.shape)} axes ({expected}), the array {array.ndim} {array.shape}",
                hint,
            )
        for axis, (size, dim) in enumerate(zip(array.shape, value.shape, strict=True)):
            if isinstance(dim, int) and size != dim and axis != batch_axis:
                raise InputError(
                    f"input '{value.name}' has shape {expected}, the array {array.shape}: axis {axis} differs"
                )
    if array.size == 0:
        raise InputError(f"the array for input '{value.name}' is empty: {array.shape}")
    wrong = ~np.isfinite(array) & ~(np.isnan(array) & nan) if value.is_float else np.zeros(0, bool)
    if wrong.any():
        where = np.argwhere(wrong)[0]
        raise InputError(f"the array for input '{value.name}' holds NaN or infinity, first at {tuple(map(int, where))}")
    return array
