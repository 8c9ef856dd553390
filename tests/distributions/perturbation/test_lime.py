"""LIME: against linear models and the limit of a narrow kernel."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import onnxplain as ox
from tests.distributions.perturbation.cases import LINEAR, X
from tests.models import MLP
from tests.reference import relative_error


@pytest.mark.parametrize("options", [{"alpha": 1e-6}, {"surrogate": "lasso", "alpha": 1e-6}], ids=str)
def test_lime_recovers_a_linear_model(options: dict[str, Any]) -> None:
    x = LINEAR.x(2)
    values = ox.explain(LINEAR.proto(), x, "lime", target=0, baseline=0.3, samples=200, **options).values
    np.testing.assert_allclose(values, (x - 0.3) * LINEAR.weights["w"][:, 0], rtol=1e-3, atol=1e-4)


def test_lasso_leaves_features_out() -> None:
    values = ox.explain(MLP.proto(), X, "lime", target=0, surrogate="lasso", alpha=0.05).values
    assert 0 < (values == 0).mean() < 1


def test_a_narrow_kernel_is_about_the_sample_itself() -> None:
    """Then only the sets that lack one feature count, and what is fitted is the loss without it."""
    x = MLP.x(1)
    ablation = ox.explain(MLP.proto(), x, "feature_ablation", target=3).values
    narrow, wide = (
        ox.explain(MLP.proto(), x, "lime", target=3, kernel_width=w, alpha=1e-9).values for w in (0.03, 10.0)
    )
    assert relative_error(narrow, ablation) < 1e-2 < relative_error(wide, ablation)
