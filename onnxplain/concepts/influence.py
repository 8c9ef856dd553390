"""Influence-directed explanations: mean influence of a layer's units on a prediction, over a data set of any size."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from onnxplain import execution
from onnxplain.api import Explainer
from onnxplain.concepts.units import Influence
from onnxplain.datasets import Data, Moments, Progress, for_each_chunk
from onnxplain.errors import InputError, OptionError
from onnxplain.execution.requests import PreparedBatch
from onnxplain.graph.ir import Graph, Value
from onnxplain.methods.cams import channel_axes
from onnxplain.model import Loadable, load
from onnxplain.questions.quantities import Quantity, Target
from onnxplain.questions.question import internal
from onnxplain.runtime.batching import DEFAULT_MEMORY
from onnxplain.runtime.providers import Provider

Array = np.ndarray[Any, Any]


def influence(
    model: Loadable,
    data: Data,
    at: str,
    target: Target | Quantity = None,
    method: str = "gradient",
    *,
    axis: int | tuple[int, ...] | None = None,
    output: str | None = None,
    probability: bool = False,
    providers: Sequence[Provider] | None = None,
    memory: int | float | str = DEFAULT_MEMORY,
    progress: Progress | None = None,
    **options: Any,
) -> Influence:
    """Compute the mean influence of an internal tensor's units on a quantity, over a data set [leino]_.

    The influence is the mean over samples x of the attribution of ``method`` at the tensor z; for the gradient of a
    quantity q, the mean of dq/dz at z(x). Samples go through the model in chunks that fit the memory bound, and only
    running means and variances are kept, so the data set need not fit in memory.

    Parameters
    ----------
    model, output, probability, providers, memory, options
        As in `onnxplain.Explainer`.
    data
        The samples: an array of shape (N, ...), a dict of such arrays by input name, or an iterable of such batches. An
        iterable is read once and never stored; each item is a batch, or a tuple (batch, target). Arrays may be
        memory-mapped. To stop early and keep the result so far, end the iterable.
    at
        Name of the tensor, or a pattern that matches one name.
    target
        As in `onnxplain.Explainer.__call__`. For arrays, also one per sample. For an iterable, one for all samples;
        targets that differ come in tuples (batch, target).
    method
        A method that walks back through the model (gradient, lrp, conductance, ...).
    axis
        The axis, or axes, whose positions are the units, the batch axis counted. Attributions are summed over all other
        axes. Default: the channel axis of feature maps, axis 1 of other tensors. Use -1 for the features of a (batch,
        tokens, features) tensor.
    progress
        Called with (done, total) in samples after each chunk; total is None for an iterable. An exception that it
        raises ends the computation.

    Returns
    -------
    Influence

    Raises
    ------
    OptionError
        The tensor or the axis does not exist, or the method uses forward passes only.
    InputError, TargetError
        The data is invalid or empty. The message names the batch of an iterable, counted from 0.

    References
    ----------
    .. [leino] Leino, Sen, Datta, Fredrikson and Li 2018, Influence-directed explanations for deep convolutional
       networks, IEEE International Test Conference. https://arxiv.org/abs/1802.03788
    """
    make = partial(
        Explainer, load(model), at=at, output=output, probability=probability, providers=providers, memory=memory
    )
    explainer = make(method, **options)
    if explainer.method.composite is None or explainer.method.cam is not None:
        raise OptionError(f"{method} does not walk back to a tensor", "For example, gradient, lrp or conductance do.")
    if len(explainer.explained) > 1:
        raise OptionError(f"influence needs one tensor, and {at!r} matches {', '.join(explainer.explained)}")
    (at,) = explainer.explained
    value, axes = _units(explainer.model.canonical().graph, at, axis)
    collected = _Collected(explainer, at, axes)
    for_each_chunk(explainer, data, target, collected.add, progress)
    elements, units = collected.elements, collected.units
    assert units is not None
    return Influence(
        at=at,
        method=method,
        samples=units.count,
        mean=elements.mean if elements else None,
        error=elements.error if elements else None,
        units=units.mean,
        unit_errors=units.error,
        axes=axes,
        _rank=len(value.shape or ()) - 1,
        _forward=make("feature_ablation"),
        _target=target,
    )


class _Collected:
    """Running moments of a tensor's attributions.

    Attributes
    ----------
    elements
        Of each element; None once two samples have differed in the size of an axis that is summed over.
    units
        Of each unit; None before the first sample.
    """

    def __init__(self, explainer: Explainer, at: str, axes: tuple[int, ...]) -> None:
        self._explainer, self._at, self._axes = explainer, at, axes
        self.elements: Moments | None = None
        self.units: Moments | None = None

    def add(self, call: PreparedBatch, count: int) -> None:
        answer = execution.run(call.runner, self._explainer.method, call.feeds, call.target, None)
        (part,) = call.runner.program.question.slices
        values = np.moveaxis(answer.attributions[self._at], part.axis, 0)
        summed = tuple(axis + 1 for axis in range(values.ndim - 1) if axis not in self._axes)
        sums = values.sum(axis=summed, dtype=np.float64)
        if self.units is None:
            self.elements, self.units = Moments(values.shape[1:]), Moments(sums.shape[1:])
        if sums.shape[1:] != self.units.mean.shape:
            before = self.units.mean.shape
            raise InputError(f"'{self._at}' has units of shape {sums.shape[1:]} here, and had {before} before")
        if self.elements and values.shape[1:] != self.elements.mean.shape:
            self.elements = None
        if self.elements:
            self.elements.add(values)
        self.units.add(sums)


def _units(graph: Graph, at: str, axis: int | tuple[int, ...] | None) -> tuple[Value, tuple[int, ...]]:
    """Return the tensor, and the axes whose positions are its units, counted without the batch axis."""
    batch, value = internal(graph, at).axis, graph.value(at)
    if value.shape is None:
        raise OptionError(f"the number of axes of '{at}' is unknown until run time; its units need it")
    rank = len(value.shape)
    if axis is None:
        axis = channel_axes(graph).get(at, 1) if rank > 1 else ()
    chosen = axis if isinstance(axis, tuple) else (axis,)
    for one in chosen:
        if isinstance(one, bool) or not isinstance(one, int) or not -rank <= one < rank or one % rank == batch:
            besides = f"one of 0 to {rank - 1} other than the batch axis, {batch}, or several"
            raise OptionError(f"axis {one!r} is not an axis of units: {value}", f"Give axis={besides}.")
    return value, tuple(sorted({one % rank - (one % rank > batch) for one in chosen}))
