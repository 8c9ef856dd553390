"""Quantities other than a class: weighted sums, neurons, channels, probabilities, whole outputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onnxplain as ox
from onnxplain.graph.var import Var
from tests.export.test_explainer import bare
from tests.models import IMAGES, MLP, SIGMOID, SOFTMAX, Array, Tiny, model
from tests.reference import relative_error, rng

METHODS: list[tuple[str, dict[str, Any]]] = [
    ("gradient", {}),
    ("gradient_x_input", {}),
    ("lrp", {"rule": "zero"}),
    ("deeplift", {}),
    ("smoothgrad", {"samples": 3}),
    ("integrated_gradients", {"steps": 5}),
    ("occlusion", {"window": 2}),
]


def softmax(z: Array) -> Array:
    exponents = np.exp(z.astype(np.float64))
    return exponents / exponents.sum(axis=1, keepdims=True)


SEGMENTER = model("m (float[N,3,4,4] x) => (float[N,3,4,4] y) { y = Tanh(x) }")


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


@pytest.mark.parametrize(("method", "options"), METHODS)
def test_expressions(method: str, options: dict[str, Any], tmp_path: Path) -> None:
    """What a user writes is explained as if the model had it as an output."""
    x = SOFTMAX.x(3)
    entropy = ox.Expression(lambda p: -ox.op("ReduceSum", p * ox.op("Log", p), [1], keepdims=0), "y")
    more = "l = Log(y) q = Mul(y, l) s = ReduceSum<keepdims=0>(q, one) e = Neg(s)"
    text = SOFTMAX.text.replace("y) {", "y, float[N] e) {").replace("(logits)", f"(logits) {more}")
    written = model(text, **SOFTMAX.weights, one=np.array([1]))
    explainer = ox.Explainer(SOFTMAX.proto(), method, **options)
    found, expected = explainer(x, entropy), ox.explain(written, x, method, target=0, output="e", **options)
    assert relative_error(found.values, expected.values) < 1e-5
    y = softmax(SOFTMAX.evaluate({"x": x}))
    np.testing.assert_allclose(found.score, -(y * np.log(y)).sum(axis=1), rtol=1e-5)
    explainer.export(tmp_path / "e.onnx", target=entropy)
    assert relative_error(bare(tmp_path / "e.onnx", {"x": x})["attribution"], found.values) < 1e-5


def test_an_expression_of_several_tensors_and_of_the_explained_one() -> None:
    x = MLP.x(3)
    h, y = (ox.load(MLP.proto()).canonical().graph.value(n) for n in ("h", "y"))
    assert h.shape != y.shape
    explainer = ox.Explainer(MLP.proto(), "gradient")
    both = ox.Expression(lambda h, y: ox.op("Gather", h, 2, axis=1) + 3 * ox.op("Gather", y, 1, axis=1), "h", "y")
    expected = explainer(x, ox.Neuron("h", 2)).values + 3 * explainer(x, 1).values
    assert relative_error(explainer(x, both).values, expected) < 1e-6
    ranked = ox.Expression(lambda y: ox.op("ReduceMax", y, [1], keepdims=0) - ox.op("ReduceMin", y, [1], keepdims=0))
    lowest = MLP.evaluate({"x": x}).argmin(axis=1)
    assert relative_error(explainer(x, ranked).values, explainer(x, ox.Difference(None, lowest)).values) < 1e-6
    doubled = ox.Expression(lambda y: y * 2.0, index=[3, 1, 0])
    assert relative_error(explainer(x, doubled).values, 2 * explainer(x, np.array([3, 1, 0])).values) < 1e-6


def test_an_expression_is_compiled_once() -> None:
    calls = []

    def square(y: Var) -> Var:
        calls.append(y)
        return y * y

    explainer = ox.Explainer(MLP.proto(), "gradient")
    for k in range(3):
        result = explainer(MLP.x(2), ox.Expression(square, index=k))
        np.testing.assert_allclose(result.score, MLP.evaluate({"x": MLP.x(2)})[:, k] ** 2, rtol=1e-5)
    assert len(calls) == 1


@pytest.mark.parametrize("tiny", [SOFTMAX, SIGMOID, MLP])
def test_log_probabilities(tiny: Tiny) -> None:
    x = tiny.x(3)
    y = tiny.evaluate({"x": x}).reshape(3, -1)
    probability = 1 / (1 + np.exp(-y)) if tiny is SIGMOID else softmax(y)
    explainer = ox.Explainer(tiny.proto(), "gradient")
    result = explainer(x, ox.LogProbability(0))
    np.testing.assert_allclose(result.score, np.log(probability[:, 0]), rtol=1e-5)
    if tiny is not MLP:
        expected = explainer(x, ox.Probability(0)).values / probability[:, :1].reshape(-1, *[1] * (x.ndim - 1))
        assert relative_error(result.values, expected) < 1e-5
    if y.shape[1] > 1:
        difference = explainer(x, ox.LogProbability(1) - ox.LogProbability(0))
        assert relative_error(difference.values, explainer(x, ox.Difference(1, 0)).values) < 1e-5
    assert explainer(x, ox.LogProbability()).target.reshape(3, -1)[:, 0].tolist() == y.argmax(axis=1).tolist()


def test_the_greatest_element_of_a_channel() -> None:
    graph = ox.load(IMAGES.proto()).canonical().graph
    name = next(n.outputs[0] for n in graph.nodes if n.op == "Conv")
    x = IMAGES.x(1)
    explainer = ox.Explainer(IMAGES.proto(), "gradient")
    result = explainer(x, ox.Channel(name, 1, reduce="max"))
    _, _, height, width = graph.value(name).shape or ()
    parts = [explainer(x, ox.Neuron(name, (1, i, j))) for i in range(int(height or 0)) for j in range(int(width or 0))]
    best = max(parts, key=lambda part: float(part.score[0]))
    np.testing.assert_allclose(result.score, best.score, rtol=1e-6)
    assert relative_error(result.values, best.values) < 1e-6
    with pytest.raises(ox.TargetError, match="no channel 99"):
        explainer(x, ox.Channel(name, 99, reduce="max"))
    with pytest.raises(ox.OptionError, match="no reduction 'mean'"):
        ox.Channel(name, 1, reduce="mean")


def test_expressions_that_are_refused() -> None:
    x = MLP.x(2)
    explainer = ox.Explainer(MLP.proto(), "gradient")
    for expression, message in (
        (ox.Expression(lambda y: y, "nothing"), "no tensor 'nothing'"),
        (ox.Expression(lambda y: 3), "gives a tensor made of those"),
        (ox.Expression(lambda y: ox.op("Nonsense", y)), "not valid ONNX: .*Nonsense"),
        (ox.Expression(lambda y: ox.op("Gather", y, 0, axis=7)), "not valid ONNX"),
        (ox.Expression(lambda y: ox.op("Log", 3.0)), "no input of Log is a tensor"),
    ):
        with pytest.raises(ox.OptionError, match=message):
            explainer(x, expression)
    for function in (lambda y: y if y > 0 else -y, lambda y: y if y == 0 else -y, lambda y: max(y, 0), np.exp, sum):
        with pytest.raises(ox.TensorError, match="no values before the model runs") as raised:
            explainer(x, ox.Expression(function))
        assert "ox.op(" in raised.value.hint
        assert isinstance(raised.value, TypeError)
    pictures = ox.Explainer(SEGMENTER, "gradient")
    with pytest.raises(ox.TargetError, match="which axis"):
        pictures(rng(1).normal(size=(1, 3, 4, 4)).astype(np.float32), ox.LogProbability((0, 1, 1)))


def test_what_is_refused() -> None:
    x = MLP.x(2)
    explainer = ox.Explainer(MLP.proto(), "gradient")
    with pytest.raises(ox.OptionError, match="in the same tensor"):
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
