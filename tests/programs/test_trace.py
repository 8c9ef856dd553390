"""The report: relevance that each node receives and passes on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import onnxplain as ox
from tests.models import BRANCHES, IMAGES, MLP, TOKENS, model, weights
from tests.reference import rng


@pytest.mark.parametrize(
    ("method", "options"), [("lrp", {"rule": "epsilon"}), ("deeplift", {}), ("gradient_x_input", {})]
)
def test_what_arrives_is_what_was_given(method: str, options: dict[str, Any]) -> None:
    result = ox.explain(IMAGES.proto(), IMAGES.x(3), method, target=1, **options)
    lines = result.report()
    assert [line.node.op for line in lines] == [line.node.op for line in ox.Explainer(IMAGES.proto(), method).report()]
    given: dict[str, Any] = {}
    for line in lines:
        assert line.arrived is not None
        assert line.given is not None
        assert line.arrived.shape == line.given.shape == (3,)
        expected = given.get(line.node.outputs[0])
        if expected is not None:
            np.testing.assert_allclose(line.arrived, expected, rtol=1e-4, atol=1e-5)
        given[line.node.inputs[0]] = line.given
    np.testing.assert_allclose(given["x"], result.values.sum(axis=(1, 2, 3)), rtol=1e-4, atol=1e-5)
    first = lines[0].arrived
    assert first is not None
    if method != "deeplift":
        np.testing.assert_allclose(first, result.score, rtol=1e-5)


def test_a_dense_layer_loses_the_share_of_its_bias() -> None:
    """Epsilon 0: of y = W x + b, b / y of the relevance stays."""
    arrays = weights(w=(4, 3), b=(3,))
    proto = model("m (float[N,4] x) => (float[N,3] y) { y = Gemm(x, w, b) }", **arrays)
    x = rng(1).normal(size=(2, 4)).astype(np.float32)
    (line,) = ox.explain(proto, x, "lrp", rule="zero", target=1).report()
    np.testing.assert_allclose(line.arrived, (x @ arrays["w"] + arrays["b"])[:, 1], rtol=1e-5)
    np.testing.assert_allclose(line.given, (x @ arrays["w"])[:, 1], rtol=1e-4)


def test_nodes_in_bodies_have_no_numbers_and_methods_of_many_points_have_none() -> None:
    feeds = {**BRANCHES.feeds(2), "mode": np.array(1)}
    lines = ox.explain(BRANCHES.proto(), feeds, "lrp", rule="epsilon", wrt="x", target=0).report()
    assert any(line.arrived is None for line in lines)
    assert any(line.arrived is not None for line in lines)
    assert all(line.arrived is None for line in ox.explain(MLP.proto(), MLP.x(1), "integrated_gradients").report())
    assert ox.explain(MLP.proto(), MLP.x(1), "occlusion").report() == []


def test_quantities_and_tokens_are_traced() -> None:
    result = ox.explain(MLP.proto(), MLP.x(2), "lrp", rule="epsilon", target=ox.Difference(1, 2))
    np.testing.assert_allclose(result.report()[0].arrived, result.score, rtol=1e-5)
    tokens = ox.explain(TOKENS.proto(), rng(3).integers(0, 7, size=(2, 5)), "lrp", rule="epsilon", target=1)
    np.testing.assert_allclose(tokens.report()[-1].given, tokens.values.sum(axis=1), rtol=1e-4)
