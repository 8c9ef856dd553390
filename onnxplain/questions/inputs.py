"""Checks of what a user hands in, before any work starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from onnxplain.canonize.prepare import names_of, rank_of, size_of
from onnxplain.errors import InputError, did_you_mean
from onnxplain.graph.axes import BatchAxes
from onnxplain.graph.ir import Value
from onnxplain.runtime.device import Given, received

Array = np.ndarray[Any, Any]


def check_inputs(
    x: Any, inputs: Sequence[Value], axes: BatchAxes, nan: bool = False, gpu: bool = False
) -> tuple[dict[str, Given], int, dict[str, int]]:
    """Check input arrays against what the model declares.

    Parameters
    ----------
    x
        One array for a model of one input, or name -> array; what implements DLPack counts as one.
    inputs
        The model's inputs; a dimension is a size, or the name of a free one.
    axes
        Inputs with a batch axis -> which it is, whatever its declared size.
    nan
        Whether NaN is allowed.
    gpu
        Whether tensors on GPU 0 are; nobody looks at their numbers.

    Returns
    -------
    feeds, samples, sizes
        Arrays by name, or tensors on a GPU; the number of samples; and the sizes of the free dimensions (other than the
        batch) and ranks.

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
    feeds: dict[str, Given] = {}
    sizes: dict[str, int] = {}
    samples: dict[str, int] = {}
    taken = names_of(value.shape for value in declared.values())
    for name, value in declared.items():
        array = _checked(received(x[name], name, gpu), value, axes.get(name))
        feeds[name] = array
        if name in axes:
            if not array.ndim:
                raise InputError(f"the array for input '{name}' has no batch axis")
            samples[name] = array.shape[axes[name]]
        if value.shape is None:
            sizes[rank_of(name)] = array.ndim
            sizes |= {size_of(name, axis, taken): size for axis, size in enumerate(array.shape) if axis}
        for dim, size in zip(value.shape or (), array.shape, strict=False):
            if isinstance(dim, str) and sizes.setdefault(dim, size) != size:
                raise InputError(f"dimension '{dim}' is {sizes[dim]} in one input and {size} in '{name}'")
    check_finite({name: array for name, array in feeds.items() if isinstance(array, np.ndarray)}, inputs, nan)
    if len(set(samples.values())) > 1:
        raise InputError(f"the inputs have different numbers of samples: {samples}")
    count = next(iter(samples.values()), 1)
    batch = {v.shape[axes[n]] for n, v in declared.items() if n in axes and v.shape}
    return feeds, count, {name: size for name, size in sizes.items() if name not in batch}


def _checked(array: Given, value: Value, batch_axis: int | None) -> Given:
    """The array as the canonical graph takes it."""
    expected = " x ".join("?" if d is None else str(d) for d in value.shape or ())
    half = value.is_float and value.dtype.itemsize == 2
    if half and array.dtype == np.float32:  # half precision is calculated in single
        pass
    elif half and array.dtype == value.dtype and isinstance(array, np.ndarray):
        array = array.astype(np.float32)
    elif half and array.dtype == value.dtype:
        raise InputError(f"half precision is calculated in float32, and input '{value.name}' is on a GPU: x.float()")
    elif value.dtype == object and array.dtype.kind in "US" and isinstance(array, np.ndarray):
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
    return array


def check_finite(arrays: Mapping[str, Array], inputs: Sequence[Value], nan: bool) -> None:
    """Raise InputError where an array of floats holds infinity, or NaN where that is not allowed."""
    for name in (value.name for value in inputs if value.is_float and value.name in arrays):
        wrong = ~np.isfinite(arrays[name]) & ~(np.isnan(arrays[name]) & nan)
        if wrong.any():
            where = tuple(map(int, np.argwhere(wrong)[0]))
            raise InputError(f"the array for input '{name}' holds NaN or infinity, first at {where}")
