"""The gradient against central differences of the model, and explanations of a probability."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pytest

import onnxplain as ox
from tests.methods.tiny import (
    OPTIONS,
    assert_close,
    last_classes,
    load,
    parts,
    target_of,
)
from tests.models import MLP, TINY, Array, Tiny


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
