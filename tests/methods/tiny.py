"""Options of every method that suit the tiny models, and parts that the tests of several methods share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np

import onnxplain as ox
from tests.models import MLP, TINY, Array, Tiny
from tests.reference import relative_error

OPTIONS: dict[str, dict[str, Any]] = {
    "gradient": {},
    "gradient_x_input": {},
    "sensitivity": {},
    "integrated_gradients": {"steps": 5, "quadrature": "midpoint"},
    "expected_gradients": {"baselines": [0.25, -0.5], "samples": 5},
    "smoothgrad": {"samples": 4, "noise": 0.5, "relative": False},
    "smoothgrad_squared": {"samples": 4, "base": "lrp", "rule": "epsilon"},
    "vargrad": {"samples": 4, "noise": 1, "relative": False, "base": "gradient_x_input", "shape": "uniform"},
    "internal_influence": {"steps": 4, "quadrature": "right"},
    "conductance": {"steps": 4, "baseline": 0.25},
    "taylor": {"root": "gradient", "steps": 8},
    "guided_backprop": {},
    "deconvnet": {},
    "rect_grad": {"percentile": 40},
    "beta_smooth": {"beta": 3},
    "lrp": {"composite": "epsilon_plus"},
    "deep_taylor": {},
    "deeplift": {"rule": "reveal_cancel", "baseline": 0.25},
    "occlusion": {"window": 3, "stride": 2},
    "feature_ablation": {},
    "feature_permutation": {"samples": 3},
    "rise": {"samples": 20},
    "lime": {"samples": 60},
    "kernel_shap": {"samples": 80},
    "shapley_sampling": {"samples": 3},
}


# What another rounding becomes: the search for a root may end at another kink of the network (inputs changed by 1e-7
# move it as far, by 4e-3), and a regression subtracts scores from one another that are nearly the same.
AMPLIFIED = {"taylor": 2e-2, "kernel_shap": 5e-5}


MAPS = {
    "cam",
    "grad_cam",
    "grad_cam_plus_plus",
    "hires_cam",
    "layer_cam",
    "guided_grad_cam",
    "score_cam",
    "recipro_cam",
}  # see test_cams.py


ALONE = {method: options for method, options in OPTIONS.items() if method != "feature_permutation"}


@cache
def load(name: str) -> ox.Model:
    return ox.load(TINY[name].proto())


def parts(result: ox.Attribution) -> dict[str, Array]:
    return {name: result[name].values for name in result.names}


def assert_close(a: Mapping[str, Array], b: Mapping[str, Array], tolerance: float = 1e-5) -> None:
    assert set(a) == set(b)
    for name in a:
        assert relative_error(a[name], b[name]) < tolerance, name


def mlp_gradient(x: Array, target: int) -> Array:
    """The gradient of MLP's output, written out."""
    w1, b1, w2 = (MLP.weights[n].astype(np.float64) for n in ("w1", "b1", "w2"))
    return ((x @ w1 + b1 > 0) * w2[:, target]) @ w1.T


def mean_on_the_line(values: Callable[[float], Array], n: int, quadrature: str) -> Array:
    if quadrature == "trapezoid":
        points = np.linspace(0, 1, n)
        return np.trapezoid([values(t) for t in points], points, axis=0)
    if quadrature == "gauss_legendre":
        points, weights = np.polynomial.legendre.leggauss(n)
        return sum(w / 2 * values((1 + p) / 2) for p, w in zip(points, weights, strict=True))
    start = {"left": 0, "midpoint": 0.5, "right": 1}[quadrature]
    return sum(values((k + start) / n) for k in range(n)) / n


def smooth(tiny: Tiny) -> Tiny:
    """The model without kinks, on whose gradient the quadrature converges at once."""
    return replace(tiny, text=tiny.text.replace("Relu", "Softplus").replace("MaxPool", "AveragePool"))


def rise(tiny: Tiny, feeds: Mapping[str, Array], start: Mapping[str, Array], target: Array) -> Array:
    scores = tiny.evaluate(feeds) - tiny.evaluate({**feeds, **start})
    return scores[np.arange(len(target)), target]


def totals(result: ox.Attribution) -> Array:
    return sum(v.reshape(len(v), -1).sum(axis=1, dtype=np.float64) for v in parts(result).values())


def last_classes(tiny: Tiny, samples: int) -> Array:
    """Flat positions: the last element for the first sample, the one before for the second ..."""
    size = int(np.prod(tiny.output))
    return (size - 1 - np.arange(samples)) % size


def target_of(tiny: Tiny, flat: Array) -> Array:
    return flat if len(tiny.output) < 2 else np.stack(np.unravel_index(flat, tiny.output), axis=1)
