"""Every method on every tiny model, and each against its own definition, calculated without the package."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from itertools import product
from typing import Any

import numpy as np
import pytest

import onnxplain as ox
from onnxplain.methods import METHODS, forward_only, make
from tests.models import FIXED_BATCH, IMAGES, MLP, SIGNAL, TINY, TOKENS, TWO_INPUTS, VOLUME, Array, Tiny, model, weights
from tests.reference import relative_error, rng

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


# The gradient, and what is made of it.


def differences(tiny: Tiny, feeds: Mapping[str, Array], target: Array, name: str = "") -> dict[str, Array]:
    """Gradient of the target's score by central differences of the model itself, in float64."""
    step = 1e-6
    gradients = {}
    for moved, array in feeds.items():
        size = array[0].size
        steps = np.concatenate([np.eye(size), -np.eye(size)]).reshape(2 * size, *array.shape[1:]) * step
        rows = []
        for sample in range(len(array)):
            points = {n: np.repeat(a[sample : sample + 1].astype(np.float64), 2 * size, 0) for n, a in feeds.items()}
            points[moved] = points[moved] + steps
            scores = tiny.evaluate(points, name)[:, target[sample]]
            rows.append((scores[:size] - scores[size:]) / (2 * step))
        gradients[moved] = np.stack(rows).reshape(array.shape)
    return gradients


def last_classes(tiny: Tiny, samples: int) -> Array:
    """Flat positions: the last element for the first sample, the one before for the second ..."""
    size = int(np.prod(tiny.output))
    return (size - 1 - np.arange(samples)) % size


def target_of(tiny: Tiny, flat: Array) -> Array:
    return flat if len(tiny.output) < 2 else np.stack(np.unravel_index(flat, tiny.output), axis=1)


@pytest.mark.parametrize("name", TINY)
def test_gradient_is_the_models_own(name: str) -> None:
    tiny = TINY[name]
    feeds, flat = tiny.feeds(2), last_classes(TINY[name], 2)
    target = target_of(tiny, flat)
    expected = differences(tiny, feeds, flat)
    assert_close(parts(ox.explain(load(name), feeds, "gradient", target=target)), expected, 1e-4)
    readouts: dict[str, Callable[[Array, Array], Array]] = {
        "gradient_x_input": lambda g, x: g * x,
        "sensitivity": lambda g, x: g**2,
    }
    for method, readout in readouts.items():
        result = parts(ox.explain(load(name), feeds, method, target=target))
        assert_close(result, {n: readout(expected[n], feeds[n]) for n in feeds}, 1e-4)
    result = parts(ox.explain(load(name), feeds, "sensitivity", norm="absolute", target=target))
    assert_close(result, {n: abs(g) for n, g in expected.items()}, 1e-4)


@pytest.mark.parametrize("name", ["softmax", "sigmoid"])
def test_probability_explains_the_value_after_softmax_or_sigmoid(name: str) -> None:
    tiny = TINY[name]
    feeds, flat = tiny.feeds(2), last_classes(TINY[name], 2)
    result = ox.explain(load(name), feeds, "gradient", target=flat, probability=True)
    assert_close(parts(result), differences(tiny, feeds, flat, "y"), 1e-4)
    np.testing.assert_allclose(result.score, tiny.evaluate(feeds, "y")[[0, 1], flat], rtol=1e-5)
    for method in ("integrated_gradients", "occlusion"):
        score = ox.explain(load(name), feeds, method, target=flat, probability=True, **OPTIONS[method]).score
        np.testing.assert_allclose(score, result.score)


def test_probability_changes_nothing_where_there_is_none() -> None:
    x = MLP.x(2)
    plain, asked = (ox.explain(load("mlp"), x, "gradient", probability=p) for p in (False, True))
    np.testing.assert_array_equal(plain.values, asked.values)


# Integrated gradients.


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


@pytest.mark.parametrize("quadrature", ["gauss_legendre", "midpoint", "trapezoid", "left", "right"])
@pytest.mark.parametrize("steps", [2, 7])
def test_integrated_gradients_is_the_mean_gradient_on_the_line(quadrature: str, steps: int) -> None:
    x, baseline = MLP.x(3), rng(5).normal(size=(3, 6)).astype(np.float32)
    options = {"steps": steps, "quadrature": quadrature, "baseline": baseline}
    result = ox.explain(load("mlp"), x, "integrated_gradients", target=2, **options)
    mean = mean_on_the_line(lambda t: mlp_gradient(baseline + t * (x - baseline), 2), steps, quadrature)
    assert relative_error(result.values, (x - baseline) * mean) < 1e-5


def smooth(tiny: Tiny) -> Tiny:
    """The model without kinks, on whose gradient the quadrature converges at once."""
    return replace(tiny, text=tiny.text.replace("Relu", "Softplus").replace("MaxPool", "AveragePool"))


def rise(tiny: Tiny, feeds: Mapping[str, Array], start: Mapping[str, Array], target: Array) -> Array:
    scores = tiny.evaluate(feeds) - tiny.evaluate({**feeds, **start})
    return scores[np.arange(len(target)), target]


def totals(result: ox.Attribution) -> Array:
    return sum(v.reshape(len(v), -1).sum(axis=1, dtype=np.float64) for v in parts(result).values())


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


# Relevance.


@pytest.mark.parametrize("options", [{}, {"composite": "epsilon_plus"}, {"rule": "epsilon"}], ids=str)
@pytest.mark.parametrize("name", ["mlp", "images", "residual", "two_inputs", "one_number", "signal", "volume"])
def test_relevance_is_conserved_without_biases(name: str, options: dict[str, Any]) -> None:
    result = ox.explain(TINY[name].unbiased(), TINY[name].feeds(3), "lrp", **options)
    np.testing.assert_allclose(result.residual, totals(result) - result.score, atol=1e-5)
    assert np.all(abs(result.residual) < 1e-3 * abs(result.score).max())


def test_lrp_starts_at_the_score() -> None:
    result = ox.explain(load("mlp"), MLP.x(2), "lrp", at="y")
    expected = np.zeros((2, 4))
    expected[[0, 1], result.target] = result.score
    np.testing.assert_array_equal(result.values, expected.astype(np.float32))


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


# Rectifiers.


def rectified(x: Array, target: int, rule: Callable[[Array, Array], Array]) -> Array:
    """MLP's backward pass with another rule at its Relu: ``rule(cotangent, input)``."""
    w1, b1, w2 = (MLP.weights[n].astype(np.float64) for n in ("w1", "b1", "w2"))
    return rule(np.broadcast_to(w2[:, target], (len(x), 8)), x @ w1 + b1) @ w1.T


def test_beta_smooth_is_the_gradient_of_softplus_at_the_activations_of_relu() -> None:
    x = MLP.x(3)
    w1, b1, w2 = (MLP.weights[n].astype(np.float64) for n in ("w1", "b1", "w2"))
    for beta in (0.5, 3, 10):
        slopes = 1 / (1 + np.exp(-beta * (x @ w1 + b1)))
        found = ox.explain(load("mlp"), x, "beta_smooth", beta=beta, target=3).values
        assert relative_error(found, (w2[:, 3] * slopes) @ w1.T) < 1e-5


def test_rect_grad_passes_what_matters_most() -> None:
    """A percentile of six products of activation and cotangent, per sample: strictly above it."""
    x = rng(5).normal(size=(4, 6)).astype(np.float32)

    def rule(ct: Array, z: Array) -> Array:
        products = np.maximum(z, 0) * ct
        ranks = np.round(0.4 * (products.shape[1] - 1)).astype(int)
        return ct * (products > np.sort(products, axis=1)[:, [ranks]])

    found = ox.explain(load("mlp"), x, "rect_grad", percentile=40, target=3).values
    assert relative_error(found, rectified(x, 3, rule)) < 1e-5
    for percentile in (0, 50, 98, 100):
        found = ox.explain(load("mlp"), x, "rect_grad", percentile=percentile, target=3).values
        assert found.any() == (percentile < 98)
    with pytest.raises(ox.OptionError, match="from 0 to 100"):
        ox.Explainer(load("mlp"), "rect_grad", percentile=101)


def test_deconvnet_of_a_filter_starts_from_its_activations() -> None:
    """Zeiler and Fergus keep the activations of one filter and set the layer's others to zero."""
    graph = ox.load(IMAGES.proto()).canonical().graph
    name = next(n.outputs[0] for n in graph.nodes if n.op == "Relu")
    x = IMAGES.x(2)
    activation = graph.value(name).shape
    assert activation is not None
    channel = ox.explain(IMAGES.proto(), x, "deconvnet", values=True, target=ox.Channel(name, 1))
    total = np.zeros_like(channel.values)
    for i in range(int(activation[2] or 0)):
        for j in range(int(activation[3] or 0)):
            neuron = ox.explain(IMAGES.proto(), x, "deconvnet", target=ox.Neuron(name, (1, i, j)))
            total += neuron.score[:, None, None, None] * neuron.values
    assert relative_error(channel.values, total) < 1e-5


def test_guided_backprop_and_deconvnet() -> None:
    x = MLP.x(4)
    guided = rectified(x, 3, lambda ct, z: np.maximum(ct, 0) * (z > 0))
    assert relative_error(ox.explain(load("mlp"), x, "guided_backprop", target=3).values, guided) < 1e-5
    deconvnet = rectified(x, 3, lambda ct, z: np.maximum(ct, 0))
    assert relative_error(ox.explain(load("mlp"), x, "deconvnet", target=3).values, deconvnet) < 1e-5


def test_clip_counts_as_a_rectifier_where_asked_for() -> None:
    text = MLP.text.replace("Relu(z)", "Clip(z, low, high)")
    proto = model(text, **MLP.weights, low=np.float32(0), high=np.float32(1))
    x = MLP.x(4)
    inside = lambda z: (z > 0) & (z < 1)
    plain = rectified(x, 3, lambda ct, z: ct * inside(z))
    guided = rectified(x, 3, lambda ct, z: np.maximum(ct, 0) * inside(z))
    assert relative_error(ox.explain(proto, x, "guided_backprop", target=3).values, plain) < 1e-5
    assert relative_error(ox.explain(proto, x, "guided_backprop", target=3, clip=True).values, guided) < 1e-5
    everywhere = rectified(x, 3, lambda ct, z: np.maximum(ct, 0))
    assert relative_error(ox.explain(proto, x, "deconvnet", target=3, clip=True).values, everywhere) < 1e-5


# Occlusion.


def occluded(tiny: Tiny, feeds: Mapping[str, Array], target: Array, window, stride, baseline, axes: int) -> dict:
    """Zeiler and Fergus, window by window, sample by sample."""
    results = {}
    scores = tiny.evaluate(feeds)[np.arange(len(target)), target]
    for name, x in feeds.items():
        base = np.broadcast_to(np.asarray(baseline, np.float32), x.shape)
        sizes = x.shape[-axes:]
        window_ = [min(w, n) for w, n in zip(np.broadcast_to(window, axes), sizes, strict=True)]
        stride_ = [max(1, w // 2) for w in window_] if stride is None else np.broadcast_to(stride, axes)
        starts = []
        for n, w, s in zip(sizes, window_, stride_, strict=True):
            begin = [0]
            while begin[-1] + w < n:
                begin.append(begin[-1] + s)
            starts.append(begin)
        total, count = np.zeros(x.shape), np.zeros(x.shape)
        for corner in product(*starts):
            where = (..., *(slice(c, c + w) for c, w in zip(corner, window_, strict=True)))
            hidden = x.copy()
            hidden[where] = base[where]
            loss = scores - tiny.evaluate({**feeds, name: hidden})[np.arange(len(target)), target]
            total[where] += loss.reshape(-1, *[1] * (x.ndim - 1))
            count[where] += 1
        assert count.min() > 0
        results[name] = total / count
    return results


CHANNELS = np.array([0.5, -1.0], np.float32)[:, None, None]
PIXELS = rng(3).normal(size=(2, 9, 8)).astype(np.float32)
OCCLUSIONS: dict[str, tuple[Tiny, int, dict[str, Any]]] = {
    "square": (IMAGES, 2, {"window": 4, "stride": 4}),
    "ragged borders": (IMAGES, 2, {"window": 4, "stride": 3}),
    "default stride": (IMAGES, 2, {"window": 5}),
    "single pixels": (IMAGES, 2, {"window": 1, "stride": 1}),
    "larger than the image": (IMAGES, 2, {"window": 40}),
    "one number for each axis": (IMAGES, 2, {"window": (2, 5), "stride": (2, 3)}),
    "one stride for all": (IMAGES, 2, {"window": (3, 5), "stride": 2}),
    "one window for all": (IMAGES, 2, {"window": 4, "stride": (2, 3)}),
    "channels too": (IMAGES, 3, {"window": (1, 4, 4), "stride": (1, 3, 3)}),
    "rows only": (IMAGES, 1, {"window": (3,), "stride": (2,)}),
    "a number for a baseline": (IMAGES, 2, {"window": 4, "baseline": 0.7}),
    "a colour for a baseline": (IMAGES, 2, {"window": 4, "baseline": CHANNELS}),
    "an image for a baseline": (IMAGES, 2, {"window": 4, "baseline": PIXELS}),
    "one each": (IMAGES, 2, {"window": 4, "baseline": IMAGES.x(2, seed=9)}),
    "signal": (SIGNAL, 1, {"window": 4, "stride": 3}),
    "volume": (VOLUME, 3, {"window": 3, "stride": 2}),
    "volume, one number for each axis": (VOLUME, 3, {"window": (2, 2, 4), "stride": (1, 2, 3)}),
    "table": (MLP, 1, {"window": 2, "stride": 2}),
    "single columns": (MLP, 1, {"window": 1}),
}


@pytest.mark.parametrize("case", OCCLUSIONS)
def test_occlusion_is_the_loss_window_by_window(case: str) -> None:
    tiny, axes, options = OCCLUSIONS[case]
    feeds, target = tiny.feeds(2), np.array([2, 0])
    result = ox.explain(tiny.proto(), feeds, "occlusion", target=target, **options)
    options = {"stride": None, "baseline": 0.0, **options}
    assert_close(parts(result), occluded(tiny, feeds, target, axes=axes, **options), 1e-4)


def test_occlusion_of_several_inputs() -> None:
    feeds, target = TWO_INPUTS.feeds(2), np.array([1, 2])
    result = parts(ox.explain(load("two_inputs"), feeds, "occlusion", target=target, window=2, stride=1))
    for name, axes in (("a", 1), ("b", 1)):  # b has a channel axis and one behind it
        expected = occluded(TWO_INPUTS, feeds, target, 2, 1, 0.0, axes)[name]
        assert relative_error(result[name], expected) < 1e-4


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
