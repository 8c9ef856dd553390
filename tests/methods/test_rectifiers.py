"""The methods that replace the gradient of rectifiers, each against its definition."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

import onnxplain as ox
from tests.methods.tiny import (
    load,
)
from tests.models import IMAGES, MLP, Array, model
from tests.reference import relative_error, rng


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
