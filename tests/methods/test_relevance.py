"""LRP: where relevance starts, and its conservation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import onnxplain as ox
from tests.methods.tiny import (
    load,
    totals,
)
from tests.models import MLP, TINY


@pytest.mark.parametrize("options", [{}, {"composite": "epsilon_plus"}, {"rule": "epsilon"}], ids=str)
@pytest.mark.parametrize("name", ["mlp", "images", "residual", "two_inputs", "one_number", "signal", "volume"])
def test_relevance_is_conserved_without_biases(name: str, options: dict[str, Any]) -> None:
    result = ox.explain(TINY[name].unbiased(), TINY[name].feeds(3), "lrp", **options)
    np.testing.assert_allclose(result.residual, totals(result) - result.score, atol=1e-5)
    assert np.all(abs(result.residual) < 1e-3 * abs(result.score).max())


def test_lrp_starts_at_the_score() -> None:
    result = ox.explain(load("mlp"), MLP.x(2), "lrp", at="y")
    expected = np.zeros((2, 4))
    expected[[0, 1], result.target] = result.score
    np.testing.assert_array_equal(result.values, expected.astype(np.float32))
