"""Moments of any method's attributions at sampled points of the inputs, one run of the method for each point."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from onnxplain.distributions.sampling import AveragedOver
from onnxplain.errors import OptionError
from onnxplain.execution.answer import Answer
from onnxplain.execution.moments import moment_and_error
from onnxplain.graph.ir import is_float
from onnxplain.runtime.chunked import Progress

Array = np.ndarray[Any, Any]
Explain = Callable[[Mapping[str, Array], Array | None], Answer]


def explain_averaged(
    explain: Explain,
    around: AveragedOver,
    inputs: list[str],
    feeds: Mapping[str, Array],
    target: Array | None,
    progress: Progress | None,
) -> Answer:
    """A moment of the attributions at sampled points.

    Parameters
    ----------
    explain
        (feeds, target) -> the method's answer there.
    around
        The points, and the moment.
    inputs
        Names of the inputs that move, if they hold floating-point numbers.
    feeds
        Arrays by input name, the batch axis in front.
    target
        As for `onnxplain.execution.run`; resolved at the input itself.

    Raises
    ------
    OptionError
        None of the inputs holds floating-point numbers.
    """
    moving = {name: feeds[name] for name in inputs if is_float(feeds[name].dtype)}
    if not moving:
        raise OptionError(f"no input of floating-point numbers to move: {', '.join(inputs)}")
    at_input = explain(feeds, target)
    sums = {name: np.zeros(a.shape) for name, a in at_input.attributions.items()}
    squares = {name: np.zeros(a.shape) for name, a in at_input.attributions.items()}
    for index, weight in enumerate(around.points.weights):
        points = {name: around.points.point(index, place, name, x) for place, (name, x) in enumerate(moving.items())}
        answer = explain({**feeds, **points}, at_input.target)
        for name, values in answer.attributions.items():
            sums[name] += weight * values.astype(np.float64)
            squares[name] += weight * values.astype(np.float64) ** 2
        if progress:
            progress(index + 1, around.points.count)
    dtypes = {name: a.dtype for name, a in at_input.attributions.items()}
    attributions, errors = moment_and_error(sums, squares, around.points, around.moment, dtypes)
    return replace(at_input, attributions=attributions, residual=None, errors=errors, copies=None)
