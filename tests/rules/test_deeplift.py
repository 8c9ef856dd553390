"""DeepLIFT's own rules against the paper, and what they give in networks of every kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import onnxplain as ox
from onnxplain.composites import DEEPLIFT_RULES
from onnxplain.errors import OptionError
from onnxplain.rules import deeplift as rules
from onnxplain.rules.deeplift import Linear, Rescale, RevealCancel, Through
from tests.models import model, weights
from tests.reference import relative_error, rng
from tests.rules.explained import DENSE, TOLERANCE, dense, explained
from tests.rules.paper import ACTIVATIONS, Array, Layer, contributions

CONV = """net (float[N, 2, 6, 5] x) => (float[N, 4] y) {
    z1 = Conv<pads=[1, 1, 1, 1], strides=[2, 1]>(x, w1, b1)
    h1 = F(z1)
    c2 = Conv<group=2>(h1, w2)
    z2 = BatchNormalization(c2, gamma, beta, mean, variance)
    h2 = F(z2)
    flat = Flatten(h2)
    y = Gemm<transB=1>(flat, w3, b3)
}"""


def conv(seed: int = 0) -> tuple[dict[str, Array], list[tuple[Array, Array]]]:
    """The convolutions as matrices: what they make of every unit vector."""
    arrays = weights(seed, w1=(4, 2, 3, 3), b1=(4,), w2=(4, 2, 2, 2), w3=(4, 32), b3=(4,))
    arrays |= {n: rng(seed + k).normal(size=4).astype(np.float32) for k, n in enumerate(("gamma", "beta", "mean"))}
    arrays["variance"] = rng(seed + 9).uniform(0.5, 2, 4).astype(np.float32)
    w = {n: torch.tensor(a, dtype=torch.float64) for n, a in arrays.items()}

    def first(x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x.reshape(-1, 2, 6, 5), w["w1"], w["b1"], (2, 1), 1).flatten(1)

    def second(h: torch.Tensor) -> torch.Tensor:
        z = F.conv2d(h.reshape(-1, 4, 3, 5), w["w2"], groups=2)
        return F.batch_norm(z, w["mean"], w["variance"], w["gamma"], w["beta"]).flatten(1)

    pairs = []
    for function, size in ((first, 60), (second, 60)):
        b = function(torch.zeros(1, size, dtype=torch.float64))
        pairs.append(((function(torch.eye(size, dtype=torch.float64)) - b).T.numpy(), b[0].numpy()))
    return arrays, [*pairs, (arrays["w3"].astype(np.float64), arrays["b3"].astype(np.float64))]


NETS: dict[str, tuple[str, Callable[..., Any], tuple[int, ...]]] = {
    "dense": (DENSE, dense, (6,)),
    "conv": (CONV, conv, (2, 6, 5)),
}


@pytest.mark.parametrize("rule", ["rescale", "reveal_cancel"])
@pytest.mark.parametrize("f", ACTIVATIONS)
@pytest.mark.parametrize("net", NETS)
def test_rules_are_the_papers(net: str, f: str, rule: str) -> None:
    text, make, shape = NETS[net]
    arrays, pairs = make()
    layers: list[Layer] = [layer for pair in pairs[:-1] for layer in (pair, ACTIVATIONS[f])] + [pairs[-1]]
    x, x0 = rng(1).normal(size=(3, *shape)).astype(np.float32), rng(2).normal(size=shape).astype(np.float32)
    x[1].flat[:3] = x0.flat[:3]  # inputs that do not change
    target = np.array([2, 0, 3])
    result = explained(text.replace("F(", f"{f}("), arrays, x, rule=rule, baseline=x0, target=target)
    flat = [contributions(layers, v.ravel(), x0.ravel(), t, rule) for v, t in zip(x, target, strict=True)]
    assert relative_error(result.values, np.stack(flat).reshape(x.shape)) < TOLERANCE
    assert np.all(abs(result.residual) < 1e-5)


def test_the_rules_differ_and_an_error_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison above fails for the other rule, and for a layer that ignores the two parts."""
    arrays, _ = dense()
    x = rng(1).normal(size=(3, 6)).astype(np.float32)
    text = DENSE.replace("F(", "Relu(")
    right = explained(text, arrays, x, rule="reveal_cancel", target=0)
    assert relative_error(explained(text, arrays, x, rule="rescale", target=0).values, right.values) > 0.1
    monkeypatch.setattr(rules.Halves, "of", lambda self, call: None)
    wrong = explained(text, arrays, x, rule="reveal_cancel", target=0)
    assert relative_error(wrong.values, right.values) > 0.05
    assert abs(wrong.residual).max() > 1e-3


def test_the_authors_own_example() -> None:
    """From the tests of kundajelab/deeplift: Dy- = 0.5 (-1 - 4), Dy+ = 0.5 (3 + 6)."""
    text = """net (float[N, 4] x) => (float[N, 1] y) {
        z = Gemm(x, w, b)
        y = Relu(z)
    }"""
    w = np.array([[1.0], [-2.0], [-3.0], [4.0]])
    x = np.array([[-1, -1, 1, 1]], np.float32)
    result = explained(text, {"w": w, "b": np.array([1.0])}, x, rule="reveal_cancel")
    multipliers = np.array([2.5 / 4, 4.5 / 6, 2.5 / 4, 4.5 / 6])
    np.testing.assert_allclose(result.values, multipliers * w.T * x, rtol=1e-6)


AND = {
    "spelled out": "d = Sub(a, b) r = Relu(d) y = Sub(a, r)",
    "as a layer": "x = Concat<axis=1>(a, b) d = MatMul(x, w) r = Relu(d) y = Sub(a, r)",
    "the operator": "y = Min(a, b)",
}


@pytest.mark.parametrize("form", AND)
def test_min_gives_half_to_each(form: str) -> None:
    """Section 3.4 of the paper: a - max(0, a - b), where gradients and Rescale see one of the two only."""
    text = f"net (float[N, 1] a, float[N, 1] b) => (float[N, 1] y) {{ {AND[form]} }}"
    proto = model(text, w=np.array([[1.0], [-1.0]]))
    feeds = {"a": np.array([[3], [1], [2]], np.float32), "b": np.array([[1], [5], [2]], np.float32)}
    result = ox.explain(proto, feeds, "deeplift", rule="reveal_cancel")
    for name in ("a", "b"):
        np.testing.assert_allclose(result[name].values, np.array([[0.5], [0.5], [1.0]]), rtol=1e-6)
    if form != "the operator":
        seen = ox.explain(proto, feeds, "deeplift", rule="rescale")
        np.testing.assert_allclose([seen["a"].values[0, 0], seen["b"].values[0, 0]], [0, 1], atol=1e-6)


def test_six_modes() -> None:
    """The Linear rule alone changes nothing; RevealCancel needs it."""
    arrays, _ = dense()
    x = rng(1).normal(size=(3, 6)).astype(np.float32)
    text = DENSE.replace("F(", "Tanh(")
    found = {rule: explained(text, arrays, x, rule=rule, baseline=0.5).values for rule in DEEPLIFT_RULES}
    for one, other in (("no_rule", "linear"), ("rescale", "linear_rescale"), ("reveal_cancel", "linear_reveal_cancel")):
        np.testing.assert_array_equal(found[one], found[other])
    gradient = ox.explain(model(text, **arrays), x, "gradient").values
    assert relative_error(found["no_rule"], gradient * (x - np.float32(0.5))) < 1e-6
    assert explained(text, arrays, x, rule="no_rule").residual is None
    with pytest.raises(OptionError, match="Did you mean 'rescale'"):
        ox.Explainer(model(text, **arrays), "deeplift", rule="rescal")


def test_the_report_says_where_there_is_nothing_to_cancel() -> None:
    """RevealCancel needs a linear layer or a sum in front; what scales, shifts or moves may lie between."""
    text = """net (float[N, 2, 6] x) => (float[N, 4] y) {
        r = Relu(x)
        p = MatMul(r, w1)
        a = Add(p, b1)
        b = Mul(a, s)
        c = Reshape(b, shape)
        d = Tanh(c)
        e = Exp(d)
        f = Flatten(e)
        y = MatMul(f, w2)
    }"""
    arrays = {**weights(w1=(6, 8), b1=(8,), s=(8,), w2=(16, 4)), "shape": np.array([0, 4, 4])}
    explainer = ox.Explainer(model(text, **arrays), "deeplift", rule="reveal_cancel")
    found = {line.node.op: type(line.rule) for line in explainer.report()}
    assert (found["Relu"], found["Tanh"], found["Exp"]) == (Rescale, RevealCancel, Rescale)
    assert (found["MatMul"], found["Add"], found["Mul"], found["Reshape"]) == (Linear, Through, Through, Through)
    x = rng().normal(size=(3, 2, 6)).astype(np.float32)
    assert np.all(abs(explainer(x).residual) < 1e-5)
    joined = {**arrays, "w1": arrays["w1"] * arrays["s"], "b1": arrays["b1"] * arrays["s"], "s": np.ones(8)}
    assert relative_error(explained(text, joined, x, rule="reveal_cancel").values, explainer(x).values) < TOLERANCE


@pytest.mark.parametrize(("low", "high"), [(0.0, 6.0), (-1.0, 2.0)])
def test_clip_between_all_pairs_of_places(low: float, high: float) -> None:
    """Rise over run, and for no run the derivative, which is 0 at the bounds."""
    bounds = {"low": np.array(low), "high": np.array(high)}
    places = np.array([-9, low - 1e-3, low, low + 1e-6, 0.5, 1.5, high - 1e-6, high, high + 1e-3, 40], np.float32)
    proto = model("m (float[N,1] x) => (float[N,1] y) { y = Clip(x, low, high) }", **bounds)
    x, x0 = (a.reshape(-1, 1) for a in np.meshgrid(places, places))
    result = ox.explain(proto, x, "deeplift", target=0, baseline=x0)
    rise = np.clip(x, low, high).astype(np.float64) - np.clip(x0, low, high)
    np.testing.assert_allclose(result.values, rise, rtol=1e-5, atol=49 * 2**-23)  # slopes are rounded at 1, steps to 49
    # What the multiplier is where x = x0 shows in a layer before, whose two parts cancel.
    text = "m (float[N,2] x) => (float[N,1] y) { s = ReduceSum(x, one) y = Clip(s, low, high) }"
    cancelling = model(text, **bounds, one=np.array([1]))
    both = np.concatenate([places[:, None] + 8, np.full((len(places), 1), -8, np.float32)], axis=1)
    there = np.concatenate([places[:, None], np.zeros((len(places), 1), np.float32)], axis=1)
    kept = both.sum(axis=1) == places
    found = ox.explain(cancelling, both[kept], "deeplift", target=0, baseline=there[kept]).values
    inside = ((places > low) & (places < high))[kept]
    np.testing.assert_allclose(found, inside[:, None] * np.array([8.0, -8.0]), rtol=1e-6)
    assert 0 < inside.sum() < len(inside)
