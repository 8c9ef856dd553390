"""Methods that read the gradient, or a modified one, at one point or along a line."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from onnxplain.arguments import check_flag
from onnxplain.composites import composite as composites
from onnxplain.distributions import Distribution, Line, LineIncrements, Lines, Quadrature, References, Root, Search
from onnxplain.distributions.baselines import Baseline
from onnxplain.errors import OptionError, did_you_mean
from onnxplain.methods import readouts
from onnxplain.methods.method import Method

Array = np.ndarray[Any, Any]


def gradient() -> Method:
    """Derivative of the score by each input element (Simonyan et al. 2014; signed)."""
    return Method("gradient", composites.gradient())


def gradient_x_input() -> Method:
    """Derivative times input (Shrikumar et al. 2016)."""
    return Method("gradient_x_input", composites.gradient(), readout=readouts.times_input)


def sensitivity(norm: str = "square") -> Method:
    """Squared derivative (Montavon et al. 2018); norm=absolute gives its absolute value (captum's Saliency)."""
    norms = {"square": readouts.squared, "absolute": readouts.absolute}
    if norm not in norms:
        raise OptionError(f"there is no norm {norm!r}", did_you_mean(str(norm), norms))
    return Method("sensitivity", composites.gradient(), readout=norms[norm])


def integrated_gradients(
    steps: int = 64,
    baseline: Baseline = 0.0,
    quadrature: Quadrature = "gauss_legendre",
    calibrate: bool = False,
    tolerance: float | None = None,
) -> Method:
    """Mean gradient on a line, times the way (Sundararajan et al. 2017); tolerance adds steps, calibrate: exact sum."""
    check_flag("calibrate", calibrate)
    line = Line(steps, baseline, quadrature, calibrate, tolerance)
    return Method("integrated_gradients", composites.gradient(), line, readouts.times_delta, promise="completeness")


def expected_gradients(
    baselines: Any = 0.0, samples: int | None = None, seed: int = 0, steps: int | None = None
) -> Method:
    """Integrated gradients, mean over baselines: at random points (Erion et al. 2021), or steps= on each line."""
    if samples is not None and steps is not None:
        raise OptionError("expected_gradients takes samples (random points) or steps (on the line to each baseline)")
    references = References(baselines) if np.ndim(baselines) == 0 else References(baselines=baselines)
    if steps is None:
        lines = Lines(references, samples=64 if samples is None else samples, seed=seed)
    else:
        lines = Lines(references, steps, seed=seed)
    return Method("expected_gradients", composites.gradient(), lines, readouts.times_delta, promise="completeness")


def conductance(steps: int = 64, baseline: Baseline = 0.0, quadrature: Quadrature = "gauss_legendre") -> Method:
    """Flow of integrated gradients through an internal tensor, at= (Dhamdhere et al. 2019)."""
    lines = LineIncrements(References(baseline), steps, quadrature)
    return Method("conductance", composites.gradient(), lines, promise="completeness")


def taylor(
    root: Literal["zero"] | Search | float | Array = "zero",
    baseline: Baseline = 0.0,
    steps: int = 20,
) -> Method:
    """First-order Taylor terms at a root: zero (the limit), segment, gradient, or a point (Montavon et al. 2017)."""
    gradient = composites.gradient()
    if isinstance(root, str) and root == "zero":
        return Method("taylor", gradient, readout=readouts.times_input, promise="conservation")
    if isinstance(root, str):
        where: Distribution = Root(root, baseline, steps)
    else:
        where = Line(1, root, "left")
    return Method("taylor", gradient, where, readouts.times_delta, promise="completeness")


def guided_backprop(clip: bool = False) -> Method:
    """Gradient that keeps only positive parts at every Relu (Springenberg et al. 2015); clip=true: at ReLU6, too."""
    check_flag("clip", clip)
    return Method("guided_backprop", composites.guided_backprop(clip))


def deconvnet(clip: bool = False, values: bool = False) -> Method:
    """Positive parts of what arrives at every Relu (Zeiler and Fergus 2014); values=true: starts from activations."""
    check_flag("clip", clip)
    check_flag("values", values)
    return Method("deconvnet", composites.deconvnet(clip), value_seed=values)


def rect_grad(percentile: float = 98.0, clip: bool = False) -> Method:
    """Gradient that passes a Relu only where it matters most there: above a percentile (Kim et al. 2019)."""
    check_flag("clip", clip)
    if isinstance(percentile, bool) or not isinstance(percentile, int | float) or not 0 <= percentile <= 100:
        raise OptionError(f"percentile must be a number from 0 to 100, not {percentile!r}")
    return Method("rect_grad", composites.rect_grad(float(percentile), clip))
