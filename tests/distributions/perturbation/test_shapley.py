"""Shapley values: against exact ones by enumeration."""

from __future__ import annotations

import numpy as np
import pytest

import onnxplain as ox
from onnxplain.distributions.perturbation import KernelShap
from tests.distributions.perturbation.cases import PAIRS, X, contributions
from tests.models import MLP, SIGNAL, Array
from tests.reference import relative_error


@pytest.mark.parametrize("method", ["kernel_shap", "shapley_sampling"])
@pytest.mark.parametrize("features", [None, PAIRS], ids=["elements", "pairs"])
def test_shapley_values_are_exact_where_samples_suffice(method: str, features: Array | None) -> None:
    labels = np.arange(6) if features is None else np.array([1, 1, 0, 0, 2, 2])
    enough = {"kernel_shap": 64, "shapley_sampling": 720}[method]
    result = ox.explain(MLP.proto(), X, method, target=2, baseline=0.3, features=features, samples=enough)
    for x, found in zip(X, result.values, strict=True):
        assert relative_error(found, contributions(x, 2, 0.3, labels).mean(axis=0)[labels]) < 1e-5


def test_sampled_orders_are_as_good_as_their_number() -> None:
    for x in X:
        every = contributions(x, 2, 0.0, np.arange(6))
        found = ox.explain(MLP.proto(), x[None], "shapley_sampling", target=2, samples=100).values[0]
        off = abs(found - every.mean(axis=0))
        assert off.max() > 1e-4
        assert np.all(off < 3.5 * every.std(axis=0) / 10)


def test_sampled_sets_are_close_and_their_values_sum_up() -> None:
    x = SIGNAL.x(2)
    exact, found = (ox.explain(SIGNAL.proto(), x, "kernel_shap", target=1, samples=n).values for n in (2048, 1000))
    assert 1e-5 < relative_error(found, exact) < 0.05
    assert relative_error(found[:, 0].sum(axis=1), exact[:, 0].sum(axis=1)) < 1e-5
    change = SIGNAL.evaluate({"x": x})[:, 1] - SIGNAL.evaluate({"x": x * 0})[:, 1]
    few = ox.explain(SIGNAL.proto(), x, "kernel_shap", target=1, samples=4).values  # fewer than features
    for values in (exact, few):
        np.testing.assert_allclose(values[:, 0].sum(axis=1), change, rtol=1e-4)


def test_sets_are_drawn_by_the_shapley_kernel() -> None:
    game = KernelShap(samples=20000).game(40)
    sets = game.keep(np.arange(game.stages[-1]))
    sizes = sets[1:].sum(axis=1)
    kernel = 1 / (np.arange(1, 40) * np.arange(39, 0, -1))
    found = np.bincount(sizes, minlength=40)[1:] / len(sizes)
    assert abs(found - kernel / kernel.sum()).max() < 0.01
    assert not sets[0].any()
    np.testing.assert_array_equal(sets[1::2], ~sets[2::2])


def test_one_feature_has_all_the_change() -> None:
    change = MLP.evaluate({"x": X})[:, 1] - MLP.evaluate({"x": X * 0})[:, 1]
    for method in ("kernel_shap", "shapley_sampling", "feature_ablation"):
        values = ox.explain(MLP.proto(), X, method, target=1, features=np.array(3)).values
        np.testing.assert_allclose(values, np.repeat(change[:, None], 6, axis=1), rtol=1e-5)
