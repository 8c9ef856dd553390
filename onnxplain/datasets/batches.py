"""Data sets that need not fit in memory: one chunk after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from onnxplain.api import Explainer
from onnxplain.errors import InputError, OnnxplainError, OptionError, TargetError
from onnxplain.execution.requests import PreparedBatch
from onnxplain.graph.axes import BatchAxes
from onnxplain.questions.quantities import Quantity
from onnxplain.runtime.device import Tensor, received

Array = np.ndarray[Any, Any]
Data = Array | Mapping[str, Array] | Iterable[Any]
Progress = Callable[[int, int | None], None]


def for_each_chunk(
    explainer: Explainer, data: Data, target: Any, use: Callable[[PreparedBatch, int], None], progress: Progress | None
) -> None:
    """Call ``use`` with one chunk of the data after the other; a chunk goes through the model in one run.

    Parameters
    ----------
    explainer
        The explainer whose model, memory bound and input checks apply.
    data, target
        As in `onnxplain.influence`.
    use
        Called with (prepared chunk, its number of samples).
    progress
        Called with (done, total) in samples after each chunk; total is None for an iterable, whose length is unknown.

    Raises
    ------
    InputError, TargetError, OptionError
        The data is invalid or empty. The message names the batch of an iterable, counted from 0.
    """
    inputs = BatchAxes.of(explainer.model.inputs)
    done, size = 0, 1  # one sample first: preparing it tells how many samples fit into the memory bound
    for label, batch, batch_target in _batches(data, target):
        with _labelled(label):
            arrays = _arrays(explainer, batch)
            axes = BatchAxes({n: axis for n, axis in inputs.items() if np.ndim(arrays.get(n, 0)) > axis})
            count = _count({name: arrays[name].shape[axis] for name, axis in axes.items()})
            start = 0
            while start < count:
                rows = slice(start, min(start + size, count))
                call = explainer.prepare(axes.cut(arrays, rows), _target_of(batch_target, rows, count))
                size = min(chunked.chunk for chunked in (call.runner.main, call.runner.front) if chunked)
                use(call, rows.stop - start)
                done, start = done + rows.stop - start, rows.stop
                if progress:
                    progress(done, None if label else count)
    if not done:
        raise InputError("the data holds no samples")


def _batches(data: Data, target: Any) -> Iterator[tuple[str, Any, Any]]:
    """Yield (label for messages, batch, target); the label is empty for data that is one batch."""
    if isinstance(data, Mapping) or hasattr(data, "__array__"):
        yield "", data, target
        return
    if not isinstance(data, Iterable) or isinstance(data, str | bytes):
        kinds = "an array, a dict of arrays, or an iterable of batches"
        raise InputError(f"data must be {kinds}, not {type(data).__name__}")
    for number, item in enumerate(data):
        label = f"batch {number}"
        if not isinstance(item, tuple):
            yield label, item, target
        elif len(item) != 2:
            raise InputError(f"{label}: a tuple must be (batch, target), and this one has {len(item)} elements")
        elif target is not None:
            raise OptionError(f"{label}: there is a target in the tuple and one in target=", "Leave target= out.")
        else:
            yield label, *item


@contextmanager
def _labelled(label: str) -> Iterator[None]:
    """Put the label in front of the message of an error."""
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
    tensors = {name: received(array, name, explainer.providers.takes_tensors) for name, array in batch.items()}
    return {name: array.numpy() if isinstance(array, Tensor) else array for name, array in tensors.items()}


def _count(counts: Mapping[str, int]) -> int:
    """Return the number of samples; 1 if no input has a batch axis, or if an array lacks it.

    The input checks of `Explainer.prepare` report the missing axis.
    """
    if len(set(counts.values())) > 1:
        raise InputError(f"the inputs have different numbers of samples: {dict(counts)}")
    return next(iter(counts.values()), 1)


def _target_of(target: Any, rows: slice, count: int) -> Any:
    """Return the part of a target that belongs to some ``rows`` of ``count`` samples."""
    if isinstance(target, Quantity):
        terms = tuple((_target_of(w, rows, count), _target_of(e, rows, count)) for w, e in target.terms)
        return replace(target, terms=terms)
    each = np.asarray(target) if hasattr(target, "__array__") else target
    if not isinstance(each, list) and not (isinstance(each, np.ndarray) and each.ndim):
        return target
    if len(each) != count:
        raise TargetError(f"there are {len(each)} targets for {count} samples", "Give one for all, or one per sample.")
    return each[rows]
