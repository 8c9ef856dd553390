"""Slices: attributions to internal tensors, several of them, and from one to another."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import onnxplain as ox
from tests.models import IMAGES, MLP, model, weights
from tests.reference import relative_error, rng

W = weights(w1=(6, 5), w2=(5, 4), w3=(4, 3))
TEXT = """m (float[N,6] x) => (float[N,3] y) {
    z_one = MatMul(x, w1)
    a_one = Tanh(z_one)
    z_two = MatMul(a_one, w2)
    a_two = Tanh(z_two)
    y = MatMul(a_two, w3)
}"""
THREE = model(TEXT, **W)
X = rng(5).normal(size=(3, 6)).astype(np.float32)


def test_a_pattern_means_all_tensors_on_the_way() -> None:
    explainer = ox.Explainer(THREE, "gradient", at="a_*")
    assert explainer.explained == ("a_one", "a_two")
    result = explainer(X, 1)
    for name in ("a_one", "a_two"):
        alone = ox.explain(THREE, X, "gradient", target=1, at=name)
        assert relative_error(result[name].values, alone.values) < 1e-6
    assert ox.Explainer(THREE, "gradient", at=["z_two", "a_?ne"]).explained == ("z_two", "a_one")


def test_what_lies_behind_the_explained_tensor_fits_no_pattern() -> None:
    result = ox.explain(THREE, X, "gradient", at="a_*", target=ox.Neuron("z_two", 1))
    assert result.names == ["a_one"]


@pytest.mark.parametrize(("method", "options"), [("lrp", {"rule": "zero"}), ("deeplift", {})])
def test_attributions_to_one_layer_after_another_sum_to_nothing(method: str, options: dict[str, Any]) -> None:
    result = ox.explain(THREE, X, method, at="a_*", **options)
    assert result.residual is None
    for name in ("a_one", "a_two"):
        alone = ox.explain(THREE, X, method, at=name, **options)
        assert alone.residual is not None
        assert relative_error(result[name].values, alone.values) < 1e-5


def test_a_neuron_in_terms_of_an_earlier_layer() -> None:
    """The derivative of tanh(a w2) by a, and what it sums to between a = 0 and a."""
    x = X.astype(np.float64)
    a = np.tanh(x @ W["w1"])
    two = np.tanh(a @ W["w2"])
    neuron = ox.Neuron("a_two", 2)
    result = ox.explain(THREE, X, "gradient", at="a_one", target=neuron)
    assert relative_error(result.values, (1 - two[:, 2:3] ** 2) * W["w2"][:, 2]) < 1e-5
    result = ox.explain(THREE, X, "integrated_gradients", at="a_one", target=neuron)
    np.testing.assert_allclose(result.values.sum(axis=1), two[:, 2], rtol=1e-4)
    result = ox.explain(THREE, X, "occlusion", at="a_one", target=neuron, window=1)
    masked = np.stack([np.tanh(np.where(np.arange(5) == k, 0, a) @ W["w2"])[:, 2] for k in range(5)], axis=1)
    assert relative_error(result.values, two[:, 2:3] - masked) < 1e-5


def test_what_is_refused() -> None:
    for method in ("integrated_gradients", "occlusion"):
        with pytest.raises(ox.OptionError, match=r"one depends on another: a_one, a_two\nName one of them"):
            ox.Explainer(THREE, method, at="a_*")
    for at in ("b_*", []):
        with pytest.raises(ox.OptionError, match=r"no floating-point tensor matches|at names no tensor"):
            ox.Explainer(THREE, "gradient", at=at)
    with pytest.raises(ox.OptionError, match="needs one layer, not several"):
        ox.Explainer(IMAGES.proto(), "grad_cam", at="*")
    with pytest.raises(ox.OptionError, match="no floating-point tensor 'hh'"):
        ox.Explainer(MLP.proto(), "gradient", at=["h", "hh"])
