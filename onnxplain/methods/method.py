"""`Method`: a method as data: composite, seed, distribution, readout, and what it promises."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from onnxplain.composites import Composite
from onnxplain.distributions import AveragedOver, Distribution, Moment, Point
from onnxplain.methods import cams, readouts

Promise = Literal["completeness", "conservation"]


@dataclass(frozen=True, eq=False)
class Method:
    """One way to explain.

    Attributes
    ----------
    name
        The method's name.
    composite
        Which rule where in the reverse walk; None: forward passes only.
    distribution
        At which points.
    readout
        (cotangent, x, baseline) -> attribution; after averaging over the points where these differ by a baseline.
    value_seed
        Start the walk from the score itself (relevance) instead of from 1 (gradient).
    promise
        What the attributions sum to: "completeness" (f(x) - f(baseline)), "conservation" (f(x)), or nothing.
    cam
        For class activation maps: what is done with the layer.
    moment
        What is made of the attributions at the points of a `Sampled` distribution: "mean", "square" or "variance".
    around
        Over which points all of this is averaged.
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
