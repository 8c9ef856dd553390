"""RISE: against its expectation in closed form."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

import onnxplain as ox
from tests.distributions.perturbation.cases import LINEAR, PICTURE
from tests.models import TOKENS, Array, model


def covariance(size: int, cells: int) -> Array:
    """Mean over the shifts of sum_c A[i, c] A[j, c], A the linear interpolation of a grid: shape (size, size)."""
    extent = -(-size // cells)
    places = (np.arange((cells + 1) * extent) + 0.5) * cells / ((cells + 1) * extent) - 0.5
    a = np.stack([np.interp(places, np.arange(cells), row) for row in np.eye(cells)], axis=1)
    return np.mean([a[s : s + size] @ a[s : s + size].T for s in range(extent)], axis=0)


def expectation(x: Array, weights: Array, bias: float, baseline: float, keep: float, shared: Array) -> Array:
    """E[f(M x + (1 - M) c) M] / E[M] for linear f, from E[M_i M_j] = p^2 + p (1 - p) shared_ij."""
    together = keep**2 + keep * (1 - keep) * shared
    return bias + baseline * weights.sum() + together @ (weights * (x - baseline)) / keep


@pytest.mark.parametrize("keep", [0.5, 0.3])
def test_rise_converges_to_its_expectation(keep: float) -> None:
    table = np.eye(4)
    places = np.kron(covariance(7, 3), covariance(5, 3))
    both_channels = np.tile(places, (2, 2))
    for tiny, shared in ((LINEAR, table), (PICTURE, both_channels)):
        x = tiny.x(1)
        runs = np.stack(
            [
                ox.explain(
                    tiny.proto(), x, "rise", target=0, samples=200, seed=s, cells=3, keep=keep, baseline=0.2
                ).values.reshape(-1)
                for s in range(20)
            ]
        )
        expected = expectation(x.reshape(-1), tiny.weights["w"][:, 0], 0.5, 0.2, keep, shared)
        error = runs.std(axis=0, ddof=1) / 20**0.5
        assert np.all(abs(runs.mean(axis=0) - expected) < 4 * error)
        assert np.ptp(expected) > 4 * error.max()  # so that a constant would not do


def test_centred_rise_has_no_part_of_the_mean_score() -> None:
    x, w = LINEAR.x(1), LINEAR.weights["w"][:, 0]
    runs = [
        ox.explain(LINEAR.proto(), x, "rise", target=0, samples=400, seed=s, keep=0.3, center=True).values[0]
        for s in range(10)
    ]
    error = np.std(runs, axis=0, ddof=1) / 10**0.5
    expected = 0.7 * w * x[0] * (1 - 1 / 400)  # a mean of the same 400 scores takes its part along
    assert np.all(abs(np.mean(runs, axis=0) - expected) < 4 * error)
    assert error.max() < 0.05


def test_rise_masks_integers_whole() -> None:
    """Each token is its own or the baseline's; so the mean over many masks is that over all sets of tokens."""
    tokens = np.array([[1, 2, 3, 4, 5]])
    sets = np.array(list(product([False, True], repeat=5)))
    scores = TOKENS.evaluate({"x": np.where(sets, tokens, 6)})[:, 1]
    exact = 2 * (scores[:, None] * sets).mean(axis=0)
    found = ox.explain(TOKENS.proto(), tokens, "rise", target=1, samples=3000, baseline=6).values[0]
    assert np.all(abs(found - exact) < 4 * 2 * (scores[:, None] * sets).std(axis=0) / 3000**0.5)
    proto = model(
        "m (int64[N,1,7,5] x) => (float[N,5] y) { f = Cast<to=1>(x) y = ReduceMax<keepdims=0>(f, a) }",
        a=np.array([1, 2]),
    )
    steep = ox.explain(proto, np.full((1, 1, 7, 5), 1000), "rise", target=0, cells=2, samples=50)
    assert set(np.unique(steep.values * 25 % 1000)) == {0}  # no score but 0 and 1000
