"""Data sets that do not fit in memory: pieces of them, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from onnxplain.api import Explainer, PreparedBatch
from onnxplain.errors import InputError, OnnxplainError, OptionError, TargetError
from onnxplain.graph.axes import batch_axes
from onnxplain.questions.quantities import Quantity
from onnxplain.runtime.device import Tensor, received

Array = np.ndarray[Any, Any]
Data = Array | Mapping[str, Array] | Iterable[Any]
Progress = Callable[[int, int | None], None]


def walk(
    explainer: Explainer, data: Data, target: Any, use: Callable[[PreparedBatch, int], None], progress: Progress | None
) -> None:
    """Hand the data over in pieces that go through the model at once; nothing of them is kept.

    Parameters
    ----------
    data, target
        See `onnxplain.influence`.
    use
        Gets a piece and its number of samples.
    progress
        Called with the number of samples that are done, and of all: None for an iterable, which nobody can know.

    Raises
    ------
    InputError, TargetError, OptionError
        Bad data; the message names the batch of an iterable, counted from 0.
    """
    batched = batch_axes(explainer.model.inputs)
    done, size = 0, 1  # the first piece tells how many samples fit into the memory bound
    for label, batch, asked in _batches(data, target):
        with _labelled(label):
            arrays = _arrays(explainer, batch)
            axes = {n: axis for n, axis in batched.items() if np.ndim(arrays.get(n, 0)) > axis}
            count = _count({name: arrays[name].shape[axis] for name, axis in axes.items()})
            start = 0
            while start < count:
                rows = slice(start, min(start + size, count))
                part = {n: a[(slice(None),) * axes[n] + (rows,)] if n in axes else a for n, a in arrays.items()}
                call = explainer.prepare(part, _target_of(asked, rows, count))
                size = min(chunked.chunk for chunked in (call.runner.main, call.runner.front) if chunked)
                use(call, rows.stop - start)
                done, start = done + rows.stop - start, rows.stop
                if progress:
                    progress(done, None if label else count)
    if not done:
        raise InputError("the data holds no sample")


def _batches(data: Data, target: Any) -> Iterator[tuple[str, Any, Any]]:
    """What to call a batch, the batch, and its target."""
    if isinstance(data, Mapping) or hasattr(data, "__array__"):
        yield "", data, target
        return
    if not isinstance(data, Iterable) or isinstance(data, str | bytes):
        kinds = "an array, a dict of arrays, or an iterable of batches"
        raise InputError(f"data is {kinds}, not {type(data).__name__}")
    for number, item in enumerate(data):
        label = f"batch {number}"
        if not isinstance(item, tuple):
            yield label, item, target
        elif len(item) != 2:
            raise InputError(f"{label}: a tuple is a batch and its target, and this one has {len(item)} parts")
        elif target is not None:
            raise OptionError(f"{label}: it comes with a target, and target= says another", "Leave target= out.")
        else:
            yield label, *item


@contextmanager
def _labelled(label: str) -> Iterator[None]:
    try:
        yield
    except OnnxplainError as error:
        if not label:
            raise
        raise type(error)(f"{label}: {error.message}", error.hint) from None


def _arrays(explainer: Explainer, batch: Any) -> dict[str, Array]:
    inputs = explainer.model.inputs
    if not isinstance(batch, Mapping):
        if len(inputs) != 1:
            names = ", ".join(value.name for value in inputs)
            raise InputError(f"the model has {len(inputs)} inputs: {names}", "Give dicts of name -> array.")
        batch = {inputs[0].name: batch}
    given = {name: received(array, name, explainer.providers.takes_tensors) for name, array in batch.items()}
    return {name: array.numpy() if isinstance(array, Tensor) else array for name, array in given.items()}


def _count(counts: Mapping[str, int]) -> int:
    """Number of samples; 1 where no input has a batch axis, or an array lacks it, which the checks of inputs see."""
    if len(set(counts.values())) > 1:
        raise InputError(f"the inputs have different numbers of samples: {dict(counts)}")
    return next(iter(counts.values()), 1)


def _target_of(target: Any, rows: slice, count: int) -> Any:
    """The part of a target that belongs to some of ``count`` samples."""
    if isinstance(target, Quantity):
        terms = tuple((_target_of(w, rows, count), _target_of(e, rows, count)) for w, e in target.terms)
        return replace(target, terms=terms)
    each = np.asarray(target) if hasattr(target, "__array__") else target
    if not isinstance(each, list) and not (isinstance(each, np.ndarray) and each.ndim):
        return target
    if len(each) != count:
        raise TargetError(f"{len(each)} targets for {count} samples; give one for all, or one each")
    return each[rows]
