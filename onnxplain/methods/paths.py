"""Methods that average the gradient between a baseline and the input, and multiply it by their difference."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np

from onnxplain import composites
from onnxplain.arguments import Count, Positive, Valid
from onnxplain.distributions import Line, LineIncrements, Lines, References
from onnxplain.distributions.baselines import check_baseline
from onnxplain.distributions.lines import MAX_STEPS
from onnxplain.errors import OptionError
from onnxplain.methods import options, readouts
from onnxplain.methods.method import Method
from onnxplain.methods.papers import DEVILLE_1992, DHAMDHERE_2019, ERION_2021, SUNDARARAJAN_2017
from onnxplain.methods.spec import Cost, Doc, documented


@documented(
    "paths",
    formula="(x - b) * sum_k w_k g(b + t_k (x - b)), b: the baseline, t_k: positions, w_k: weights of the points",
    latex=r"\phi_i = (x_i - b_i) \int_0^1 \frac{\partial f(b + t (x - b))}{\partial x_i} \, dt",
    promise="f(x) - f(baseline), up to the error of the quadrature, which the residual states",
    cost=Cost("steps + 2", "steps", "with a tolerance, up to 4096 steps"),
    use="For attributions that account for the whole change of the score since the baseline, on any differentiable"
    " model; the residual says how exact they are.",
    avoid="Where no baseline stands for the absence of information: the attributions depend on it, and elements equal"
    " to it get 0 (black pixels at a baseline of black).",
    papers=(SUNDARARAJAN_2017,),
)
def integrated_gradients(
    steps: options.Steps = 64,
    baseline: options.Baseline = 0.0,
    quadrature: options.Points = "gauss_legendre",
    calibrate: Annotated[
        bool,
        Doc(
            "Whether to move the weights of the points, as little as possible, so that the attributions sum exactly to"
            " the change of the score, at no further cost. Where that would take more than a moderate move, they stay.",
            source=f"calibration estimators, {DEVILLE_1992.citation}",
        ),
    ] = False,
    tolerance: Annotated[
        Positive | None,
        Doc(
            "Double the steps of a sample until the magnitude of its residual, the sum of its attributions minus the"
            f" change of the score, is at most this, or until there are {MAX_STEPS}. None: the steps stay as they"
            f" are.",
            "units of the explained score (absolute)",
        ),
    ] = None,
) -> Method:
    """Average gradient along the straight path from the baseline, times (input - baseline)."""
    line = Line(steps, baseline, quadrature, calibrate, tolerance)
    return Method("integrated_gradients", composites.gradient(), line, readouts.times_delta, promise="completeness")


Baselines = Annotated[
    Any,
    Valid(
        "a finite number, 'blur', or an array of finite numbers whose first axis counts the baselines",
        "float, str or ndarray of shape (K, ...)",
        lambda _, value: check_baseline(value),
    ),
    Doc(
        "The baselines: a number; 'blur', as for integrated_gradients; or an array of K baselines, which count alike"
        " for every sample.",
        options.INPUT_UNITS,
        f"{ERION_2021.citation}: samples of the training data",
    ),
]


@documented(
    "paths",
    formula="mean over baselines b and positions t in 0 ... 1 of (x - b) * g(b + t (x - b))",
    latex=r"\phi_i = \mathbb{E}_{b, \, t \sim U(0, 1)}\left[(x_i - b_i)"
    r" \frac{\partial f(b + t (x - b))}{\partial x_i}\right]",
    promise="f(x) - mean of f(b) over the baselines b, up to the error of the sampling, which the residual states",
    cost=Cost(
        "samples + baselines + 1",
        "samples",
        "baselines: how many there are; with steps instead of samples, steps * baselines points",
    ),
    use="Where one baseline is arbitrary and a few dozen samples of the data can stand for typical inputs. The result"
    " has standard errors.",
    avoid="With few samples: each attribution is a random estimate; with a single baseline integrated_gradients is"
    " exact at the same cost.",
    papers=(ERION_2021, SUNDARARAJAN_2017),
)
def expected_gradients(
    baselines: Baselines = 0.0,
    samples: Annotated[
        Count | None,
        Doc(
            "Number of random points, spread evenly over the lines to all baselines. None: 64, unless steps are given.",
            "points",
            ERION_2021.citation,
        ),
    ] = None,
    seed: options.Seed = 0,
    steps: Annotated[
        Count | None,
        Doc(
            "Instead of random points: the number of Gauss-Legendre points on the line to each baseline.",
            "points per baseline",
        ),
    ] = None,
) -> Method:
    """Integrated gradients averaged over several baselines, at random points on the lines to them."""
    if samples is not None and steps is not None:
        raise OptionError("expected_gradients takes samples (random points) or steps (on the line to each baseline)")
    references = References(baselines) if np.ndim(baselines) == 0 else References(baselines=baselines)
    if steps is None:
        lines = Lines(references, samples=64 if samples is None else samples, seed=seed)
    else:
        lines = Lines(references, steps, seed=seed)
    return Method("expected_gradients", composites.gradient(), lines, readouts.times_delta, promise="completeness")


@documented(
    "paths",
    formula="sum_k g_k * (h_k - h_(k-1)), h: the internal tensor at the points, g_k: derivative of the score by it",
    latex=r"\phi_j = \int_0^1 \frac{\partial f}{\partial h_j} \, \frac{d h_j(b + t (x - b))}{dt} \, dt",
    promise="f(x) - f(baseline), up to the error of the quadrature, which the residual states; at the layers that all"
    " paths through the model cross",
    cost=Cost("2 * steps + 3", "steps", "half of the forward passes end at the internal tensor"),
    use="To say how much of a prediction flows through each neuron or channel of a layer, named with at=.",
    avoid="For the model's own inputs: there it is integrated_gradients at twice the cost.",
    papers=(DHAMDHERE_2019,),
)
def conductance(
    steps: options.Steps = 64, baseline: options.Baseline = 0.0, quadrature: options.Points = "gauss_legendre"
) -> Method:
    """Flow of integrated gradients through the elements of an internal tensor (at=)."""
    lines = LineIncrements(References(baseline), steps, quadrature)
    return Method("conductance", composites.gradient(), lines, promise="completeness")
