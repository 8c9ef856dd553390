"""Integrated gradients against its definition and its axiom, completeness."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import onnxplain as ox
from tests.methods.tiny import (
    assert_close,
    load,
    mean_on_the_line,
    mlp_gradient,
    parts,
    rise,
    smooth,
    totals,
)
from tests.models import IMAGES, MLP, TINY, Array, model
from tests.reference import relative_error, rng


@pytest.mark.parametrize("quadrature", ["gauss_legendre", "midpoint", "trapezoid", "left", "right"])
@pytest.mark.parametrize("steps", [2, 7])
def test_integrated_gradients_is_the_mean_gradient_on_the_line(quadrature: str, steps: int) -> None:
    x, baseline = MLP.x(3), rng(5).normal(size=(3, 6)).astype(np.float32)
    options = {"steps": steps, "quadrature": quadrature, "baseline": baseline}
    result = ox.explain(load("mlp"), x, "integrated_gradients", target=2, **options)
    mean = mean_on_the_line(lambda t: mlp_gradient(baseline + t * (x - baseline), 2), steps, quadrature)
    assert relative_error(result.values, (x - baseline) * mean) < 1e-5


@pytest.mark.parametrize("name", TINY)
def test_integrated_gradients_is_complete(name: str) -> None:
    tiny = smooth(TINY[name])
    feeds = tiny.feeds(2)
    target = tiny.evaluate(feeds).argmax(axis=1)  # of the input, at the baseline too
    expected = rise(tiny, feeds, {n: a * 0 for n, a in feeds.items()}, target)
    result = ox.explain(tiny.proto(), feeds, "integrated_gradients")
    assert np.all(abs(result.residual) < 1e-5)
    np.testing.assert_allclose(totals(result), expected, atol=1e-5)


def test_completeness_gets_better_with_steps_where_there_are_kinks() -> None:
    for name in ("images", "volume"):
        feeds = TINY[name].feeds(10)
        target = TINY[name].evaluate(feeds).argmax(axis=1)
        expected = rise(TINY[name], feeds, {n: a * 0 for n, a in feeds.items()}, target)
        coarse, fine = (ox.explain(load(name), feeds, "integrated_gradients", steps=n) for n in (16, 256))
        for result in (coarse, fine):
            np.testing.assert_allclose(result.residual, totals(result) - expected, atol=1e-5)
        assert np.median(abs(fine.residual)) < np.median(abs(coarse.residual)) / 4


def test_calibrated_weights_make_the_sum_exact_where_there_are_kinks() -> None:
    for name in ("images", "volume", "two_inputs"):
        feeds = TINY[name].feeds(5)
        target = TINY[name].evaluate(feeds).argmax(axis=1)
        result = ox.explain(load(name), feeds, "integrated_gradients", steps=16, calibrate=True)
        expected = rise(TINY[name], feeds, {n: a * 0 for n, a in feeds.items()}, target)
        np.testing.assert_allclose(totals(result), expected, atol=1e-5)
        plain = ox.explain(load(name), feeds, "integrated_gradients", steps=16)
        assert abs(plain.residual).max() > 1e-2
        assert_close(parts(result), parts(plain), 0.05)


def test_weights_are_left_alone_where_slopes_are_equal() -> None:
    x = np.full((1, 2), 8, np.float32)
    text = "m (float[N,2] x) => (float[N,2] y) { r = Relu(x)  h = Sub(x, c)  s = Relu(h)  y = Add(r, s) }"
    proto = model(text, c=np.array([7.9]))  # a kink behind all three points
    plain, result = (
        ox.explain(proto, x, "integrated_gradients", steps=3, target=0, calibrate=c) for c in (False, True)
    )
    np.testing.assert_array_equal(result.values, plain.values)
    np.testing.assert_allclose(result.residual, [-0.1], rtol=1e-4)  # and says what is missing


BASELINES: dict[str, Callable[[Array], Any]] = {
    "number": lambda x: 0.5,
    "one for all": lambda x: x[0] * 0.3,
    "one for all, with its axis": lambda x: x[:1] * 0.3,
    "one each": lambda x: x * 0.3 + 0.1,
    "per channel": lambda x: np.array([0.2, -0.4])[:, None, None],
    "integers": lambda x: np.ones((2, 1, 1), np.int64),
}


@pytest.mark.parametrize("baseline", BASELINES.values(), ids=BASELINES)
def test_baselines(baseline: Callable[[Array], Any]) -> None:
    tiny, x = smooth(IMAGES), IMAGES.x(3)
    start = np.broadcast_to(np.asarray(baseline(x), np.float32), x.shape)
    result = ox.explain(tiny.proto(), x, "integrated_gradients", target=1, baseline=baseline(x))
    np.testing.assert_allclose(totals(result), rise(tiny, {"x": x}, {"x": start}, np.array([1] * 3)), atol=1e-5)
