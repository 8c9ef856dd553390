"""Which units of a layer decide, over data sets that do not fit in memory: influence-directed explanations."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from onnxplain import execution
from onnxplain.api import Explainer, PreparedBatch
from onnxplain.concepts.carried import Carried
from onnxplain.concepts.units import Agreement, Influence, Unit
from onnxplain.datasets.batches import Data, Progress, walk
from onnxplain.datasets.moments import Moments
from onnxplain.errors import InputError, OptionError
from onnxplain.graph.ir import Graph, Value
from onnxplain.methods.cams import channel_axes
from onnxplain.model import Loadable, load
from onnxplain.questions.quantities import Quantity, Target
from onnxplain.questions.question import internal
from onnxplain.runtime.batching import DEFAULT_MEMORY
from onnxplain.runtime.providers import Provider

__all__ = ["Agreement", "Carried", "Influence", "Unit", "influence"]

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
    """Mean influence of the units of an internal tensor on a quantity, over a data set [leino]_.

    The mean over the samples x of what ``method`` finds at the tensor z; for the gradient, dq/dz at z(x). Samples go
    through the model in pieces that fit the memory bound, and only running means and variances are kept.

    Parameters
    ----------
    model, output, probability, providers, memory, options
        See `onnxplain.Explainer`.
    data
        The samples: an array, or a dict of arrays by input name; or an iterable of such batches, which is gone through
        once, and nothing of it is kept. A tuple in place of a batch is the batch and its target. Arrays may be mapped
        from a file. To stop early and keep what there is, let the iterable end.
    at
        Name of the tensor, or a pattern that one name matches.
    target
        See `onnxplain.Explainer.__call__`; one per sample for arrays, or for each batch in a tuple with it.
    method
        One that walks back.
    axis
        The axis of the tensor, batch included, that tells its units apart; or several. Elements along the others are
        summed up. Default: the channels of feature maps; axis 1 of others. -1: the features of (batch, tokens,
        features).
    progress
        Called with (done, total) samples after each piece; total is None for an iterable. An exception that it raises
        ends the work.

    Returns
    -------
    Influence

    Raises
    ------
    OptionError
        No such tensor or axis, or a method of forward passes only.
    InputError, TargetError
        Bad data; the message names the batch of an iterable, counted from 0. No sample at all.

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
        raise OptionError(f"units are those of one tensor, and {at!r} names {', '.join(explainer.explained)}")
    (at,) = explainer.explained
    value, axes = _units(explainer.model.canonical().graph, at, axis)
    collected = _Collected(explainer, at, axes)
    walk(explainer, data, target, collected.add, progress)
    elements, units = collected.elements, collected.units
    assert units is not None
    return Influence(
        at,
        method,
        units.count,
        elements.mean if elements else None,
        elements.error if elements else None,
        units.mean,
        units.error,
        axes,
        len(value.shape or ()) - 1,
        make("feature_ablation"),
        target,
    )


class _Collected:
    """Moments of the elements of a tensor, while their sizes stay the same, and of its units."""

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
            raise InputError(f"'{self._at}' has units of shape {sums.shape[1:]} here, and before {before}")
        if self.elements and values.shape[1:] != self.elements.mean.shape:
            self.elements = None
        if self.elements:
            self.elements.add(values)
        self.units.add(sums)


def _units(graph: Graph, at: str, axis: int | tuple[int, ...] | None) -> tuple[Value, tuple[int, ...]]:
    """The tensor, and the axes that tell its units apart, counted without the batch axis."""
    batch, value = internal(graph, at).axis, graph.value(at)
    if value.shape is None:
        raise OptionError(f"nobody knows how many axes '{at}' has before it runs")
    rank = len(value.shape)
    if axis is None:
        axis = channel_axes(graph).get(at, 1) if rank > 1 else ()
    chosen = axis if isinstance(axis, tuple) else (axis,)
    for one in chosen:
        if isinstance(one, bool) or not isinstance(one, int) or not -rank <= one < rank or one % rank == batch:
            besides = f"one of 0 to {rank - 1} other than the batch, {batch}, or several"
            raise OptionError(f"axis {one!r} does not tell units apart: {value}", f"Give axis={besides}.")
    return value, tuple(sorted({one % rank - (one % rank > batch) for one in chosen}))
