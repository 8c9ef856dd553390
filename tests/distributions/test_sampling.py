"""Averages over neighbourhoods and lines: against captum, against what is known in closed form, and by axioms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import onnxplain as ox
from onnxplain.distributions import LineIncrements, Lines, Noise, References
from onnxplain.distributions.lines import QUADRATURES
from tests.models import IMAGES, MLP, TOKENS, TWO_INPUTS, Array, model, weights
from tests.reference import relative_error, rng

attr = pytest.importorskip("captum.attr")

PROTO = MLP.proto(double=True)
X = MLP.x(3).astype(np.float64)
TARGET = np.array([0, 3, 2])


def net() -> nn.Sequential:
    """The MLP in torch."""
    w1, b1, w2, b2 = (torch.tensor(MLP.weights[n].astype(np.float64)) for n in ("w1", "b1", "w2", "b2"))
    layers = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)).double()
    with torch.no_grad():
        for layer, weight, bias in ((layers[0], w1, b1), (layers[2], w2, b2)):
            layer.weight.copy_(weight.T)
            layer.bias.copy_(bias)
    return layers


def explain(method: str, x: Array = X, target: Any = TARGET, proto: Any = PROTO, **options: Any) -> Array:
    return ox.explain(proto, x, method, target=target, **options).values


# Against captum.


@pytest.mark.parametrize("base", ["gradient", "guided_backprop", "gradient_x_input"])
@pytest.mark.parametrize(
    ("method", "theirs"),
    [("smoothgrad", "smoothgrad"), ("smoothgrad_squared", "smoothgrad_sq"), ("vargrad", "vargrad")],
)
def test_noise_tunnel(method: str, theirs: str, base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = Noise(5, 0.7, relative=False, seed=3)
    drawn = np.stack([noise.draw(k, 0, (6,)) for k in range(5)])
    monkeypatch.setattr(torch, "normal", lambda _, std: std * torch.tensor(np.tile(drawn, (3, 1))))
    peers = {"gradient": ("Saliency", {"abs": False}), "guided_backprop": ("GuidedBackprop", {})}
    name, options = peers.get(base, ("InputXGradient", {}))
    tunnel = attr.NoiseTunnel(getattr(attr, name)(net()))
    x = torch.tensor(X, requires_grad=True)
    settings = {"nt_type": theirs, "nt_samples": 5, "stdevs": 0.7, "target": torch.tensor(TARGET), **options}
    expected = tunnel.attribute(x, **settings).detach().numpy()
    found = explain(method, samples=5, noise=0.7, relative=False, seed=3, base=base)
    assert relative_error(found, expected) < 1e-6  # captum takes the width in float32


def test_gradient_shap_in_expectation() -> None:
    """Both estimate the same mean, which whole lines to each baseline give almost without error."""
    baselines = rng(5).normal(size=(4, 6))
    torch.manual_seed(0)
    shap = attr.GradientShap(net())
    settings = {"n_samples": 20_000, "stdevs": 0.0, "target": torch.tensor(TARGET)}
    theirs = shap.attribute(torch.tensor(X), torch.tensor(baselines), **settings).detach().numpy()
    lines = explain("expected_gradients", baselines=baselines, steps=500)
    drawn = explain("expected_gradients", baselines=baselines, samples=2000)
    assert relative_error(theirs, lines) < 0.02
    assert relative_error(drawn, lines) < 0.02


LAYERS = [("z", 0), ("h", 1)]
CAPTUM = {"gauss_legendre": "gausslegendre", "midpoint": "riemann_middle", "left": "riemann_left"}


@pytest.mark.parametrize(("at", "layer"), LAYERS)
@pytest.mark.parametrize("quadrature", CAPTUM)
def test_internal_influence(quadrature: str, at: str, layer: int) -> None:
    layers = net()
    baseline = rng(1).normal(size=(1, 6))
    settings = {"n_steps": 7, "method": CAPTUM[quadrature], "target": torch.tensor(TARGET)}
    peer = attr.InternalInfluence(layers, layers[layer])
    expected = peer.attribute(torch.tensor(X), torch.tensor(baseline), **settings).detach().numpy()
    found = explain("internal_influence", at=at, steps=7, quadrature=quadrature, baseline=baseline)
    assert relative_error(found, expected) < 1e-6  # captum takes the weights in float32


@pytest.mark.parametrize(("at", "layer"), LAYERS)
def test_conductance(at: str, layer: int) -> None:
    """captum's shares of the way end at its points; those of its trapezoid cover the way, with the gradient at left."""
    layers = net()
    baseline = rng(1).normal(size=(1, 6))
    settings = {"n_steps": 9, "method": "riemann_trapezoid", "target": torch.tensor(TARGET)}
    peer = attr.LayerConductance(layers, layers[layer])
    expected = peer.attribute(torch.tensor(X), torch.tensor(baseline), **settings).detach().numpy()
    found = explain("conductance", at=at, steps=9, quadrature="left", baseline=baseline)
    assert relative_error(found, expected) < 1e-6  # captum takes the points in float32


# Neighbourhoods.

LINEAR = model("m (double[N,6] x) => (double[N,4] y) { y = MatMul(x, w) }", True, w=weights(w=(6, 4))["w"])
SQUARES = model(
    "m (double[N,6] x) => (double[N,1] y) { s = Mul(x, x) y = ReduceSum<keepdims=1>(s, a) }", True, a=np.array([1])
)


def test_noise_does_not_change_a_linear_models_gradient() -> None:
    gradient = explain("gradient", proto=LINEAR)
    np.testing.assert_allclose(explain("smoothgrad", proto=LINEAR, samples=3), gradient, rtol=1e-12)
    np.testing.assert_allclose(explain("smoothgrad_squared", proto=LINEAR, samples=3), gradient**2, rtol=1e-12)
    np.testing.assert_allclose(explain("vargrad", proto=LINEAR, samples=3), 0, atol=1e-12)


@pytest.mark.parametrize(("shape", "variance"), [("gaussian", 1), ("uniform", 1 / 3)])
def test_moments_of_a_quadratic(shape: str, variance: float) -> None:
    """The gradient is 2 x, so noise of width s gives a mean of 2 x, and a variance of 4 s^2 (a third of it)."""
    options = {"samples": 4000, "noise": 0.5, "relative": False, "shape": shape, "target": 0, "proto": SQUARES}
    np.testing.assert_allclose(explain("smoothgrad", **options), 2 * X, atol=0.05)
    np.testing.assert_allclose(explain("vargrad", **options), variance, rtol=0.1)
    squares = explain("smoothgrad_squared", **options)
    np.testing.assert_allclose(squares, 4 * X**2 + variance, rtol=0.15)
    difference = squares - explain("smoothgrad", **options) ** 2
    np.testing.assert_allclose(explain("vargrad", **options), difference, rtol=1e-9)


def test_noise_is_a_part_of_the_range_of_each_sample() -> None:
    spans = X.max(axis=1) - X.min(axis=1)
    found = explain("vargrad", target=0, proto=SQUARES, samples=7, noise=0.2)
    for row, span in enumerate(spans):
        alone = {"target": 0, "proto": SQUARES, "samples": 7, "noise": 0.2 * span, "relative": False}
        np.testing.assert_allclose(found[row : row + 1], explain("vargrad", X[row : row + 1], **alone), rtol=1e-9)


def test_the_readout_of_the_base_is_that_of_each_point() -> None:
    noise = Noise(6, 0.4, relative=False)
    points = [X + 0.4 * noise.draw(k, 0, (6,)) for k in range(6)]
    for base, options in (("sensitivity", {}), ("gradient_x_input", {}), ("lrp", {"rule": "epsilon", "epsilon": 0.1})):
        expected = np.mean([explain(base, point, **options) for point in points], axis=0)
        found = explain("smoothgrad", samples=6, noise=0.4, relative=False, base=base, **options)
        assert relative_error(found, expected) < 1e-12


def test_the_predicted_class_is_that_of_the_input() -> None:
    result = ox.explain(PROTO, X, "smoothgrad", noise=50, samples=20)
    np.testing.assert_array_equal(result.target, ox.explain(PROTO, X).target)
    np.testing.assert_array_equal(result.values, explain("smoothgrad", target=result.target, noise=50, samples=20))


def test_noise_at_the_input_reaches_an_internal_tensor() -> None:
    noise = Noise(4, 0.6, relative=False)
    points = [X + 0.6 * noise.draw(k, 0, (6,)) for k in range(4)]
    expected = np.mean([explain("gradient_x_input", point, at="h") for point in points], axis=0)
    found = explain("smoothgrad", at="h", samples=4, noise=0.6, relative=False, base="gradient_x_input")
    assert relative_error(found, expected) < 1e-12


def test_inputs_get_noise_of_their_own() -> None:
    noise = Noise(1, 1.0, relative=False)
    assert not np.array_equal(noise.draw(0, 0, (6,)), noise.draw(0, 1, (6,)))
    feeds = TWO_INPUTS.feeds(2)
    both = ox.explain(TWO_INPUTS.proto(), feeds, "smoothgrad", samples=3, target=0)
    one = ox.explain(TWO_INPUTS.proto(), feeds, "smoothgrad", samples=3, target=0, wrt="b")
    assert relative_error(both["b"].values, one.values) > 1e-3


def test_tokens_are_squared_as_tokens() -> None:
    """The noise is that of their embedding, but what is squared is one number per token."""
    tokens = np.array([[1, 2, 3, 4, 5], [0, 1, 0, 6, 2]])
    options = {"target": [0, 2], "samples": 1, "noise": 0.3}
    once = ox.explain(TOKENS.proto(), tokens, "smoothgrad", **options).values
    squared = ox.explain(TOKENS.proto(), tokens, "smoothgrad_squared", **options).values
    np.testing.assert_allclose(squared, once**2, rtol=1e-5)


# Seeds, chunks, batches.

RANDOM: list[tuple[str, dict[str, Any]]] = [
    ("smoothgrad", {"samples": 7}),
    ("vargrad", {"samples": 7, "shape": "uniform"}),
    ("expected_gradients", {"samples": 7, "baselines": rng(2).normal(size=(3, 2, 9, 8))}),
]


@pytest.mark.parametrize(("method", "options"), RANDOM)
def test_the_seed_decides_and_nothing_else(method: str, options: dict[str, Any]) -> None:
    x = IMAGES.x(3)
    first, again, other = (ox.explain(IMAGES.proto(), x, method, target=1, seed=s, **options).values for s in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert relative_error(other, first) > 1e-3
    for memory in (1, 20_000, 60_000):
        chunked = ox.explain(IMAGES.proto(), x, method, target=1, seed=0, memory=memory, **options).values
        assert relative_error(chunked, first) < 1e-6
    alone = ox.explain(IMAGES.proto(), x[2:], method, target=1, seed=0, **options).values
    assert relative_error(alone, first[2:]) < 1e-6


def test_every_part_of_the_way_and_every_baseline_gets_its_share() -> None:
    lines = Lines(References(baselines=np.zeros((3, 6))), samples=12, seed=4)
    np.testing.assert_array_equal(np.sort(np.floor(lines.positions * 12)), np.arange(12))
    np.testing.assert_array_equal(np.bincount(lines.lines), [4, 4, 4])
    some = Lines(References(baselines=np.zeros((5, 6))), samples=2, seed=4)
    assert len(set(some.lines)) == 2


def test_progress_and_its_end() -> None:
    calls: list[tuple[int, int]] = []
    ox.explain(PROTO, X, "smoothgrad", samples=50, progress=lambda *done: calls.append(done))
    assert calls == [(64, 150), (128, 150), (150, 150)]

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ox.explain(PROTO, X, "smoothgrad", progress=stop)


# Lines to several baselines.


def test_lines_to_several_baselines_are_the_mean_of_integrated_gradients() -> None:
    baselines = rng(5).normal(size=(3, 6))
    result = ox.explain(PROTO, X, "expected_gradients", target=TARGET, baselines=baselines, steps=9)
    singles = [ox.explain(PROTO, X, "integrated_gradients", target=TARGET, baseline=b, steps=9) for b in baselines]
    assert relative_error(result.values, np.mean([s.values for s in singles], axis=0)) < 1e-12
    np.testing.assert_allclose(result.residual, np.mean([s.residual for s in singles], axis=0), atol=1e-9)
    inner = explain("expected_gradients", at="h", baselines=[0.1, 0.3], steps=4)
    lines = [explain("integrated_gradients", at="h", baseline=b, steps=4) for b in (0.1, 0.3)]
    assert relative_error(inner, np.mean(lines, axis=0)) < 1e-12


def test_tokens_as_baselines() -> None:
    tokens = np.array([[1, 2, 3, 4, 5], [0, 1, 0, 6, 2]])
    proto = TOKENS.proto()
    found = ox.explain(proto, tokens, "expected_gradients", target=1, baselines=[3, 6], steps=5)
    lines = [ox.explain(proto, tokens, "integrated_gradients", target=1, baseline=b, steps=5).values for b in (3, 6)]
    assert relative_error(found.values, np.mean(lines, axis=0)) < 1e-5


# Internal influence (Leino et al. 2018) and conductance.

AFFINE = "m (double[N,6] x) => (double[N,4] y) { h = MatMul(x, w1) y = MatMul(h, w2) }"
TANH = "m (double[N,6] x) => (double[N,4] y) { z = MatMul(x, w1) h = Tanh(z) y = MatMul(h, w2) }"


def test_linear_agreement() -> None:
    """Of a model that is linear in the slice, the influence is its weights, whatever the distribution."""
    w = weights(w1=(6, 8), w2=(8, 4))
    for baseline in (0.0, 3.0):
        found = explain("internal_influence", at="h", proto=model(AFFINE, True, **w), baseline=baseline, steps=3)
        np.testing.assert_allclose(found, w["w2"].T[TARGET], rtol=1e-12)
    assert relative_error(explain("internal_influence", at="h"), MLP.weights["w2"].T[TARGET]) < 1e-12


def test_slice_invariance() -> None:
    """The influence depends on the slice's values and what follows, not on how the slice is calculated."""
    w = weights(w1=(6, 8), w2=(8, 4))
    text = TANH.replace("z = MatMul(x, w1)", "u = MatMul(x, wa) v = MatMul(x, wb) z = Add(u, v)")
    part = rng(3).normal(size=(6, 8)).astype(np.float32)
    split = model(text, True, wa=part.astype(np.float64), wb=w["w1"].astype(np.float64) - part, w2=w["w2"])
    whole = explain("internal_influence", at="z", proto=model(TANH, True, **w))
    assert relative_error(explain("internal_influence", at="z", proto=split), whole) < 1e-5  # float32 weights


def test_marginality() -> None:
    """Two models with the same slope by a unit, over the distribution, give it the same influence."""
    w = weights(w1=(6, 8), w2=(8, 4))
    changed = w["w2"].copy()
    changed[1:] = rng(4).normal(size=(7, 4))  # what other units do
    found = [
        explain("internal_influence", at="z", proto=model(TANH, True, w1=w["w1"], w2=v)) for v in (w["w2"], changed)
    ]
    np.testing.assert_allclose(found[0][:, 0], found[1][:, 0], rtol=1e-12)
    assert relative_error(found[0][:, 1:], found[1][:, 1:]) > 0.1


def test_influence_of_preprocessed_inputs() -> None:
    """An invertible linear map in front changes no influence behind it, if the points are mapped likewise."""
    w = weights(w1=(6, 8), w2=(8, 4))
    wide = {n: a.astype(np.float64) for n, a in w.items()}
    mapped = model(TANH, True, w1=wide["w1"] / 2, w2=wide["w2"])
    plain = explain("internal_influence", at="z", proto=model(TANH, True, **w), baseline=0.5)
    assert relative_error(explain("internal_influence", 2 * X, at="z", proto=mapped, baseline=1.0), plain) < 1e-6


@pytest.mark.parametrize("quadrature", QUADRATURES)
def test_conductance_at_the_input_is_integrated_gradients(quadrature: str) -> None:
    options = {"steps": 6, "baseline": 0.25, "quadrature": quadrature}
    if quadrature == "trapezoid":
        options["steps"] = 2
    assert relative_error(explain("conductance", **options), explain("integrated_gradients", **options)) < 1e-12


def test_conductance_is_complete_and_adds_up_to_the_flow() -> None:
    for quadrature, steps in (("midpoint", 400), ("gauss_legendre", 400)):
        result = ox.explain(PROTO, X, "conductance", target=TARGET, at="h", steps=steps, quadrature=quadrature)
        np.testing.assert_allclose(result.residual, 0, atol=1e-9)  # linear in h
    w = weights(w1=(6, 8), w2=(8, 4))
    result = ox.explain(model(TANH, True, **w), X, "conductance", target=TARGET, at="z", steps=200)
    np.testing.assert_allclose(result.residual, 0, atol=1e-4)
    np.testing.assert_allclose(result.values.sum(axis=1), result.score, atol=1e-4)  # which is 0 at 0


def test_shares_hold_their_points() -> None:
    for quadrature in QUADRATURES:
        lines = LineIncrements(steps=9, quadrature=quadrature)
        ends = lines.shares
        starts = np.concatenate([[0], ends[:-1]])
        assert np.all(starts <= lines.positions + 1e-12)
        assert np.all(lines.positions <= ends + 1e-12)
        assert ends[-1] == pytest.approx(1)


# The score at the baseline.


def at_baseline(proto: Any, x: Any, **options: Any) -> tuple[bool, ox.Attribution]:
    """Whether the score at the baseline is a constant, and the attribution."""
    explainer = ox.Explainer(proto, "integrated_gradients", **options)
    return explainer.prepare(x, 1).runner.names.baseline_score is not None, explainer(x, 1)


@pytest.mark.parametrize("shared", [0.0, 0.3, MLP.x(1)[0], MLP.x(1)], ids=["default", "number", "sample", "row"])
def test_a_baseline_of_all_samples_is_scored_once(shared: Any) -> None:
    (known, one), (free, rows) = (
        at_baseline(PROTO, X, baseline=b, steps=9) for b in (shared, np.zeros_like(X) + shared)
    )
    assert (known, free) == (True, False)
    np.testing.assert_array_equal(one.values, rows.values)
    np.testing.assert_allclose(one.residual, rows.residual, atol=1e-12)


ENDS = {  # model, input, options, whether it is scored once
    "blurred": (IMAGES, IMAGES.x(2), {"baseline": "blur"}, False),
    "two inputs": (TWO_INPUTS, TWO_INPUTS.x(2), {}, True),
    "another input": (TWO_INPUTS, TWO_INPUTS.x(2), {"wrt": "a"}, False),
    "tokens": (TOKENS, np.array([[1, 2, 3, 4, 5], [6, 0, 0, 1, 1]]), {}, True),
    "inside": (TOKENS, np.array([[1, 2, 3, 4, 5], [6, 0, 0, 1, 1]]), {"at": "embedded"}, True),
}


@pytest.mark.parametrize(("tiny", "x", "options", "once"), ENDS.values(), ids=ENDS)
def test_scores_at_baselines(tiny: Any, x: Any, options: dict[str, Any], once: bool) -> None:
    known, result = at_baseline(tiny.proto(), x, steps=200, **options)
    assert known == once
    np.testing.assert_allclose(result.residual, 0, atol=2e-3)


def test_a_batch_that_is_bound_is_scored_as_it_is() -> None:
    text = MLP.text.replace("N,", "3,").replace("y = Gemm(h, w2, b2)", "m = Softmax<axis=0>(h) y = Gemm(m, w2, b2)")
    known, result = at_baseline(model(text, **MLP.weights), MLP.x(3), steps=3)
    assert not known
    assert result.residual is not None


# Steps until the residual is small.


def test_steps_double_until_the_residual_is_below_the_tolerance() -> None:
    x = MLP.x(20).astype(np.float64)
    coarse = ox.explain(PROTO, x, "integrated_gradients", target=1, steps=4)
    fine = ox.explain(PROTO, x, "integrated_gradients", target=1, steps=4, tolerance=0.01)
    good = abs(coarse.residual) <= 0.01
    assert 0 < good.sum() < 20
    assert np.all(abs(fine.residual) <= 0.01)
    np.testing.assert_array_equal(fine.values[good], coarse.values[good])
    np.testing.assert_allclose(fine.residual, fine.values.sum(axis=1) - ends(x), atol=1e-9)
    alone = ox.explain(PROTO, x[~good][:1], "integrated_gradients", target=1, steps=4, tolerance=0.01)
    assert relative_error(alone.values, fine.values[~good][:1]) < 1e-12


def ends(x: Array) -> Array:
    return (MLP.evaluate({"x": x}) - MLP.evaluate({"x": 0 * x}))[:, 1]


def test_steps_are_bounded() -> None:
    calls: list[tuple[int, int]] = []
    options = {"steps": 1000, "tolerance": 1e-300, "progress": lambda *done: calls.append(done)}
    result = ox.explain(PROTO, X[:1], "integrated_gradients", target=1, **options)
    assert [total for done, total in calls if done == total] == [1000, 2000, 4000]
    assert result.residual[0] != 0


def test_a_tolerance_cannot_be_exported(tmp_path: Path) -> None:
    with pytest.raises(ox.OptionError, match="fixed number of steps"):
        ox.Explainer(PROTO, "integrated_gradients", tolerance=0.1).export(tmp_path / "a.onnx")


# What is refused.

BAD: list[tuple[str, dict[str, Any], str]] = [
    ("smoothgrad", {"samples": 0}, "samples must be a whole number"),
    ("smoothgrad", {"samples": 2.5}, "samples must be a whole number"),
    ("smoothgrad", {"noise": float("nan")}, "noise must be a finite number"),
    ("smoothgrad", {"noise": -1}, "noise must be a finite number"),
    ("smoothgrad", {"noise": "much"}, "noise must be a finite number"),
    ("smoothgrad", {"seed": -1}, "seed must be a whole number"),
    ("smoothgrad", {"relative": 1}, "relative must be True or False"),
    ("smoothgrad", {"shape": "triangle"}, "no shape 'triangle'"),
    ("smoothgrad", {"base": "lpr"}, "no method 'lpr'"),
    ("smoothgrad", {"epsilon": 0.1}, "no option 'epsilon'"),
    ("smoothgrad", {"base": "lrp", "epsilonn": 0.1}, "no option 'epsilonn'"),
    ("smoothgrad", {"base": ["lrp"]}, "base must be the name of a method, or"),
    ("smoothgrad", {"base": {"samples": 3}}, "base must be the name of a method, or"),
    ("smoothgrad", {"base": {"method": "rise", "masks": 3}}, "'rise' has no option 'masks'"),
    ("expected_gradients", {"baselines": np.zeros((0, 6))}, "at least one"),
    ("expected_gradients", {"baselines": [np.nan]}, "NaN"),
    ("expected_gradients", {"samples": 3, "steps": 3}, "samples .* or steps"),
    ("internal_influence", {"steps": 0}, "steps must be a whole number"),
    ("conductance", {"quadrature": "simpson"}, "no quadrature 'simpson'"),
    ("integrated_gradients", {"tolerance": 0}, "tolerance must be a finite number above 0"),
    ("integrated_gradients", {"tolerance": float("nan")}, "tolerance must be a finite number above 0"),
]


@pytest.mark.parametrize(("method", "options", "message"), BAD)
def test_bad_options(method: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ox.OptionError, match=message):
        ox.Explainer(PROTO, method, **options)


def test_baselines_that_do_not_fit() -> None:
    with pytest.raises(ox.OptionError, match="does not fit"):
        explain("expected_gradients", baselines=np.zeros((2, 5)))
    with pytest.raises(ox.OptionError, match="does not fit"):
        explain("internal_influence", at="h", baseline=np.zeros(5))
