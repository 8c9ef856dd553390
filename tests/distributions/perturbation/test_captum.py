"""Masked copies: against captum."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from captum._utils.models.linear_model import SkLearnRidge
from captum.attr import FeatureAblation, FeaturePermutation, LimeBase, ShapleyValues

import onnxplain as ox
from onnxplain.distributions.perturbation import Lime, Permutation
from tests.distributions.perturbation.cases import PAIRS, X, network
from tests.models import MLP, Array
from tests.reference import relative_error


@pytest.mark.parametrize("features", [None, PAIRS], ids=["elements", "pairs"])
def test_parity_with_captum(features: Array | None) -> None:
    x, net = torch.tensor(X), network()
    mask = None if features is None else torch.tensor(np.unique(features, return_inverse=True)[1])[None]
    asked = {"target": 2, "baselines": 0.4, "feature_mask": mask}
    options: dict[str, Any] = {"target": 2, "baseline": 0.4, "features": features}
    with torch.no_grad():
        ablated = FeatureAblation(net).attribute(x, **asked).numpy()
        shapley = np.concatenate([ShapleyValues(net).attribute(row[None], **asked).numpy() for row in x])
    assert relative_error(ox.explain(MLP.proto(), X, "feature_ablation", **options).values, ablated) < 1e-5
    assert relative_error(ox.explain(MLP.proto(), X, "kernel_shap", **options).values, shapley) < 1e-5
    assert relative_error(ox.explain(MLP.proto(), X, "shapley_sampling", samples=720, **options).values, shapley) < 1e-5


def test_parity_with_captums_permutation() -> None:
    x = MLP.x(5)
    donors = [int(plan.donors(np.array([0]))[0]) for plan in Permutation(samples=1).plans({"x": x})]

    def exchange(a: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return torch.where(mask, a[donors], a)

    with torch.no_grad():
        expected = FeaturePermutation(network(), exchange).attribute(torch.tensor(x), target=2).numpy()
    found = ox.explain(MLP.proto(), x, "feature_permutation", target=2, samples=1).values
    assert relative_error(found, expected) < 1e-5


def test_parity_with_captums_lime() -> None:
    """On the same sets, with the same kernel."""
    method = Lime(samples=100)
    game = method.game(6)
    sets = iter(torch.tensor(game.keep(np.arange(game.stages[-1])))[:, None])

    def kernel(_x: Any, _copy: Any, kept: torch.Tensor, **_: Any) -> float:
        return float(np.exp(-((1 - float(kept.float().mean()) ** 0.5) ** 2) / 0.25**2 / 2))

    lime = LimeBase(
        network(),
        SkLearnRidge(alpha=1.0),
        kernel,
        lambda _x, **_: next(sets).float(),
        True,
        lambda kept, x, **_: x * kept,
        lambda copy, x, **_: copy,
    )
    with torch.no_grad():
        expected = lime.attribute(torch.tensor(X[:1]), target=2, n_samples=100).numpy()
    found = ox.explain(MLP.proto(), X[:1], "lime", target=2, samples=100).values
    assert relative_error(found, expected) < 1e-4
