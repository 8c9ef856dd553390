"""What all methods of masked copies have in common."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import onnxplain as ox
from onnxplain.errors import OptionError
from tests.canonize.expansions.test_ml import COLUMNS, FOREST, Case
from tests.distributions.perturbation.cases import METHODS, SAMPLED, X
from tests.models import IMAGES, MLP, TOKENS, model
from tests.reference import relative_error, rng


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
        ("lime", {"kernel_width": 0}, "kernel_width must be a finite number above 0"),
        ("lime", {"alpha": -1}, "alpha must be a finite number of at least 0"),
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
