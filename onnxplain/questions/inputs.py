"""Checks of the inputs that a user gives, before any work starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from onnxplain.canonize.prepare import names_of, rank_of, size_of
from onnxplain.errors import InputError, did_you_mean
from onnxplain.graph.axes import BatchAxes
from onnxplain.graph.ir import Value
from onnxplain.runtime.device import AnyTensor, received

Array = np.ndarray[Any, Any]


def check_inputs(
    x: Any, inputs: Sequence[Value], axes: BatchAxes, nan: bool = False, gpu: bool = False
) -> tuple[dict[str, AnyTensor], int, dict[str, int]]:
    """Check input arrays against the model's declarations.

    Parameters
    ----------
    x : array or mapping of str to array
        Arrays by input name, or one array for a model with one input. Objects that implement DLPack are arrays, too.
    inputs
        The model's inputs; a dimension is a size, or the name of a free size.
    axes
        Batch axes of the inputs; any number of samples is valid, whatever size the model declares.
    nan
        Whether NaN is valid.
    gpu
        Whether tensors on GPU 0 are valid. They are not searched for NaN and infinity.

    Returns
    -------
    feeds : dict of str to array or Tensor
        Inputs by name, with the dtypes of the canonical graph; tensors are on a GPU.
    samples : int
        Number of samples.
    sizes : dict of str to int
        Sizes of the free dimensions other than the batch, and ranks of the inputs without a declared shape.

    Raises
    ------
    InputError
        The first error found, with the name of the input.
    """
    declared = {value.name: value for value in inputs}
    arrays = _named(x, declared)
    feeds = {
        name: _checked(received(arrays[name], name, gpu), value, axes.get(name)) for name, value in declared.items()
    }
    sizes = _sizes(feeds, declared)
    check_finite({name: array for name, array in feeds.items() if isinstance(array, np.ndarray)}, inputs, nan)
    samples = _samples(feeds, axes)
    batch = {v.shape[axes[n]] for n, v in declared.items() if n in axes and v.shape}
    return feeds, samples, {name: size for name, size in sizes.items() if name not in batch}


def _named(x: Any, declared: Mapping[str, Value]) -> Mapping[str, Any]:
    """The arrays by input name: one for each input."""
    if not isinstance(x, Mapping):
        if len(declared) != 1:
            names = ", ".join(declared)
            raise InputError(f"the model has {len(declared)} inputs: {names}", "Give a dict of name -> array.")
        return dict.fromkeys(declared, x)
    for name in x:
        if name not in declared:
            raise InputError(f"the model has no input '{name}'", did_you_mean(str(name), declared))
    if missing := [name for name in declared if name not in x]:
        raise InputError(f"no array for input {', '.join(missing)}")
    return x


def _samples(feeds: Mapping[str, AnyTensor], axes: BatchAxes) -> int:
    """Number of samples; 1 if no input has a batch axis."""
    samples: dict[str, int] = {}
    for name in (name for name in feeds if name in axes):
        if not feeds[name].ndim:
            raise InputError(f"the array for input '{name}' has no batch axis")
        samples[name] = feeds[name].shape[axes[name]]
    if len(set(samples.values())) > 1:
        raise InputError(f"the inputs have different numbers of samples: {samples}")
    return next(iter(samples.values()), 1)


def _sizes(feeds: Mapping[str, AnyTensor], declared: Mapping[str, Value]) -> dict[str, int]:
    """Sizes of the free dimensions, by their names, and of inputs without a declared shape."""
    sizes: dict[str, int] = {}
    taken = names_of(value.shape for value in declared.values())
    for name, value in declared.items():
        shape = feeds[name].shape
        if value.shape is None:
            sizes[rank_of(name)] = len(shape)
            sizes |= {size_of(name, axis, taken): size for axis, size in enumerate(shape) if axis}
        for dim, size in zip(value.shape or (), shape, strict=False):
            if isinstance(dim, str) and sizes.setdefault(dim, size) != size:
                raise InputError(f"dimension '{dim}' is {sizes[dim]} in one input and {size} in '{name}'")
    return sizes


def _checked(array: AnyTensor, value: Value, batch_axis: int | None) -> AnyTensor:
    """The array with the dtype that the canonical graph takes."""
    expected = " x ".join("?" if d is None else str(d) for d in value.shape or ())
    half = value.is_float and value.dtype.itemsize == 2
    if half and array.dtype == np.float32:  # half precision is calculated in single
        pass
    elif half and array.dtype == value.dtype and isinstance(array, np.ndarray):
        array = array.astype(np.float32)
    elif half and array.dtype == value.dtype:
        what = f"{array.dtype} tensors on a GPU are not supported for input '{value.name}'"
        raise InputError(what, "Give x.float(): half precision is calculated in float32.")
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
    """Raise InputError if an array of floats holds infinity, or NaN although ``nan`` is False."""
    for name in (value.name for value in inputs if value.is_float and value.name in arrays):
        wrong = ~np.isfinite(arrays[name]) & ~(np.isnan(arrays[name]) & nan)
        if wrong.any():
            where = tuple(map(int, np.argwhere(wrong)[0]))
            raise InputError(f"the array for input '{name}' holds NaN or infinity, first at {where}")
