"""Any method averaged over points of the input: against calls at those points."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onnxplain as ox
from onnxplain.distributions.fills import blurred
from onnxplain.distributions.lines import QUADRATURES
from onnxplain.distributions.sampling import Noise
from tests.models import IMAGES, MLP, TOKENS, Array
from tests.reference import relative_error

BASES: list[tuple[str, dict[str, Any]]] = [
    ("integrated_gradients", {"steps": 3}),
    ("deeplift", {"baseline": 0.1}),
    ("expected_gradients", {"samples": 4}),
    ("occlusion", {"window": 2}),
    ("rise", {"samples": 6}),
    ("grad_cam", {}),
    ("recipro_cam", {}),
    ("smoothgrad", {"base": "lrp", "samples": 2, "rule": "zero"}),
]


def noisy(x: Array, seed: int) -> list[Array]:
    noise = Noise(4, 0.3, seed=seed)
    return [x + noise.scale(x) * noise.draw(k, 0, x.shape[1:]).astype(x.dtype) for k in range(4)]


@pytest.mark.parametrize(("base", "options"), BASES)
def test_noise_around_any_method(base: str, options: dict[str, Any]) -> None:
    x, proto = IMAGES.x(2), IMAGES.proto()
    plain = ox.explain(proto, x, base, **options)
    found = np.stack([ox.explain(proto, p, base, target=plain.target, **options).values for p in noisy(x, 7)])
    moments = {"smoothgrad": found.mean(0), "smoothgrad_squared": (found**2).mean(0), "vargrad": found.var(0)}
    for method, expected in moments.items():
        calls: list[tuple[int, int]] = []
        explainer = ox.Explainer(proto, method, samples=4, noise=0.3, seed=7, base={"method": base, **options})
        result = explainer(x, progress=lambda *done, calls=calls: calls.append(done))
        assert relative_error(result.values, expected) < 1e-4, method  # a variance is a small difference
        assert (result.method, result.residual) == (method, None)
        np.testing.assert_array_equal(result.target, plain.target)
        np.testing.assert_allclose(result.score, plain.score, rtol=1e-6)
        assert calls == [(k, 4) for k in (1, 2, 3, 4)]


@pytest.mark.parametrize(("base", "options"), [("lrp", {"rule": "epsilon"}), ("deeplift", {}), ("occlusion", {})])
def test_a_method_along_a_line(base: str, options: dict[str, Any]) -> None:
    """Integrated LRP, for one: the mean of the relevance at points between the baseline and the input."""
    x, proto = MLP.x(3), MLP.proto()
    target = ox.explain(proto, x).target
    positions, weights = QUADRATURES["midpoint"](5)
    points = [np.float32(0.2) + np.float32(t) * (x - np.float32(0.2)) for t in positions]
    values = [ox.explain(proto, p, base, target=target, **options).values for p in points]
    settings = {"steps": 5, "baseline": 0.2, "quadrature": "midpoint", "base": base, **options}
    if base == "deeplift":  # both have a baseline
        settings["base"] = {"method": base, "baseline": 0.0}
    found = ox.explain(proto, x, "internal_influence", **settings)
    assert relative_error(found.values, np.tensordot(weights, values, axes=1)) < 1e-5


def test_an_internal_tensor_of_a_moving_input() -> None:
    x, proto = IMAGES.x(1), IMAGES.proto()
    name = ox.load(proto).tensors[0].name
    target = ox.explain(proto, x).target
    options = {"at": name, "steps": 2}
    found = [ox.explain(proto, p, "integrated_gradients", target=target, **options).values for p in noisy(x, 3)]
    base = {"method": "integrated_gradients", "steps": 2}
    result = ox.explain(proto, x, "smoothgrad", at=name, samples=4, noise=0.3, seed=3, base=base)
    assert relative_error(result.values, np.mean(found, axis=0)) < 1e-4


def test_a_blurred_baseline_of_the_inputs_beside_one_of_an_internal_tensor() -> None:
    """DeepLIFT's own baseline is that of the tensor, a number; the line's is that of the inputs that move."""
    x, proto = IMAGES.x(2), IMAGES.proto()
    options = {"at": ox.load(proto).tensors[0].name, "target": 1}
    start = blurred(x)
    points = [(start + np.float32(t) * (x - start)) for t in QUADRATURES["midpoint"](3)[0]]
    expected = np.mean([ox.explain(proto, p, "deeplift", **options).values for p in points], axis=0)
    settings = {"steps": 3, "quadrature": "midpoint", "baseline": "blur", "base": {"method": "deeplift"}}
    found = ox.explain(proto, x, "internal_influence", **settings, **options)
    assert relative_error(found.values, expected) < 1e-5


def test_what_is_refused(tmp_path: Path) -> None:
    explainer = ox.Explainer(MLP.proto(), "smoothgrad", samples=2, base="occlusion")
    with pytest.raises(ox.OptionError, match="looks at several points, or masks, cannot be exported"):
        explainer.export(tmp_path / "e.onnx")
    with pytest.raises(ox.OptionError, match="no input of floating-point numbers to move: x"):
        ox.explain(TOKENS.proto(), TOKENS.x(2).astype(np.int64), "smoothgrad", samples=2, base="occlusion", wrt="x")
