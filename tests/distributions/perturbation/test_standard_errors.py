"""Standard errors: by repetition, the spread of the estimates over many seeds is what each of them reports."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import onnxplain as ox
from onnxplain import execution
from onnxplain.distributions.perturbation import Estimate, KernelShap
from onnxplain.distributions.perturbation.standard_errors import mean_error, regression_errors
from onnxplain.methods import forward_only, make
from tests.distributions.perturbation.cases import by_hand
from tests.execution.test_execution import FEEDS, TARGET, runner
from tests.models import IMAGES, MLP, SIGNAL, TOKENS, TWO_INPUTS, Array, Tiny
from tests.reference import relative_error, rng

SEEDS = 200
MANY = rng(3).normal(size=(50, 2, 3)).astype(np.float32)


def moments(values: list[Array], errors: list[Array]) -> Array:
    """Reported errors (the root of their mean square) over the standard deviation of values, where these move."""
    spread = np.std(np.array(values, np.float64), axis=0, ddof=1)
    reported = np.sqrt((np.array(errors, np.float64) ** 2).mean(axis=0))
    moves = spread > 1e-6
    assert moves.mean() > 0.5
    return reported[moves] / spread[moves]


def estimated(tiny: Tiny, x: Array, method: str, options: dict[str, Any], seed: int) -> Estimate:
    """Of the first sample; its copies go through the reference evaluator."""
    perturbation: Any = ox.METHODS[method](seed=seed, **options).distribution
    plan = perturbation.plans({"x": x})[0]
    jobs = np.array([(0, copy) for copy in range(-1, plan.stages[-1])])
    copies = by_hand(perturbation, {"x": x}, {"x": np.full_like(x, options.get("baseline", 0))}, jobs)
    score, *scores = tiny.evaluate(copies)[:, 1]
    return plan.estimate(float(score), np.array(scores))


RANDOM: list[tuple[Tiny, int, str, dict[str, Any]]] = [
    (MLP, 1, "rise", {"samples": 60}),
    (MLP, 1, "rise", {"samples": 60, "center": True, "keep": 0.3}),
    (SIGNAL, 1, "rise", {"samples": 60, "cells": 3}),
    (TOKENS, 1, "rise", {"samples": 60, "baseline": 6}),
    (SIGNAL, 1, "lime", {"samples": 60}),
    (SIGNAL, 1, "lime", {"samples": 60, "alpha": 1e-3, "kernel_width": 0.15}),
    (SIGNAL, 1, "kernel_shap", {"samples": 100}),
    (SIGNAL, 1, "shapley_sampling", {"samples": 12}),
    (MLP, 8, "feature_permutation", {"samples": 3}),
]


@pytest.mark.parametrize(("tiny", "batch", "method", "options"), RANDOM, ids=[f"{r[2]}-{r[3]}" for r in RANDOM])
def test_errors_are_the_spread_over_seeds(tiny: Tiny, batch: int, method: str, options: dict[str, Any]) -> None:
    """A standard deviation over n seeds is off by 1 / sqrt(2 n) = 5%, and by 4 times that in few of many elements.

    Regressions have a bias on top, which goes down with the number of samples: hence 0.8 and 1.25 for an element.
    """
    x = np.array([[1, 2, 3, 4, 5]]) if tiny is TOKENS else tiny.x(batch)
    found = [estimated(tiny, x, method, options, seed) for seed in range(SEEDS)]
    ratio = moments([f.values["x"] for f in found], [f.errors["x"] for f in found if f.errors])
    assert 0.9 < np.median(ratio) < 1.1
    assert ratio.min() > 0.8
    assert ratio.max() < 1.25


def averaged(method: str, **options: Any) -> Array:
    answers = [
        execution.run(runner(64), make(method, {"seed": seed, **options}), FEEDS, TARGET, None) for seed in range(SEEDS)
    ]
    return moments([a.attributions["x"][0] for a in answers], [a.errors["x"][0] for a in answers])


def test_errors_of_averages_over_noise() -> None:
    for options in ({"noise": 0.5}, {"noise": 0.5, "shape": "uniform"}):
        ratio = averaged("smoothgrad", samples=20, **options)
        assert 0.8 < ratio.min() < ratio.max() < 1.25


def test_errors_of_points_that_are_spread_evenly_are_upper_bounds() -> None:
    """n points of a Latin hypercube are at least as good as n - 1 independent ones; what adds up is better still."""
    among_many = averaged("expected_gradients", samples=25, baselines=MANY)
    assert among_many.min() > 0.85  # 1, less what so many seeds cannot tell
    assert np.median(among_many) < 1.5
    assert averaged("expected_gradients", samples=25, baselines=0.3).min() > 5


def test_regression_errors_of_a_known_fit() -> None:
    """Against leaving rows out one by one, which is the same to first order, and exact in its own scale (HC3)."""
    random = rng(4)
    design, weights = random.normal(size=(400, 3)), random.random(400) + 0.1
    design -= np.average(design, axis=0, weights=weights)
    scores = np.exp(design @ [0.3, -0.2, 0.1]) + random.normal(size=400)
    scores -= np.average(scores, weights=weights)

    def fit(rows: Array) -> Array:
        roots = np.sqrt(weights[rows])
        x = design[rows] - np.average(design[rows], axis=0, weights=weights[rows])
        return np.linalg.lstsq(roots[:, None] * x, roots * scores[rows])[0]

    everything = np.arange(400)
    left_out = np.array([fit(np.delete(everything, k)) for k in everything])
    jackknife = np.sqrt(399 / 400 * ((left_out - left_out.mean(axis=0)) ** 2).sum(axis=0))
    found = regression_errors(design, weights, scores - design @ fit(everything))
    assert relative_error(found, jackknife) < 0.02


def test_too_little_to_tell() -> None:
    assert np.isnan(mean_error(np.ones((1, 3)))).all()
    assert np.isnan(regression_errors(np.ones((5, 3)), np.ones(5), np.ones(5))).all()
    for method, samples in (("rise", 1), ("lime", 11), ("kernel_shap", 20), ("shapley_sampling", 1), ("smoothgrad", 1)):
        result = ox.explain(MLP.proto(), MLP.x(2), method, samples=samples)
        assert np.isnan(result.error).all()
        assert np.isfinite(result.values).all()


def test_sets_that_leave_values_open() -> None:
    """Seed by seed, the error is not a number just where some Shapley values are told apart by no set."""
    unknown = []
    for seed in range(300):
        game = KernelShap(samples=44, seed=seed).game(11)
        sets = game.keep(np.arange(1, 45)).astype(float)
        leaves_open = np.linalg.matrix_rank(sets - sets.mean(axis=1, keepdims=True)) < 10
        errors = game.solve(1.0, rng(seed).normal(size=45))[1]
        assert errors is not None
        assert np.isnan(errors).all() == np.isnan(errors).any() == leaves_open
        unknown.append(leaves_open)
    assert 0 < sum(unknown) < 30


def test_exact_ones() -> None:
    """Where all sets, orders or others are run, nothing is random."""
    for method, samples in (("kernel_shap", 64), ("shapley_sampling", 720), ("feature_permutation", 2)):
        result = ox.explain(MLP.proto(), MLP.x(3), method, samples=samples)
        assert not result.error.any()
        assert result.error.dtype == np.float32


def test_methods_without_errors() -> None:
    for method in ("gradient", "integrated_gradients", "occlusion", "feature_ablation", "vargrad"):
        assert ox.explain(MLP.proto(), MLP.x(2), method).error is None
    assert ox.explain(MLP.proto(), MLP.x(2), "lime", surrogate="lasso", samples=30).error is None
    assert ox.explain(MLP.proto(), MLP.x(2), "expected_gradients", steps=5).error is None
    assert set(forward_only()) - {"occlusion", "feature_ablation"} == {
        "feature_permutation",
        "rise",
        "lime",
        "kernel_shap",
        "shapley_sampling",
    }


def test_errors_of_several_inputs() -> None:
    feeds = TWO_INPUTS.feeds(2)
    result = ox.explain(TWO_INPUTS.proto(), feeds, "rise", samples=30)
    for name, x in feeds.items():
        assert result[name].error.shape == x.shape
        assert result[name].error.all()
    with pytest.raises(ox.InputError, match=r"several inputs.*\n.*result\[name\]\.error"):
        _ = result.error
    last = ox.explain(IMAGES.proto(), IMAGES.x(2), "smoothgrad", samples=5)
    assert last.error.shape == last.values.shape


def test_methods_of_masked_copies_over_noise() -> None:
    """The error is that over the noise, not that of the method at the input itself."""
    runs = [
        ox.explain(MLP.proto(), MLP.x(1), "smoothgrad", target=1, base="occlusion", samples=n, seed=2, noise=0.3)
        for n in (1, 5)
    ]
    assert np.isnan(runs[0].error).all()
    assert (runs[1].error > 0).all()
    assert runs[1].copies is None
