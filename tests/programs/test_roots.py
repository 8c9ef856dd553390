"""The simple Taylor decomposition: roots by bisection in numpy, gradients there by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onnxplain as ox
from tests.export.test_explainer import bare
from tests.models import MLP, TOKENS, Array, model
from tests.reference import relative_error, rng

X = MLP.x(4)
W = {name: array.astype(np.float64) for name, array in MLP.weights.items()}


def score(x: Array, target: int) -> Array:
    return np.asarray(np.maximum(x @ W["w1"] + W["b1"], 0) @ W["w2"][:, target] + W["b2"][target])


def slope(x: Array, target: int) -> Array:
    return np.asarray((W["w2"][:, target] * (x @ W["w1"] + W["b1"] > 0)) @ W["w1"].T)


def along(x: Array, way: Array, target: int, grow: bool) -> Array:
    """The root on a way, for one sample."""
    sign, low, high = np.sign(score(x, target)), 0.0, 1.0
    while grow and score(x + high * way, target) * sign > 0:
        low, high = high, high * 2
    if score(x + high * way, target) * sign > 0:
        return x + way
    for _ in range(60):
        middle = (low + high) / 2
        if score(x + middle * way, target) * sign > 0:
            low = middle
        else:
            high = middle
    return x + low * way


@pytest.mark.parametrize(("root", "baseline"), [("segment", 0.0), ("segment", -1.5), ("gradient", 0.0)])
def test_terms_at_the_root(root: str, baseline: float, tmp_path: Path) -> None:
    explainer = ox.Explainer(MLP.proto(), "taylor", root=root, baseline=baseline, steps=30)
    x = X.astype(np.float64)
    found = 0
    for target in range(4):
        result = explainer(X, target)
        steep = slope(x, target)
        down = -steep * (score(x, target) / (steep**2).sum(axis=1))[:, None]
        ways = baseline - x if root == "segment" else down
        roots = np.stack([along(a, way, target, root == "gradient") for a, way in zip(x, ways, strict=True)])
        expected = slope(roots, target) * (x - roots)
        assert relative_error(result.values, expected) < 1e-3
        assert result.residual is not None
        gap = result.values.sum(axis=1) - (score(x, target) - score(roots, target))
        np.testing.assert_allclose(result.residual, gap, atol=1e-3)
        found += int((np.abs(score(roots, target)) < 1e-6 * np.abs(score(x, target))).sum())
    assert found == 16 if root == "gradient" else 0 < found < 16
    explainer.export(tmp_path / "e.onnx", target=1)
    assert relative_error(bare(tmp_path / "e.onnx", {"x": X})["attribution"], explainer(X, 1).values) < 1e-5


def test_a_segment_without_a_root_ends_at_the_baseline() -> None:
    proto = model("m (float[N,3] x) => (float[N,3] y) { y = Exp(x) }")
    x = rng(1).normal(size=(2, 3)).astype(np.float32)
    result = ox.explain(proto, x, "taylor", root="segment", target=1)
    np.testing.assert_allclose(result.values[:, 1], x[:, 1], rtol=1e-5)  # the derivative at 0 is 1
    assert result.residual is not None
    np.testing.assert_allclose(result.residual, x[:, 1] - (np.exp(x[:, 1]) - 1), rtol=1e-3)


def test_a_given_root() -> None:
    root = rng(2).normal(size=6).astype(np.float32)
    result = ox.explain(MLP.proto(), X, "taylor", root=root, target=2)
    expected = slope(np.broadcast_to(root, X.shape), 2) * (X - root)
    assert relative_error(result.values, expected) < 1e-5


def test_the_limit_at_zero_conserves_where_the_net_is_homogeneous() -> None:
    arrays = {name: array * (not name.startswith("b")) for name, array in MLP.weights.items()}
    result = ox.explain(model(MLP.text, **arrays), X, "taylor", target=3)
    np.testing.assert_allclose(result.values.sum(axis=1), result.score, rtol=1e-4)
    assert result.residual is not None
    assert np.abs(result.residual).max() < 1e-4 * np.abs(result.score).max()


def test_roots_of_tokens_are_those_of_their_embedding() -> None:
    ids = rng(3).integers(0, 7, size=(2, 5))
    found = ox.explain(TOKENS.proto(), ids, "taylor", root="gradient", target=1)
    inner = ox.explain(TOKENS.proto(), ids, "taylor", root="gradient", target=1, at="embedded")
    assert relative_error(found.values, inner.values.sum(axis=2)) < 1e-4


def test_the_root_of_a_difference_is_that_of_one_output_with_the_difference() -> None:
    arrays = dict(MLP.weights)
    for name in ("w2", "b2"):
        arrays[name] = arrays[name].copy()
        arrays[name][..., 0] = MLP.weights[name][..., 1] - MLP.weights[name][..., 2]
    expected = ox.explain(model(MLP.text, **arrays), X, "taylor", root="gradient", target=0)
    found = ox.explain(MLP.proto(), X, "taylor", root="gradient", target=ox.Difference(1, 2))
    assert relative_error(found.values, expected.values) < 1e-3
    np.testing.assert_allclose(found.score, expected.score, rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"root": "near"}, "no root 'near'"),
        ({"root": "segment", "steps": 0}, "steps must"),
        ({"root": [np.nan]}, "NaN"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ox.OptionError, match=message):
        ox.Explainer(MLP.proto(), "taylor", **options)
