"""Targets: from the user's form to positions in the flattened output, and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from onnxplain.errors import TargetError, did_you_mean
from onnxplain.graph.ir import Shape, Value
from onnxplain.questions.quantities.selection import PREDICTED

Array = np.ndarray[Any, Any]
Target = int | str | Sequence[int] | Sequence[str] | Array | None
Names = Sequence[str | int]


def resolve(target: Target, value: Value, axis: int | None, samples: int, names: Names = ()) -> Array | None:
    """Turn a target into positions in the flattened output, or into labels.

    Parameters
    ----------
    target
        None: the predicted class. int: the class of all samples. Tuple: an index into the output without its batch
        axis, for all samples. 1-D array of ints: one class per sample; 2-D array: one index per sample. For an output
        that holds labels: None, a label for all samples, or an array of one label each.
    value
        The explained output.
    axis
        Batch axis of the output; None: it has none, and an index covers all axes.
    samples
        Number of samples.
    names
        Names of the classes in the order of their numbers; a target may be a name, or an array of one name each.

    Returns
    -------
    ndarray or None
        Positions, int64 of shape (samples,), or labels, of shape (samples, 1, ...). None: the labels that the model
        gives.

    Raises
    ------
    TargetError
        There is no such element, or the number of targets is wrong.
    """
    if not value.is_float:
        return None if target is None else _labels(target, value, samples)
    if target is None:
        return np.full(samples, PREDICTED, np.int64)
    indices = _indices(_numbered(target, names), samples)
    shape = _axes_of_one(value, axis)
    if not shape and indices.shape[1] == 1:
        shape = (1 if value.shape is not None else None,)  # one number per sample: class 0 is that number
    if value.shape is None and indices.shape[1] > 1:
        raise TargetError(f"the number of axes of output '{value.name}' is unknown before it runs")
    if indices.shape[1] != len(shape):
        dims = " x ".join("?" if d is None else str(d) for d in shape) or "one number"
        besides = "axes, none of which is the batch" if axis is None else "axes besides the batch"
        raise TargetError(
            f"the output '{value.name}' has {len(shape)} {besides} ({dims}), the target {indices.shape[1]}",
            "Give a tuple with one index per axis.",
        )
    _check_range(indices, shape, value.name)
    strides = np.cumprod([1, *(d for d in reversed(shape[1:]) if isinstance(d, int))])[::-1]
    positions: Array = (indices * strides).sum(axis=1)
    return positions


def _numbered(target: Any, names: Names) -> Any:
    """Replace names of classes by their numbers."""
    one_axis = isinstance(target, list | tuple) or getattr(target, "ndim", 0) == 1
    items = [target] if isinstance(target, str) else target if one_axis else []
    if len(items) == 0 or not all(isinstance(name, str) for name in items):
        return target
    known = {str(name): number for number, name in enumerate(names)}
    if not known:
        raise TargetError(f"the model does not name its classes, so {target!r} is unknown", "Give a number.")
    for name in items:
        if name not in known:
            raise TargetError(f"there is no class {str(name)!r}", did_you_mean(name, known))
    return known[target] if isinstance(target, str) else np.array([known[name] for name in items])


def _axes_of_one(value: Value, axis: int | None) -> Shape:
    """Shape of one sample's output, into which a target is an index."""
    if value.shape is None:
        return (None,) if axis is None else ()
    return tuple(d for k, d in enumerate(value.shape) if k != axis)


def _labels(target: Any, value: Value, samples: int) -> Array:
    array = np.asarray(target)
    wanted = "OSU" if value.dtype == object else value.dtype.kind if value.dtype.kind == "b" else "iu"
    if array.dtype.kind not in wanted or array.ndim > 1:
        raise TargetError(f"the output '{value.name}' holds {value.dtype} labels; a target is one of them, or one each")
    if array.ndim and len(array) != samples:
        raise TargetError(f"{len(array)} targets for {samples} samples; give one for all, or one each")
    each = np.broadcast_to(array.astype(value.dtype), (samples,))
    return each.reshape(samples, *[1] * (len(value.shape or (None,)) - 1))


def _indices(target: Any, samples: int) -> Array:
    """The target as one index per sample, int64 of shape (samples, axes)."""
    single = isinstance(target, tuple)
    try:
        array = np.asarray(target)
    except ValueError:
        raise TargetError(f"the target is not a regular array: {target!r}") from None
    if array.dtype.kind not in "iu" or (single and any(isinstance(i, bool) for i in target)):
        raise TargetError(f"a target is None, an int, a tuple or an array of ints, not {target!r}")
    array = array.astype(np.int64)
    if array.ndim == 0 or (single and array.ndim == 1):
        return np.broadcast_to(array, (samples, array.size))
    if single or array.ndim > 2:
        raise TargetError(
            f"the target has shape {array.shape}",
            "Give one int or tuple for all samples, or an array with a row for each.",
        )
    if len(array) != samples:
        raise TargetError(f"{len(array)} targets for {samples} samples; give one for all, or one each")
    return array.reshape(samples, -1)


def _check_range(indices: Array, shape: Shape, output: str) -> None:
    if not all(isinstance(d, int) for d in shape[1:]):
        raise TargetError(f"the size of output '{output}' is unknown before it runs: {shape}")
    for axis, size in enumerate(shape):
        limit = size if isinstance(size, int) else np.iinfo(np.int64).max
        wrong = (indices[:, axis] < 0) | (indices[:, axis] >= limit)
        if wrong.any():
            where = f" on axis {axis}" if len(shape) > 1 else ""
            allowed = f"0 to {limit - 1}" if isinstance(size, int) else "at least 0"
            bad = indices[wrong, axis][0]
            raise TargetError(f"target {bad} is out of range{where}: the output '{output}' takes {allowed}")


def unravel(resolved: Array, value: Value, axis: int | None) -> Array:
    """Turn positions back into the user's form: classes (N,), indices (N, axes), or labels."""
    shape = _axes_of_one(value, axis)
    sizes = [d for d in shape[1:] if isinstance(d, int)]  # the size of the first axis is not needed
    if not value.is_float or len(shape) < 2 or len(sizes) < len(shape) - 1:
        return resolved
    places, rest = [], resolved
    for stride in np.cumprod([1, *reversed(sizes)])[:0:-1]:
        places.append(rest // stride)
        rest = rest % stride
    return np.stack([*places, rest], axis=-1)
