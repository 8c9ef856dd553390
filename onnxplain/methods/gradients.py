"""Methods that read the gradient at one point: the input, or a root of the score near it."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

import numpy as np

from onnxplain import composites
from onnxplain.arguments import Count, Valid, one_of
from onnxplain.distributions import Distribution, Line, Root, Search, baselines
from onnxplain.methods import options, readouts
from onnxplain.methods.method import Method
from onnxplain.methods.papers import MONTAVON_2017, MONTAVON_2018, SHRIKUMAR_2016, SIMONYAN_2014
from onnxplain.methods.spec import Cost, Doc, documented

ONE_PASS = Cost("1", "1")


@documented(
    "gradients",
    formula="g = df(x) / dx",
    latex=r"\phi_i = \frac{\partial f(x)}{\partial x_i}",
    cost=ONE_PASS,
    use="To see how the score reacts to small changes of the input: fast, defined for every differentiable model, and"
    " the basis of many other methods.",
    avoid="To say how much of the score an element makes up: where a function saturates, its derivative is 0 however"
    " much the element matters; gradients of deep networks with ReLUs look noisy.",
    papers=(SIMONYAN_2014,),
)
def gradient() -> Method:
    """Derivative of the score by each input element, with its sign."""
    return Method("gradient", composites.gradient())


@documented(
    "gradients",
    formula="x * g, g = df(x) / dx",
    latex=r"\phi_i = x_i \, \frac{\partial f(x)}{\partial x_i}",
    cost=ONE_PASS,
    use="As a first, cheap estimate of contributions. For networks of ReLUs and max pooling without biases the"
    " attributions sum to the score, and equal those of LRP-0.",
    avoid="Where an input of 0 carries information (it always gets 0), or where the network has biases or saturates:"
    " integrated_gradients and deeplift account for these.",
    papers=(SHRIKUMAR_2016,),
)
def gradient_x_input() -> Method:
    """Derivative of the score by each input element, times the element."""
    return Method("gradient_x_input", composites.gradient(), readout=readouts.times_input)


Norm = Literal["square", "absolute"]


@documented(
    "gradients",
    formula="g^2, or |g|; g = df(x) / dx",
    latex=r"\phi_i = \left(\frac{\partial f(x)}{\partial x_i}\right)^2",
    cost=ONE_PASS,
    use="To see where the score is sensitive, whatever the direction; the usual saliency map.",
    avoid="Where the sign matters: it is lost.",
    papers=(MONTAVON_2018, SIMONYAN_2014),
)
def sensitivity(
    norm: Annotated[
        Norm,
        Doc(
            "What removes the sign: the square, or the absolute value.",
            source=f"square: {MONTAVON_2018.citation}; absolute: {SIMONYAN_2014.citation}, captum's Saliency",
        ),
    ] = "square",
) -> Method:
    """Squared derivative of the score by each input element, or its absolute value."""
    readout = {"square": readouts.squared, "absolute": readouts.absolute}[norm]
    return Method("sensitivity", composites.gradient(), readout=readout)


Array = np.ndarray[Any, Any]
RootName = Literal["zero", Search]


def _check_root(name: str, value: Any) -> None:
    if isinstance(value, str):
        one_of(get_args(RootName)).check(name, value)
    baselines.check_baseline(value)


ROOT = Valid(
    f"one of {', '.join(get_args(RootName))}; or a finite number or an array of such numbers",
    f"{{{', '.join(map(repr, get_args(RootName)))}}}, float or ndarray",
    _check_root,
)


@documented(
    "gradients",
    formula="(x - r) * df(r) / dr, r: the root; for root='zero' the limit x * df(x) / dx",
    latex=r"\phi_i = (x_i - r_i) \, \frac{\partial f(r)}{\partial r_i}",
    promise="f(x) - f(r) to first order, r: the root, where f(r) is 0 if one is found; f(x) for root='zero'",
    cost=Cost(
        "1",
        "1",
        "root='zero'; a point as root takes 3 forward passes; a search takes steps + 2, and for"
        " root='gradient' one more backward pass",
    ),
    use="To decompose the score by its own Taylor expansion, with the residual as a measure of how linear the model is"
    " between the root and the input; for small or shallow networks.",
    avoid="For deep networks, whose first-order expansion holds in a tiny neighbourhood only: deep_taylor and lrp"
    " decompose layer by layer.",
    papers=(MONTAVON_2017, MONTAVON_2018),
)
def taylor(
    root: Annotated[
        RootName | float | Array,
        ROOT,
        Doc(
            "Where the score is expanded: 'zero', the limit of points that go to the input along x itself, for"
            " functions with f(t x) = t f(x); 'segment', the point nearest to the input on the straight line to the"
            " baseline at which the score is 0; 'gradient', the same down the gradient; or a point, as a number or an"
            " array.",
            options.INPUT_UNITS,
            MONTAVON_2017.citation,
        ),
    ] = "zero",
    baseline: Annotated[
        baselines.Baseline,
        Valid("a finite number or an array of such numbers", "float or ndarray", baselines.VALID_BASELINE.check),
        Doc(
            "End of the line that root='segment' searches: a number or an array.",
            options.INPUT_UNITS,
            MONTAVON_2017.citation,
        ),
    ] = 0.0,
    steps: Annotated[
        Count,
        Doc(
            "Forward passes of the search for the root; each halves the interval in which it lies.",
            "forward passes",
        ),
    ] = 20,
) -> Method:
    """First-order Taylor terms of the score at a nearby root, a point where the score is 0."""
    gradient = composites.gradient()
    if not isinstance(root, str):
        where: Distribution = Line(1, root, "left")
    elif root == "zero":
        return Method("taylor", gradient, readout=readouts.times_input, promise="conservation")
    else:
        where = Root(root, baseline, steps)
    return Method("taylor", gradient, where, readouts.times_delta, promise="completeness")
