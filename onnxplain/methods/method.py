"""`Method`: a method as a value: composite, seed, distribution, readout, and what the attributions sum to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from onnxplain.composites import Composite
from onnxplain.distributions import AveragedOver, Distribution, Moment, Point
from onnxplain.methods import cams, readouts

Promise = Literal["completeness", "conservation"]
"""What attributions sum to: f(x) - f(baseline), or f(x)."""


@dataclass(frozen=True, eq=False)
class Method:
    """A way to explain a score, with all of its options.

    Attributes
    ----------
    name
        The method's name.
    composite
        Assigns a rule to each node of the backward pass. None: the method runs forward passes only.
    distribution
        The points at which the model is evaluated.
    readout
        (cotangent, x, baseline) -> attribution. Where the points lie on lines to a baseline, it follows the averaging
        over the points.
    value_seed
        Whether the backward pass starts from the score itself (relevance) instead of from 1 (gradient).
    promise
        What the attributions sum to: "completeness" for f(x) - f(baseline), "conservation" for f(x), None for nothing.
    cam
        For class activation maps: how the map is made of the layer.
    moment
        Statistic of the attributions at the points of a `Sampled` distribution.
    around
        Further points, over which the whole method is averaged.
    """

    name: str
    composite: Composite | None
    distribution: Distribution = field(default_factory=Point)
    readout: Callable[[Any, Any, Any], Any] = readouts.plain
    value_seed: bool = False
    promise: Promise | None = None
    cam: cams.Cam | None = None
    moment: Moment = "mean"
    around: AveragedOver | None = None
