"""LRP of whole networks: relevance is conserved, samples do not mix, exported explainers agree."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

import onnxplain
from tests.models import model
from tests.reference import rng

Array = np.ndarray[Any, Any]

# Two sums come before the rectifiers: the flat and w_square rules also reach units that are 0, and a sum of zeros could
# not pass relevance on. Layers are wide enough for every unit to have contributions of both signs, as alpha_beta needs.
NET = """net (float[N, 3, 12, 12] x) => (float[N, 5] y) {
    a = Conv<kernel_shape=[3, 3], pads=[1, 1, 1, 1]>(x, w1)
    b = Relu(a)
    c = Conv<kernel_shape=[3, 3], pads=[1, 1, 1, 1]>(b, w2)
    skip = Conv<kernel_shape=[3, 3], pads=[1, 1, 1, 1]>(b, w3)
    d = Add(c, skip)
    e = Relu(d)
    f = MaxPool<kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]>(e)
    left = Conv<kernel_shape=[3, 3], group=2, pads=[1, 1, 1, 1]>(f, w4)
    right = Conv<kernel_shape=[2, 2], pads=[0, 0, 1, 1]>(f, w5)
    g = Concat<axis=1>(left, right)
    h = AveragePool<kernel_shape=[2, 2], strides=[2, 2]>(g)
    i = Relu(h)
    j = ConvTranspose<kernel_shape=[4, 4], strides=[2, 2], pads=[1, 1, 1, 1]>(i, w6)
    k = Relu(j)
    l = GlobalAveragePool(k)
    m = Flatten<axis=1>(l)
    y = Gemm<transB=1>(m, w7)
}"""
SHAPES = [(16, 3, 3, 3), (16, 16, 3, 3), (16, 16, 3, 3), (24, 8, 3, 3), (24, 16, 2, 2), (48, 8, 4, 4), (5, 8)]
WEIGHTS = {f"w{i}": rng(i).normal(size=shape) for i, shape in enumerate(SHAPES, 1)}
X = np.abs(rng(9).normal(size=(5, 3, 12, 12))).astype(np.float32)
RULES: dict[str, dict[str, Any]] = {
    "zero": {},
    "epsilon": {"epsilon": 1e-6},
    "gamma": {"gamma": 0.5},
    "interpolated": {"gamma": 0.5},
    "alpha_beta": {"alpha": 2.0, "beta": 1.0},
    "z_plus": {},
    "z_box": {"low": -4.0, "high": 5.0},
    "w_square": {},
    "flat": {},
}
COMPOSITES: dict[str, dict[str, Any]] = {
    "epsilon_plus": {},
    "epsilon_plus_flat": {},
    "epsilon_alpha2_beta1": {},
    "epsilon_alpha2_beta1_flat": {},
    "excitation_backprop": {},
    "deep_taylor": {},
    "attn_lrp": {},
    "epsilon_gamma_box": {"low": 0.0, "high": 5.0},
}
OPTIONS = [{"rule": name, **given} for name, given in RULES.items()]
OPTIONS += [{"composite": name, **given} for name, given in COMPOSITES.items()]
EACH = pytest.mark.parametrize("options", OPTIONS, ids=lambda options: next(iter(options.values())))


@pytest.fixture(scope="module")
def net() -> onnxplain.Model:
    return onnxplain.load(model(NET, **WEIGHTS))


@EACH
def test_relevance_is_conserved(net: onnxplain.Model, options: dict[str, Any]) -> None:
    """Without biases, all of the score arrives at the input."""
    result = onnxplain.Explainer(net, "lrp", **options)(X)
    total = result.values.reshape(len(X), -1).sum(1, dtype=np.float64)
    np.testing.assert_allclose(total, result.score, rtol=1e-3)
    np.testing.assert_allclose(result.residual, total - result.score, atol=1e-5)
    assert np.isfinite(result.values).all()


def test_a_bias_keeps_its_share() -> None:
    """y = W x + b: the residual of LRP-0 is what the bias gets."""
    w, b = rng(1).normal(size=(4, 3)), np.array([0.5, -2.0, 1.0])
    dense = model("net (float[N, 4] x) => (float[N, 3] y) { y = Gemm(x, w, b) }", w=w, b=b)
    result = onnxplain.explain(dense, rng(2).normal(size=(2, 4)).astype(np.float32), "lrp", rule="zero", target=1)
    np.testing.assert_allclose(result.residual, [2.0, 2.0], rtol=1e-4)


TOKENS = """net (float[N, 6, 4] x) => (float[N, 5] y) {
    a = MatMul(x, w1)
    b = Add(a, b1)
    c = Relu(b)
    d = MatMul(c, w2)
    e = Add(b2, d)
    f = Flatten<axis=1>(e)
    y = Gemm(f, w3, b3)
}"""
ROWS = """net (float[N, 6, 4] x) => (float[N, 5] y) {
    a = Reshape(x, rows)
    b = Gemm(a, w1, b1)
    c = Relu(b)
    d = Gemm(c, w2, b2)
    e = Reshape(d, samples)
    y = Gemm(e, w3, b3)
}"""
SIZES = {"w1": (4, 8), "b1": (8,), "w2": (8, 4), "b2": (1, 1, 4), "w3": (24, 5), "b3": (5,)}


@pytest.mark.parametrize("options", OPTIONS[:-1], ids=lambda options: next(iter(options.values())))
def test_a_bias_behind_a_product_is_the_layers(options: dict[str, Any]) -> None:
    """Dense layers on tokens are MatMul and Add; where sizes are known, ONNX Runtime makes a Gemm of the two."""
    weights = {name: rng(i).normal(size=size) for i, (name, size) in enumerate(SIZES.items())}
    shapes = {"rows": np.array([-1, 4]), "samples": np.array([-1, 24])}
    x = np.abs(rng(9).normal(size=(2, 6, 4))).astype(np.float32)
    split = onnxplain.Explainer(model(TOKENS, **weights), "lrp", **options)
    assert [line.node.op for line in split.report()].count("MatMul") == 2
    joined = onnxplain.explain(model(ROWS, **{**weights, "b2": weights["b2"].ravel()}, **shapes), x, "lrp", **options)
    known = onnxplain.explain(model(TOKENS.replace("N,", "2,"), **weights), x, "lrp", **options)
    for result in (split(x), known):
        np.testing.assert_allclose(result.values, joined.values, atol=1e-4 * np.abs(joined.values).max())


@EACH
def test_samples_do_not_mix(net: onnxplain.Model, options: dict[str, Any]) -> None:
    explainer = onnxplain.Explainer(net, "lrp", **options)
    together = explainer(X)
    for i, target in enumerate(together.target):
        alone = explainer(X[i : i + 1], target)
        scale = np.abs(together.values[i]).max()
        np.testing.assert_allclose(alone.values[0], together.values[i], atol=1e-4 * scale)


@EACH
def test_exported_explainers_agree(net: onnxplain.Model, options: dict[str, Any], tmp_path: Path) -> None:
    explainer = onnxplain.Explainer(net, "lrp", **options)
    explainer.export(tmp_path / "explainer.onnx")
    session = ort.InferenceSession(tmp_path / "explainer.onnx", providers=["CPUExecutionProvider"])
    for samples in (1, 5):
        expected = explainer(X[:samples], 3)
        feeds = {"x": X[:samples], "target": np.full(samples, 3)}
        y, attribution = session.run(["y", "attribution"], feeds)
        np.testing.assert_allclose(y[:, 3], expected.score, rtol=1e-4, atol=1e-5)
        scale = np.abs(expected.values).max()
        np.testing.assert_allclose(attribution, expected.values, atol=1e-4 * scale)
    assert {o.domain for o in onnx.load(tmp_path / "explainer.onnx").opset_import} <= {"", "ai.onnx"}


@EACH
def test_zeros_everywhere(net: onnxplain.Model, options: dict[str, Any]) -> None:
    assert np.isfinite(onnxplain.Explainer(net, "lrp", **options)(X * 0, 1).values).all()


@pytest.mark.parametrize("options", OPTIONS[:5], ids=lambda options: options["rule"])
def test_free_image_sizes(options: dict[str, Any]) -> None:
    """The same numbers where height and width are known at run time only."""
    free = model(NET.replace("12, 12", "H, W"), **WEIGHTS)
    fixed = onnxplain.explain(model(NET, **WEIGHTS), X, "lrp", **options)
    result = onnxplain.explain(free, X, "lrp", **options)
    np.testing.assert_allclose(result.values, fixed.values, atol=1e-4 * np.abs(fixed.values).max())
