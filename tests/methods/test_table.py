"""Every method on every tiny model: shapes, batches, chunks, and the questions that all methods answer."""

from __future__ import annotations

import numpy as np
import pytest

import onnxplain as ox
from onnxplain.methods import METHODS, forward_only, make
from tests.methods.tiny import (
    ALONE,
    AMPLIFIED,
    MAPS,
    OPTIONS,
    assert_close,
    load,
    mean_on_the_line,
    mlp_gradient,
    parts,
    rise,
    smooth,
    totals,
)
from tests.models import FIXED_BATCH, MLP, TINY, TOKENS, TWO_INPUTS, Tiny, model, weights
from tests.reference import relative_error, rng


def test_every_method_is_tested() -> None:
    assert set(OPTIONS) | MAPS == set(METHODS)
    assert forward_only() == list(OPTIONS)[list(OPTIONS).index("occlusion") :]


@pytest.mark.parametrize("method", [*OPTIONS, *sorted(MAPS)])
def test_methods_say_what_they_are(method: str) -> None:
    made = make(method, OPTIONS.get(method, {}))
    assert made.name == method
    assert METHODS[method].summary.endswith(".")


@pytest.mark.parametrize("method", OPTIONS)
@pytest.mark.parametrize("name", TINY)
def test_shapes_batches_and_chunks(name: str, method: str) -> None:
    tiny = TINY[name]
    feeds = tiny.feeds(5)
    explainer = ox.Explainer(load(name), method, **OPTIONS[method])
    result = explainer(feeds)
    assert {n: v.shape for n, v in parts(result).items()} == {n: a.shape for n, a in feeds.items()}
    assert all(v.dtype == np.float32 and np.isfinite(v).all() and v.any() for v in parts(result).values())

    scores = tiny.evaluate(feeds)
    flat = scores.argmax(axis=1)
    expected = flat if len(tiny.output) < 2 else np.stack(np.unravel_index(flat, tiny.output), axis=1)
    np.testing.assert_array_equal(result.target, expected)
    np.testing.assert_allclose(result.score, scores[np.arange(5), flat], rtol=1e-4, atol=1e-5)

    for row in (0, 4) if method in ALONE else ():
        alone = explainer({n: a[row : row + 1] for n, a in feeds.items()})
        assert_close(parts(alone), {n: v[row : row + 1] for n, v in parts(result).items()})
        np.testing.assert_array_equal(alone.target[0], result.target[row])
    # With so little memory, weights are read in another layout, and results are rounded in another way.
    chunked = ox.explain(load(name), feeds, method, memory=1, **OPTIONS[method])
    assert_close(parts(chunked), parts(result), AMPLIFIED.get(method, 1e-5))
    np.testing.assert_allclose(chunked.score, result.score, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", OPTIONS)
def test_only_methods_that_promise_something_report_how_far_off_they_are(method: str) -> None:
    result = ox.explain(load("mlp"), MLP.x(2), method, **OPTIONS[method])
    promises = {
        "completeness": ["integrated_gradients", "expected_gradients", "conductance", "taylor", "deeplift"],
        "conservation": ["lrp", "deep_taylor"],
    }
    promised = next((promise for promise, names in promises.items() if method in names), None)
    assert make(method, OPTIONS[method]).promise == promised
    assert (result.residual is None) == (promised is None)
    assert result.residual is None or result.residual.shape == (2,)


# Where from and where to.


def test_wrt_names_the_inputs_to_explain_and_the_others_count_as_constants() -> None:
    feeds = TWO_INPUTS.feeds(2)
    for method in ("gradient", "gradient_x_input", "sensitivity", "guided_backprop", "deconvnet", "lrp", "occlusion"):
        both = ox.explain(load("two_inputs"), feeds, method, **OPTIONS[method])
        for wrt in ("b", ["b"]):
            one = ox.explain(load("two_inputs"), feeds, method, wrt=wrt, **OPTIONS[method])
            assert one.names == ["b"]
            np.testing.assert_allclose(one.values, both["b"].values, rtol=1e-5, atol=1e-6)
    tiny, target = smooth(TWO_INPUTS), np.array([0, 1])
    result = ox.explain(tiny.proto(), feeds, "integrated_gradients", wrt="a", target=target)
    np.testing.assert_allclose(totals(result), rise(tiny, feeds, {"a": feeds["a"] * 0}, target), atol=1e-5)


def test_at_names_an_internal_tensor() -> None:
    x = MLP.x(2)
    gradient = ox.explain(load("mlp"), x, "gradient", at="h", target=1)
    np.testing.assert_allclose(gradient.values, np.tile(MLP.weights["w2"][:, 1], (2, 1)))
    times_h = ox.explain(load("mlp"), x, "gradient_x_input", at="h", target=1)
    np.testing.assert_allclose(times_h.values, gradient.values * MLP.evaluate({"x": x}, "h"), rtol=1e-5)
    relevance = ox.explain(load("mlp"), x, "lrp", at="h", rule="epsilon", target=1)
    assert relative_error(relevance.values.sum(axis=1), relevance.score - MLP.weights["b2"][1]) < 1e-4


def test_at_explains_tokens_at_their_embedding() -> None:
    tokens = np.array([[1, 2, 3, 4, 5], [0, 1, 0, 6, 2]])
    result = ox.explain(TOKENS.proto(), tokens, "gradient_x_input", at="embedded", target=[0, 2])
    rows = TOKENS.weights["table"][tokens].astype(np.float64)
    slope = (1 - np.tanh(rows.mean(axis=1)) ** 2) * TOKENS.weights["w1"].T[[0, 2]]
    assert relative_error(result.values, rows * slope[:, None] / 5) < 1e-5


def test_output_names_the_output_to_explain() -> None:
    text = """two (float[N,3] x) => (float[N,2] y, float[N,3] z, int64[N] label) {
        y = MatMul(x, w)
        z = Mul(x, x)
        label = ArgMax<axis=1, keepdims=0>(y)
    }"""
    proto = model(text, **weights(w=(3, 2)))
    x = rng().normal(size=(2, 3)).astype(np.float32)
    first, named, second = (ox.explain(proto, x, output=o, target=1).values for o in (None, "y", "z"))
    np.testing.assert_array_equal(first, named)
    np.testing.assert_allclose(second, np.array([0, 2, 0]) * x)


def test_inputs_without_a_batch_axis_are_parameters() -> None:
    text = """m (float[N,3] x, float scale, int64 shift) => (float[N,3] y) {
        s = Mul(x, scale)
        t = Cast<to=1>(shift)
        y = Add(s, t)
    }"""
    feeds = {"x": np.ones((3, 3), np.float32), "scale": np.array(2, np.float32), "shift": np.array(1)}
    for method, options in OPTIONS.items():
        result = ox.explain(model(text), feeds, method, **{**options, "target": 0, "memory": 1})
        assert result.names == ["x"]
        np.testing.assert_allclose(result.score, 3)
    np.testing.assert_allclose(ox.explain(model(text), feeds, target=1).values, [[0, 2, 0]] * 3)


def test_a_fixed_batch_of_one_takes_any_number_of_samples() -> None:
    x = MLP.x(8)
    for method, options in OPTIONS.items():
        fixed = ox.explain(FIXED_BATCH.proto(), x, method, **options)
        free = ox.explain(load("mlp"), x, method, **options)
        assert relative_error(fixed.values, free.values) < 1e-5
        np.testing.assert_array_equal(fixed.target, free.target)


def test_a_fixed_batch_is_filled_up() -> None:
    proto = Tiny(MLP.text.replace("float[N,", "float[4,"), MLP.weights, MLP.inputs, MLP.output).proto()
    for samples in (1, 4, 6):
        x = MLP.x(samples)
        for method, options in (OPTIONS if samples > 1 else ALONE).items():
            fixed = ox.explain(proto, x, method, **options)
            free = ox.explain(load("mlp"), x, method, **options)
            assert relative_error(fixed.values, free.values) < 1e-5
            np.testing.assert_allclose(fixed.score, free.score, rtol=1e-5)


def test_a_model_that_only_takes_one_sample_gets_them_one_by_one() -> None:
    text = """m (float[N,6] x) => (float[N,4] y) {
        z = Gemm(x, w1, b1)
        shape = Constant<value_ints=[1,4]>()
        y = Reshape(z, shape)
    }"""
    proto = model(text, **weights(w1=(6, 4), b1=(4,)))
    x = MLP.x(3)
    result = ox.explain(proto, x, "gradient", target=[0, 1, 2])
    np.testing.assert_allclose(result.values, weights(w1=(6, 4), b1=(4,))["w1"].T[[0, 1, 2]])


def test_one_number_per_sample_in_and_out() -> None:
    proto = model("m (float[N] x) => (float[N] y) { y = Exp(x) }")
    x = np.array([0.0, 1.0, -1.0], np.float32)
    np.testing.assert_allclose(ox.explain(proto, x).values, np.exp(x), rtol=1e-6)
    np.testing.assert_allclose(ox.explain(proto, x, "occlusion").values, np.exp(x) - 1, rtol=1e-6)
    np.testing.assert_allclose(ox.explain(proto, x, "integrated_gradients").values, np.exp(x) - 1, rtol=1e-5)


def test_double_precision_is_kept() -> None:
    x = MLP.x(2).astype(np.float64)
    result = ox.explain(MLP.proto(double=True), x, "integrated_gradients", target=2, steps=7, quadrature="midpoint")
    assert result.values.dtype == np.float64
    mean = mean_on_the_line(lambda t: mlp_gradient(t * x, 2), 7, "midpoint")
    assert relative_error(result.values, x * mean) < 1e-12
