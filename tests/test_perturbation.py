"""Masked copies: against exact Shapley values, closed forms, and captum."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from itertools import permutations, product
from typing import Any

import numpy as np
import pytest
import torch
from captum._utils.models.linear_model import SkLearnRidge
from captum.attr import FeatureAblation, FeaturePermutation, LimeBase, ShapleyValues

import onnxplain as ox
from onnxplain.errors import OptionError
from onnxplain.fills import spatial
from onnxplain.methods import forward_only
from onnxplain.perturbation import KernelShap, Lime, Permutation
from onnxplain.perturbation.features import partition
from tests.canonize.test_ml import COLUMNS, FOREST, Case
from tests.models import IMAGES, MLP, SIGNAL, TOKENS, TWO_INPUTS, Array, Tiny, model
from tests.reference import relative_error, rng

METHODS = [name for name in forward_only() if name != "occlusion"]
SAMPLED = [name for name in METHODS if name != "feature_ablation"]
X = MLP.x(2)
PAIRS = np.array([4, 4, -1, -1, 7, 7])

LINEAR = Tiny(
    "linear (float[N,4] x) => (float[N,1] y) { y = Gemm(x, w, b) }",
    {"w": rng(7).normal(size=(4, 1)).astype(np.float32), "b": np.array([0.5], np.float32)},
    {"x": (4,)},
    (1,),
)
PICTURE = Tiny(
    "picture (float[N,2,7,5] x) => (float[N,1] y) { f = Flatten(x) y = Gemm(f, w, b) }",
    {"w": rng(8).normal(size=(70, 1)).astype(np.float32), "b": np.array([0.5], np.float32)},
    {"x": (2, 7, 5)},
    (1,),
)


def network() -> torch.nn.Module:
    """MLP in torch."""
    layers = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.ReLU(), torch.nn.Linear(8, 4))
    for layer, number in ((layers[0], "1"), (layers[2], "2")):
        layer.weight.data = torch.tensor(MLP.weights[f"w{number}"].T.copy())
        layer.bias.data = torch.tensor(MLP.weights[f"b{number}"])
    return layers


def contributions(x: Array, target: int, baseline: float, labels: Array) -> Array:
    """What each feature of one sample adds, in every order: shape (orders, features)."""
    count = labels.max() + 1
    sets = np.array(list(product([False, True], repeat=count)))
    scores = MLP.evaluate({"x": np.where(sets[:, labels], x, np.float32(baseline))})[:, target]
    value = {tuple(s): v for s, v in zip(sets.tolist(), scores, strict=True)}
    rows = []
    for order in permutations(range(count)):
        have, row = [False] * count, np.zeros(count)
        for feature in order:
            before = value[tuple(have)]
            have[feature] = True
            row[feature] = value[tuple(have)] - before
        rows.append(row)
    return np.array(rows)


# Shapley values


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
    sizes = np.array([game.keep(k).sum() for k in range(1, game.stages[-1])])
    kernel = 1 / (np.arange(1, 40) * np.arange(39, 0, -1))
    found = np.bincount(sizes, minlength=40)[1:] / len(sizes)
    assert abs(found - kernel / kernel.sum()).max() < 0.01
    assert not game.keep(0).any()
    np.testing.assert_array_equal(game.keep(1), ~game.keep(2))


def test_one_feature_has_all_the_change() -> None:
    change = MLP.evaluate({"x": X})[:, 1] - MLP.evaluate({"x": X * 0})[:, 1]
    for method in ("kernel_shap", "shapley_sampling", "feature_ablation"):
        values = ox.explain(MLP.proto(), X, method, target=1, features=np.array(3)).values
        np.testing.assert_allclose(values, np.repeat(change[:, None], 6, axis=1), rtol=1e-5)


# RISE


def covariance(size: int, cells: int) -> Array:
    """Mean over the shifts of sum_c A[i, c] A[j, c], A the linear interpolation of a grid: shape (size, size)."""
    extent = -(-size // cells)
    places = (np.arange((cells + 1) * extent) + 0.5) * cells / ((cells + 1) * extent) - 0.5
    a = np.stack([np.interp(places, np.arange(cells), row) for row in np.eye(cells)], axis=1)
    return np.mean([a[s : s + size] @ a[s : s + size].T for s in range(extent)], axis=0)


def expectation(x: Array, weights: Array, bias: float, baseline: float, keep: float, shared: Array) -> Array:
    """E[f(M x + (1 - M) c) M] / E[M] for linear f, from E[M_i M_j] = p^2 + p (1 - p) shared_ij."""
    together = keep**2 + keep * (1 - keep) * shared
    return bias + baseline * weights.sum() + together @ (weights * (x - baseline)) / keep


@pytest.mark.parametrize("keep", [0.5, 0.3])
def test_rise_converges_to_its_expectation(keep: float) -> None:
    table = np.eye(4)
    places = np.kron(covariance(7, 3), covariance(5, 3))
    both_channels = np.tile(places, (2, 2))
    for tiny, shared in ((LINEAR, table), (PICTURE, both_channels)):
        x = tiny.x(1)
        runs = np.stack(
            [
                ox.explain(
                    tiny.proto(), x, "rise", target=0, samples=200, seed=s, cells=3, keep=keep, baseline=0.2
                ).values.reshape(-1)
                for s in range(20)
            ]
        )
        expected = expectation(x.reshape(-1), tiny.weights["w"][:, 0], 0.5, 0.2, keep, shared)
        error = runs.std(axis=0, ddof=1) / 20**0.5
        assert np.all(abs(runs.mean(axis=0) - expected) < 4 * error)
        assert np.ptp(expected) > 4 * error.max()  # so that a constant would not do


def test_centred_rise_has_no_part_of_the_mean_score() -> None:
    x, w = LINEAR.x(1), LINEAR.weights["w"][:, 0]
    runs = [
        ox.explain(LINEAR.proto(), x, "rise", target=0, samples=400, seed=s, keep=0.3, center=True).values[0]
        for s in range(10)
    ]
    error = np.std(runs, axis=0, ddof=1) / 10**0.5
    expected = 0.7 * w * x[0] * (1 - 1 / 400)  # a mean of the same 400 scores takes its part along
    assert np.all(abs(np.mean(runs, axis=0) - expected) < 4 * error)
    assert error.max() < 0.05


def test_rise_masks_integers_whole() -> None:
    """Each token is its own or the baseline's; so the mean over many masks is that over all sets of tokens."""
    tokens = np.array([[1, 2, 3, 4, 5]])
    sets = np.array(list(product([False, True], repeat=5)))
    scores = TOKENS.evaluate({"x": np.where(sets, tokens, 6)})[:, 1]
    exact = 2 * (scores[:, None] * sets).mean(axis=0)
    found = ox.explain(TOKENS.proto(), tokens, "rise", target=1, samples=3000, baseline=6).values[0]
    assert np.all(abs(found - exact) < 4 * 2 * (scores[:, None] * sets).std(axis=0) / 3000**0.5)
    proto = model(
        "m (int64[N,1,7,5] x) => (float[N,5] y) { f = Cast<to=1>(x) y = ReduceMax<keepdims=0>(f, a) }",
        a=np.array([1, 2]),
    )
    steep = ox.explain(proto, np.full((1, 1, 7, 5), 1000), "rise", target=0, cells=2, samples=50)
    assert set(np.unique(steep.values * 25 % 1000)) == {0}  # no score but 0 and 1000


# LIME


@pytest.mark.parametrize("options", [{"alpha": 1e-6}, {"surrogate": "lasso", "alpha": 1e-6}], ids=str)
def test_lime_recovers_a_linear_model(options: dict[str, Any]) -> None:
    x = LINEAR.x(2)
    values = ox.explain(LINEAR.proto(), x, "lime", target=0, baseline=0.3, samples=200, **options).values
    np.testing.assert_allclose(values, (x - 0.3) * LINEAR.weights["w"][:, 0], rtol=1e-3, atol=1e-4)


def test_lasso_leaves_features_out() -> None:
    values = ox.explain(MLP.proto(), X, "lime", target=0, surrogate="lasso", alpha=0.05).values
    assert 0 < (values == 0).mean() < 1


def test_a_narrow_kernel_is_about_the_sample_itself() -> None:
    """Then only the sets that lack one feature count, and what is fitted is the loss without it."""
    x = MLP.x(1)
    ablation = ox.explain(MLP.proto(), x, "feature_ablation", target=3).values
    narrow, wide = (
        ox.explain(MLP.proto(), x, "lime", target=3, kernel_width=w, alpha=1e-9).values for w in (0.03, 10.0)
    )
    assert relative_error(narrow, ablation) < 1e-2 < relative_error(wide, ablation)


# captum


@pytest.mark.parametrize("features", [None, PAIRS], ids=["elements", "pairs"])
def test_parity_with_captum(features: Array | None) -> None:
    x, net = torch.tensor(X), network()
    mask = None if features is None else torch.tensor(np.unique(features, return_inverse=True)[1])[None]
    asked = {"target": 2, "baselines": 0.4, "feature_mask": mask}
    options: dict[str, Any] = {"target": 2, "baseline": 0.4, "features": features}
    with torch.no_grad():
        ablated = FeatureAblation(net).attribute(x, **asked).numpy()
        shapley = np.concatenate([ShapleyValues(net).attribute(row[None], **asked).numpy() for row in x])
    assert relative_error(ox.explain(MLP.proto(), X, "feature_ablation", **options).values, ablated) < 1e-5
    assert relative_error(ox.explain(MLP.proto(), X, "kernel_shap", **options).values, shapley) < 1e-5
    assert relative_error(ox.explain(MLP.proto(), X, "shapley_sampling", samples=720, **options).values, shapley) < 1e-5


def test_parity_with_captums_permutation() -> None:
    x = MLP.x(5)
    plans = Permutation(samples=1).plans({"x": x}, {})
    donors = [plan.donors[0] for plan in plans]

    def exchange(a: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return torch.where(mask, a[donors], a)

    with torch.no_grad():
        expected = FeaturePermutation(network(), exchange).attribute(torch.tensor(x), target=2).numpy()
    found = ox.explain(MLP.proto(), x, "feature_permutation", target=2, samples=1).values
    assert relative_error(found, expected) < 1e-5


def test_parity_with_captums_lime() -> None:
    """On the same sets, with the same kernel."""
    method = Lime(samples=100)
    game = method.game(6)
    sets = iter([torch.tensor(game.keep(k)[None]) for k in range(game.stages[-1])])

    def kernel(_x: Any, _copy: Any, kept: torch.Tensor, **_: Any) -> float:
        return float(np.exp(-((1 - float(kept.float().mean()) ** 0.5) ** 2) / 0.25**2 / 2))

    lime = LimeBase(
        network(),
        SkLearnRidge(alpha=1.0),
        kernel,
        lambda _x, **_: next(sets).float(),
        True,
        lambda kept, x, **_: x * kept,
        lambda copy, x, **_: copy,
    )
    with torch.no_grad():
        expected = lime.attribute(torch.tensor(X[:1]), target=2, n_samples=100).numpy()
    found = ox.explain(MLP.proto(), X[:1], "lime", target=2, samples=100).values
    assert relative_error(found, expected) < 1e-4


# feature_permutation


def test_permutation_is_the_mean_over_all_others_where_samples_suffice() -> None:
    x = MLP.x(4)
    expected = np.zeros((4, 6))
    for i, j, k in product(range(4), range(6), range(4)):
        if i != k:
            copy = x[i].copy()
            copy[j] = x[k, j]
            expected[i, j] += (MLP.evaluate({"x": x[[i]]}) - MLP.evaluate({"x": copy[None]}))[0, 2] / 3
    for seed in (0, 1):
        found = ox.explain(MLP.proto(), x, "feature_permutation", target=2, samples=3, seed=seed).values
        assert relative_error(found, expected) < 1e-5


def test_every_sample_meets_different_others() -> None:
    donors = np.array([plan.donors for plan in Permutation(samples=4).plans({"x": MLP.x(9)}, {})])
    assert donors.shape == (9, 4)
    assert all(len({row, *met}) == 5 for row, met in enumerate(donors.tolist()))
    assert set(np.bincount(donors.ravel())) == {4}


def test_permutation_needs_two_samples() -> None:
    for at in (None, "h"):
        with pytest.raises(OptionError, match="at least two samples"):
            ox.explain(MLP.proto(), X[:1], "feature_permutation", at=at)


# Features


def test_default_features() -> None:
    for shape, count in (
        ((), 1),
        ((6,), 6),
        ((2, 100), 64),
        ((3, 224, 224), 49),
        ((224, 200, 3), 49),
        ((1, 4, 3, 2), 24),
    ):
        found = partition(None, {"x": np.zeros(shape)})
        assert found.count == count
        assert found.labels["x"].shape == shape
        channels = set(range(len(shape))) - set(spatial(shape))
        assert all((np.diff(found.labels["x"], axis=axis) == 0).all() for axis in channels)


def test_features_of_several_inputs_are_told_apart() -> None:
    feeds = TWO_INPUTS.feeds(1)
    found = partition(np.array([5, 5, 5, 2])[:1], {name: x[0] for name, x in feeds.items()})
    assert (found.count, set(found.labels["a"].flat), set(found.labels["b"].flat)) == (2, {0}, {1})
    result = ox.explain(TWO_INPUTS.proto(), feeds, "kernel_shap", target=1)
    scores = [TWO_INPUTS.evaluate({n: a * keep for n, a in feeds.items()})[0, 1] for keep in (1, 0)]
    total = result["a"].values.sum() + result["b"].values[:, 0].sum()  # columns of b are features
    assert total == pytest.approx(scores[0] - scores[1], rel=1e-4)


def test_superpixels_follow_the_picture() -> None:
    x = np.zeros((1, 2, 40, 30), np.float32)
    x[:, :, :, 13:] = 3.0
    (labels,) = partition("slic", {"x": x[0]}).labels.values()
    assert 4 <= labels.max() + 1 <= 60
    assert set(labels[..., :13].flat).isdisjoint(labels[..., 13:].flat)
    np.testing.assert_array_equal(labels[0], labels[1])
    last = partition("slic", {"x": x[0, :1].transpose(1, 2, 0)}).labels["x"]
    assert set(last[:, :13].flat).isdisjoint(last[:, 13:].flat)
    values = ox.explain(IMAGES.proto(), IMAGES.x(1), "lime", target=1, samples=30).values
    np.testing.assert_array_equal(values[:, 0], values[:, 1])


# What all have in common


@pytest.mark.parametrize("method", SAMPLED)
def test_seeds(method: str) -> None:
    x = MLP.x(5)
    options = {"samples": 3 if method == "feature_permutation" else 30}
    first, again, other = (ox.explain(MLP.proto(), x, method, target=1, seed=s, **options).values for s in (4, 4, 5))
    np.testing.assert_array_equal(first, again)
    assert relative_error(other, first) > 1e-4


@pytest.mark.parametrize("method", METHODS)
def test_chunks_and_progress(method: str) -> None:
    x = TOKENS.weights["table"]
    proto = model("m (float[N,4] x) => (float[N,3] y) { h = Tanh(x) y = Gemm(h, w1, b1) }", **TOKENS.weights)
    del proto.graph.initializer[0]
    calls: list[tuple[int, int]] = []
    whole = ox.explain(proto, x, method, target=1, progress=lambda *done: calls.append(done)).values
    chunked = ox.explain(proto, x, method, target=1, memory=1).values
    assert relative_error(chunked, whole) < 1e-5
    assert calls[-1][0] == calls[-1][1]

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ox.explain(proto, x, method, progress=stop)


def test_forests() -> None:
    x = rng(8).normal(size=(5, 4)).astype(np.float32)
    proto = Case(FOREST, {}, version=3).proto()
    step = (x[:, 1] > 0.1).astype(np.float32)
    expected = np.stack([0 * step, step, 0 * step, 0 * step], 1)
    for method in ("feature_ablation", "kernel_shap", "shapley_sampling"):
        assert np.allclose(ox.explain(proto, x, method, target=1).values, expected, atol=1e-5)
    fitted = ox.explain(proto, x, "lime", target=1, alpha=1e-6).values
    assert np.allclose(fitted, expected, atol=1e-3)
    assert (
        abs(ox.explain(proto, x, "rise", target=1, samples=1000).values - expected * 0.5 - step[:, None] * 0.5).max()
        < 0.1
    )
    label = ox.explain(proto, x, "feature_ablation", output="l")
    assert np.array_equal(label.values, expected)


def test_tokens_and_texts() -> None:
    tokens = np.array([[1, 2, 3, 4, 5], [0, 1, 0, 6, 2]])
    found = ox.explain(TOKENS.proto(), tokens, "feature_ablation", target=[0, 2], baseline=6)
    assert found.values.dtype == np.float32
    for sample, target in ((0, 0), (1, 2)):
        copies = np.where(np.eye(5, dtype=bool), 6, tokens[sample])
        lost = TOKENS.evaluate({"x": tokens[[sample]]}) - TOKENS.evaluate({"x": copies})
        assert relative_error(found.values[sample], lost[:, target]) < 1e-4
    for method in METHODS:
        assert ox.explain(TOKENS.proto(), tokens, method).values.shape == tokens.shape
    feeds = {"x": np.ones((3, 4), np.float32), "c": np.array([["u"], ["v"], ["w"]], object)}
    values = ox.explain(Case(COLUMNS, feeds, version=2).proto(), feeds, "kernel_shap", wrt="c", baseline="v").values
    assert np.allclose(values, [[5 + 4 - 6 - 12], [0], [7 - 6 - 12]], atol=1e-4)


def test_internal_tensors() -> None:
    values = ox.explain(MLP.proto(), X, "shapley_sampling", target=1, at="h").values
    assert relative_error(values, MLP.evaluate({"x": X}, "h") * MLP.weights["w2"][:, 1]) < 1e-5


def test_one_number_per_sample() -> None:
    proto = model("m (float[N] x) => (float[N] y) { y = Exp(x) }")
    x = np.array([0.0, 1.0, -1.0], np.float32)
    for method in ("feature_ablation", "kernel_shap", "shapley_sampling"):
        np.testing.assert_allclose(ox.explain(proto, x, method).values, np.exp(x) - 1, rtol=1e-6)
    assert ox.explain(proto, x, "rise").values.shape == (3,)


# Refusals


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("feature_ablation", {"features": "grib"}, "Did you mean 'grid'"),
        ("feature_ablation", {"features": np.zeros(3)}, "whole numbers"),
        ("feature_ablation", {"features": [[1, 2], [3]]}, "bad option"),
        ("feature_permutation", {"features": "slic"}, "superpixels of one sample"),
        ("feature_permutation", {"samples": 0}, "samples must be"),
        ("rise", {"cells": 0}, "cells must be"),
        ("rise", {"keep": 0.0}, "keep must be"),
        ("rise", {"center": 1}, "center must be"),
        ("rise", {"baseline": np.inf}, "NaN or infinity"),
        ("lime", {"surrogate": "lasson"}, "Did you mean 'lasso'"),
        ("lime", {"kernel_width": 0}, "kernel_width must be a number above 0"),
        ("lime", {"alpha": -1}, "alpha must be a number at least 0"),
        ("kernel_shap", {"samples": 1.5}, "samples must be"),
        ("shapley_sampling", {"seed": -1}, "seed must be"),
    ],
    ids=str,
)
def test_bad_options(method: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        ox.Explainer(MLP.proto(), method, **options)


@pytest.mark.parametrize("method", [name for name in METHODS if name != "rise"])
def test_features_that_do_not_fit(method: str) -> None:
    with pytest.raises(OptionError, match=r"features of shape \(5,\) do not fit"):
        ox.explain(MLP.proto(), X, method, features=np.arange(5))


@pytest.mark.parametrize(
    ("module", "explain", "package"),
    [
        ("sklearn.linear_model", lambda: ox.explain(MLP.proto(), X, "lime"), "scikit-learn"),
        ("skimage.segmentation", lambda: ox.explain(IMAGES.proto(), IMAGES.x(1), "lime"), "scikit-image"),
    ],
)
def test_missing_libraries_are_named(
    module: str, explain: Callable[[], Any], package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(OptionError, match=rf"needs {package}.*\n.*onnxplain\[surrogates\]"):
        explain()


def test_libraries_are_not_imported_before_they_are_needed() -> None:
    code = (
        "import sys, onnxplain; onnxplain.METHODS['lime'](); print({'sklearn', 'skimage', 'scipy'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
