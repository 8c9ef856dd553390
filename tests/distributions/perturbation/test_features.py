"""Which elements are masked together."""

from __future__ import annotations

import numpy as np
import pytest

import onnxplain as ox
from onnxplain.distributions.fills import spatial
from onnxplain.distributions.perturbation.features import partition
from tests.models import IMAGES, MLP, TOKENS, TWO_INPUTS
from tests.reference import relative_error


def test_default_features() -> None:
    for shape, count in (
        ((), 1),
        ((6,), 6),
        ((2, 100), 64),
        ((3, 224, 224), 49),
        ((224, 200, 3), 49),
        ((1, 4, 3, 2), 24),
    ):
        found = partition(None, {"x": np.zeros(shape)})
        assert found.count == count
        assert found.labels["x"].shape == shape
        channels = set(range(len(shape))) - set(spatial(shape))
        assert all((np.diff(found.labels["x"], axis=axis) == 0).all() for axis in channels)


def test_features_of_several_inputs_are_told_apart() -> None:
    feeds = TWO_INPUTS.feeds(1)
    found = partition(np.array([5, 5, 5, 2])[:1], {name: x[0] for name, x in feeds.items()})
    assert (found.count, set(found.labels["a"].flat), set(found.labels["b"].flat)) == (2, {0}, {1})
    result = ox.explain(TWO_INPUTS.proto(), feeds, "kernel_shap", target=1)
    scores = [TWO_INPUTS.evaluate({n: a * keep for n, a in feeds.items()})[0, 1] for keep in (1, 0)]
    total = result["a"].values.sum() + result["b"].values[:, 0].sum()  # columns of b are features
    assert total == pytest.approx(scores[0] - scores[1], rel=1e-4)


def test_superpixels_follow_the_picture() -> None:
    x = np.zeros((1, 2, 40, 30), np.float32)
    x[:, :, :, 13:] = 3.0
    (labels,) = partition("slic", {"x": x[0]}).labels.values()
    assert 4 <= labels.max() + 1 <= 60
    assert set(labels[..., :13].flat).isdisjoint(labels[..., 13:].flat)
    np.testing.assert_array_equal(labels[0], labels[1])
    last = partition("slic", {"x": x[0, :1].transpose(1, 2, 0)}).labels["x"]
    assert set(last[:, :13].flat).isdisjoint(last[:, 13:].flat)
    values = ox.explain(IMAGES.proto(), IMAGES.x(1), "lime", target=1, samples=30).values
    np.testing.assert_array_equal(values[:, 0], values[:, 1])


def test_tokens_and_columns_that_go_together() -> None:
    """Against a loop: all elements of a number at once, whatever it is called."""
    tokens = np.array([[1, 2, 3, 4, 5], [6, 1, 0, 2, 3]])
    for tiny, x, labels, baseline in (
        (TOKENS, tokens, np.array([7, 7, 0, 7, -2]), 6),
        (MLP, MLP.x(2), np.array([1, 1, 0, 5, 5, 5]), 0.5),
    ):
        expected = np.zeros(x.shape)
        for number in set(labels.tolist()):
            copies = np.where(labels == number, np.asarray(baseline, x.dtype), x)
            lost = (tiny.evaluate({"x": x}) - tiny.evaluate({"x": copies}))[:, 1]
            expected[:, labels == number] = lost[:, None]
        found = ox.explain(tiny.proto(), x, "feature_ablation", target=1, features=labels, baseline=baseline).values
        assert relative_error(found, expected) < 1e-4
