"""Quantities other than a class: weighted sums, neurons, channels, probabilities, whole outputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onnxplain as ox
from tests.models import IMAGES, MLP, SOFTMAX, model
from tests.reference import relative_error, rng
from tests.test_export import bare

METHODS: list[tuple[str, dict[str, Any]]] = [
    ("gradient", {}),
    ("gradient_x_input", {}),
    ("lrp", {"rule": "zero"}),
    ("integrated_gradients", {"steps": 5}),
    ("occlusion", {"window": 2}),
]


@pytest.mark.parametrize(("method", "options"), METHODS)
def test_weighted_sums_of_classes(method: str, options: dict[str, Any], tmp_path: Path) -> None:
    """All of these methods are linear in what they explain."""
    x = MLP.x(3)
    explainer = ox.Explainer(MLP.proto(), method, **options)
    parts = {c: explainer(x, c) for c in (0, 1, 3)}
    factors = np.array([1, 0, -1.5], np.float32)
    result = explainer(x, 2 * ox.Class(1) - ox.Class(0) + ox.Class(3) * factors)
    expected = 2 * parts[1].values - parts[0].values + factors[:, None] * parts[3].values
    assert relative_error(result.values, expected) < 1e-5
    np.testing.assert_allclose(result.score, 2 * parts[1].score - parts[0].score + factors * parts[3].score, rtol=1e-5)
    assert result.target.tolist() == [[1, 0, 3]] * 3
    difference = ox.Difference(1, 0)
    explainer.export(tmp_path / "e.onnx", target=difference)
    exported = bare(tmp_path / "e.onnx", {"x": x})
    assert relative_error(exported["attribution"], explainer(x, difference).values) < 1e-5
    assert relative_error(exported["attribution"], parts[1].values - parts[0].values) < 1e-4


def test_the_predicted_class_and_arrays_in_sums() -> None:
    x = MLP.x(3)
    y = MLP.evaluate({"x": x})
    other = y.argmin(axis=1)
    result = ox.explain(MLP.proto(), x, "gradient", target=ox.Difference(None, other))
    expected = ox.explain(MLP.proto(), x).values - ox.explain(MLP.proto(), x, target=other).values
    assert relative_error(result.values, expected) < 1e-5
    np.testing.assert_allclose(result.score, y.max(axis=1) - y.min(axis=1), rtol=1e-5)
    np.testing.assert_array_equal(result.target, np.stack([y.argmax(axis=1), other], axis=1))


def test_probabilities() -> None:
    x = SOFTMAX.x(2)
    explainer = ox.Explainer(SOFTMAX.proto(), "gradient")
    probability = ox.explain(SOFTMAX.proto(), x, target=1, probability=True)
    assert relative_error(explainer(x, ox.Probability(1)).values, probability.values) < 1e-6
    assert relative_error(explainer(x, ox.Class(1)).values, explainer(x, 1).values) < 1e-6
    assert relative_error(explainer(x, ox.Class(1)).values, probability.values) > 0.1


def test_neurons_and_channels() -> None:
    graph = ox.load(IMAGES.proto()).canonical().graph
    name = next(n.outputs[0] for n in graph.nodes if n.op == "Conv")
    shape = graph.value(name).shape
    assert shape is not None
    channels, height, width = (int(d or 0) for d in shape[1:])
    x = IMAGES.x(2)
    explainer = ox.Explainer(IMAGES.proto(), "gradient")
    channel = explainer(x, ox.Channel(name, 1))
    assert channel.target.shape == (2, height * width, 3)
    parts = [explainer(x, ox.Neuron(name, (1, i, j))) for i in range(height) for j in range(width)]
    assert relative_error(channel.values, np.sum([p.values for p in parts], axis=0)) < 1e-5
    np.testing.assert_allclose(channel.score, np.sum([p.score for p in parts], axis=0), rtol=1e-3)
    row = explainer(x, ox.Neuron(name, (1, 2, slice(0, 3))))
    assert relative_error(row.values, np.sum([p.values for p in parts[2 * width :][:3]], axis=0)) < 1e-5
    assert not np.array_equal(channel.values, explainer(x, ox.Channel(name, 0)).values)
    with pytest.raises(ox.TargetError, match="no element"):
        explainer(x, ox.Channel(name, channels))


def test_an_element_of_a_whole_output() -> None:
    text = "m (float[N,4] x) => (float[N,4] y, float[A,2] z) { y = Tanh(x)  z = Reshape(y, two) }"
    proto = model(text, two=np.array([-1, 2]))
    x = rng(3).normal(size=(2, 4)).astype(np.float32)
    result = ox.explain(proto, x, target=ox.Output("z", (1, 0)))
    assert np.argwhere(result.values).tolist() == [[0, 2], [1, 2]]
    result = ox.explain(proto, x, target=ox.Output("y", (0, 3)))
    np.testing.assert_allclose(result.score, np.tanh(x[:, 3]), rtol=1e-6)


def test_what_is_refused() -> None:
    x = MLP.x(2)
    explainer = ox.Explainer(MLP.proto(), "gradient")
    with pytest.raises(ox.OptionError, match="one and the same tensor"):
        ox.Class(1) + ox.Neuron("h", 1)
    with pytest.raises(ox.OptionError, match="weight of a quantity"):
        ox.Class(1) * "2"
    with pytest.raises(TypeError):
        ox.Class(1) + 1  # type: ignore[operator]
    for quantity, error, message in (
        (ox.Class(99), ox.TargetError, "out of range"),
        (ox.Class(1) * np.ones(3), ox.OptionError, "3 weights for 2 samples"),
        (ox.Neuron("hh", 1), ox.OptionError, "no floating-point tensor 'hh'"),
        (ox.Output("z", 1), ox.OptionError, "no output 'z'"),
        (ox.Neuron("h", (slice(9, 9),)), ox.TargetError, "holds no element"),
    ):
        with pytest.raises(error, match=message):
            explainer(x, quantity)
