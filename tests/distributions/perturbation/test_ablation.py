"""Features of other samples: against a loop."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

import onnxplain as ox
from onnxplain.distributions.perturbation import Permutation
from onnxplain.errors import OptionError
from tests.distributions.perturbation.cases import X
from tests.models import MLP
from tests.reference import relative_error


def test_permutation_is_the_mean_over_all_others_where_samples_suffice() -> None:
    x = MLP.x(4)
    expected = np.zeros((4, 6))
    for i, j, k in product(range(4), range(6), range(4)):
        if i != k:
            copy = x[i].copy()
            copy[j] = x[k, j]
            expected[i, j] += (MLP.evaluate({"x": x[[i]]}) - MLP.evaluate({"x": copy[None]}))[0, 2] / 3
    for seed in (0, 1):
        found = ox.explain(MLP.proto(), x, "feature_permutation", target=2, samples=3, seed=seed).values
        assert relative_error(found, expected) < 1e-5


def test_every_sample_meets_different_others() -> None:
    plans = Permutation(samples=4).plans({"x": MLP.x(9)})
    copies = np.array([plan.donors(np.arange(plan.stages[-1])) for plan in plans])
    donors = copies[:, ::6]  # and 6 features of each
    np.testing.assert_array_equal(copies, donors.repeat(6, axis=1))
    assert donors.shape == (9, 4)
    assert all(len({row, *met}) == 5 for row, met in enumerate(donors.tolist()))
    assert set(np.bincount(donors.ravel())) == {4}


def test_permutation_needs_two_samples() -> None:
    for at in (None, "h"):
        with pytest.raises(OptionError, match="at least two samples"):
            ox.explain(MLP.proto(), X[:1], "feature_permutation", at=at)
