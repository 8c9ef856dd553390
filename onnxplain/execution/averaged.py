"""Moments of what any method finds at points around the inputs, one point after the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from onnxplain.distributions.baselines import baseline_like
from onnxplain.distributions.sampling import Noise, Sampled
from onnxplain.errors import OptionError
from onnxplain.execution.moments import moment_and_error
from onnxplain.execution.runner import Answer
from onnxplain.graph.ir import is_float
from onnxplain.runtime.chunked import Progress

Array = np.ndarray[Any, Any]
Explain = Callable[[Mapping[str, Array], Array | None], Answer]


def explain_averaged(
    explain: Explain,
    sampled: Sampled,
    moment: str,
    inputs: list[str],
    feeds: Mapping[str, Array],
    target: Array | None,
    progress: Progress | None,
) -> Answer:
    """Average a method over points.

    Parameters
    ----------
    explain
        What the method finds at an input.
    inputs
        Names of those that move.
    feeds
        By input name, the batch in front.

    Raises
    ------
    OptionError
        No input can move.
    """
    moving = {name: feeds[name] for name in inputs if is_float(feeds[name].dtype)}
    if not moving:
        raise OptionError(f"no input of floating-point numbers to move: {', '.join(inputs)}")
    here = explain(feeds, target)
    sums = {name: np.zeros(a.shape) for name, a in here.attributions.items()}
    squares = {name: np.zeros(a.shape) for name, a in here.attributions.items()}
    for index, weight in enumerate(sampled.weights):
        points = {name: _point(sampled, index, place, name, x) for place, (name, x) in enumerate(moving.items())}
        found = explain({**feeds, **points}, here.target)
        for name, values in found.attributions.items():
            sums[name] += weight * values.astype(np.float64)
            squares[name] += weight * values.astype(np.float64) ** 2
        if progress:
            progress(index + 1, sampled.count)
    dtypes = {name: a.dtype for name, a in here.attributions.items()}
    attributions, errors = moment_and_error(sums, squares, sampled, moment, dtypes)
    return replace(here, attributions=attributions, residual=None, errors=errors, copies=None)


def _point(sampled: Sampled, index: int, place: int, name: str, x: Array) -> Array:
    if isinstance(sampled, Noise):
        return np.asarray(x + sampled.scale(x) * sampled.draw(index, place, x.shape[1:]).astype(x.dtype))
    baseline = baseline_like(sampled.references.get(int(sampled.lines[index])), x, name)
    return np.asarray(baseline + x.dtype.type(sampled.positions[index]) * (x - baseline))
