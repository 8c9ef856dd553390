"""Distributions, slices and masked copies against captum, on convolutional networks.

captum draws at random; here it is fed what we draw, so that the two agree to rounding and not just on average. The
other tests against captum: integrated gradients with each quadrature and occlusion of pictures in test_captum.py, noise
tunnels in tests/test_sampling.py, feature maps of the last layer in tests/test_cams.py.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import onnxplain as ox
from onnxplain.distributions import Lines, References
from onnxplain.distributions.perturbation import KernelShap, Lime, Permutation, ShapleySampling
from tests.peers.nets import Array, Peer, Vgg, calibrated, check, exported
from tests.reference import relative_error, rng

attr = pytest.importorskip("captum.attr")
linear_model = pytest.importorskip("captum._utils.models.linear_model")

Case = tuple[ox.Model, nn.Module, torch.Tensor]
# Six features of a picture, over all channels: cells of a grid of 2 x 3, with numbers that are not 0 to 5.
CELLS = np.add.outer(10 * (np.arange(16) // 8), np.arange(16) // 6)[None] - 3
NUMBERED = np.unique(CELLS, return_inverse=True)[1].reshape(1, 1, 16, 16)


@pytest.fixture(scope="module")
def case() -> Case:
    net, x = calibrated(Vgg)
    return exported(net, x), net, x


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """captum warns of its hooks on every call."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


# Distributions: captum draws a baseline and a place on the line at random for each copy; it is given ours.


def test_gradient_shap_at_the_same_points(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    samples, baselines = 11, rng(2).uniform(-1, 1, (4, 3, 16, 16)).astype(np.float32)
    lines = Lines(References(baselines=baselines), samples=samples, seed=5)
    monkeypatch.setattr(np.random, "choice", lambda _, count: np.resize(lines.lines, count))
    monkeypatch.setattr(np.random, "uniform", lambda _low, _high, count: np.resize(lines.positions, count))

    def peer(net: nn.Module, x: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        given = torch.tensor(baselines, dtype=x.dtype)
        return attr.GradientShap(net).attribute(x, given, n_samples=samples, target=targets)

    check(*case, peer, "expected_gradients", baselines=baselines, samples=samples, seed=5)


# Slices: layers in the middle of a convolutional network.

LAYERS = {"/features/features.3/Relu_output_0": 3, "/features/features.7/Conv_output_0": 7}
QUADRATURES = {
    "gauss_legendre": "gausslegendre",
    "left": "riemann_left",
    "right": "riemann_right",
    "midpoint": "riemann_middle",
    "trapezoid": "riemann_trapezoid",
}
STEPS = 9


def at_layer(name: str, layer: int, **options: Any) -> Peer:
    def peer(net: nn.Module, x: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return getattr(attr, name)(net, net.features[layer]).attribute(x, target=targets, **options)

    return peer


@pytest.mark.parametrize("at", LAYERS)
@pytest.mark.parametrize("quadrature", QUADRATURES)
def test_internal_influence(case: Case, at: str, quadrature: str) -> None:
    peer = at_layer("InternalInfluence", LAYERS[at], n_steps=STEPS, method=QUADRATURES[quadrature], baselines=-0.25)
    weight = STEPS / (STEPS - 1) if quadrature == "trapezoid" else 1  # captum's weights sum to (n - 1) / n
    options = {"at": at, "steps": STEPS, "quadrature": quadrature, "baseline": -0.25}
    check(*case, lambda *args: weight * peer(*args), "internal_influence", **options)


@pytest.mark.parametrize("at", LAYERS)
def test_conductance(case: Case, at: str) -> None:
    """captum takes gradients at the left end of each share of the way; its trapezoid's points cover all of it."""
    peer = at_layer("LayerConductance", LAYERS[at], n_steps=STEPS, method="riemann_trapezoid", baselines=-0.25)
    check(*case, peer, "conductance", at=at, steps=STEPS, quadrature="left", baseline=-0.25)


def test_conductance_converges_to_captums(case: Case) -> None:
    """Where we weigh the points differently, both come nearer to one and the same."""
    model, net, x = case
    at, targets = "/features/features.7/Conv_output_0", ox.explain(model, x.numpy()).target
    peer = at_layer("LayerConductance", LAYERS[at], n_steps=1500, method="riemann_trapezoid")
    exact = peer(net, x, torch.tensor(targets)).detach().numpy()
    errors = [
        relative_error(ox.explain(model, x.numpy(), "conductance", target=targets, at=at, steps=n).values, exact)
        for n in (4, 256)
    ]
    assert errors[1] < 2e-2 < errors[0]  # kinks: the error falls with the number of steps, not with its square


@pytest.mark.parametrize("at", LAYERS)
@pytest.mark.parametrize("relu", [True, False])
def test_grad_cam_at_a_layer(case: Case, at: str, relu: bool) -> None:
    peer = at_layer("LayerGradCam", LAYERS[at], relu_attributions=relu)
    check(*case, peer, "grad_cam", at=at, relu=relu, upsample="none")


# Masked copies.


def signal() -> nn.Module:
    return nn.Sequential(nn.Conv1d(2, 4, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 15, 5))


def volume() -> nn.Module:
    return nn.Sequential(nn.Conv3d(2, 3, 2), nn.ReLU(), nn.MaxPool3d((1, 2, 2)), nn.Flatten(), nn.Linear(108, 5))


SHAPES = {"signal": (signal, (2, 31)), "volume": (volume, (2, 5, 7, 8))}
# Cropped at the border; windows that do not overlap; oblong ones, and strides that differ by axis.
WINDOWS = {
    "signal": [((4,), (3,)), ((5,), (5,)), ((1,), (1,))],
    "volume": [((2, 3, 3), (2, 2, 2)), ((2, 2, 4), (2, 2, 4)), ((5, 1, 3), (5, 1, 2))],
}


@pytest.mark.parametrize(("kind", "window", "stride"), [(k, w, s) for k, pairs in WINDOWS.items() for w, s in pairs])
def test_occlusion_of_signals_and_volumes(kind: str, window: tuple[int, ...], stride: tuple[int, ...]) -> None:
    make, shape = SHAPES[kind]
    torch.manual_seed(0)
    net, x = make().eval(), torch.randn(2, *shape)
    baseline = rng(3).normal(size=shape).astype(np.float32)

    def peer(net: nn.Module, x: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        given = {"baselines": torch.tensor(baseline, dtype=x.dtype)[None], "target": targets}
        return attr.Occlusion(net).attribute(x, (2, *window), (2, *stride), **given)

    check(exported(net, x), net, x, peer, "occlusion", window=window, stride=stride, baseline=baseline)


def masked(name: str, **options: Any) -> Peer:
    def peer(net: nn.Module, x: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        mask = torch.tensor(NUMBERED)
        with torch.no_grad():
            return getattr(attr, name)(net).attribute(x, target=targets, feature_mask=mask, **options)

    return peer


def test_feature_ablation(case: Case) -> None:
    check(*case, masked("FeatureAblation", baselines=0.4), "feature_ablation", features=CELLS, baseline=0.4)
    channels = np.arange(3).reshape(3, 1, 1)

    def peer(net: nn.Module, x: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return attr.FeatureAblation(net).attribute(x, target=targets, feature_mask=torch.tensor(channels)[None])

    check(*case, peer, "feature_ablation", features=channels)


def test_feature_permutation(case: Case) -> None:
    plans = Permutation(CELLS, samples=1).plans({"x": case[2].numpy()})
    donors = [int(plan.donors(np.array([0]))[0]) for plan in plans]

    def exchange(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return torch.where(mask, x[donors], x)

    def peer(net: nn.Module, x: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        permutation = attr.FeaturePermutation(net, exchange)
        return permutation.attribute(x, target=targets, feature_mask=torch.tensor(NUMBERED))

    check(*case, peer, "feature_permutation", features=CELLS, samples=1)


def coalitions(sets: Array) -> Any:
    """captum's generator of sets of features, which gives these and starts again for the next sample."""

    def generate(_: torch.Tensor, **__: Any) -> Iterator[torch.Tensor]:
        yield from (torch.tensor(row[None].astype(np.int64)) for row in sets)

    return generate


def by_sample(explainer: Any, x: torch.Tensor, targets: torch.Tensor, **options: Any) -> torch.Tensor:
    """captum fits one surrogate model per call."""
    given = {"feature_mask": torch.tensor(NUMBERED), **options}
    with torch.no_grad():
        return torch.cat([explainer.attribute(x[[k]], target=int(t), **given) for k, t in enumerate(targets)])


def test_kernel_shap_on_the_same_sets(case: Case) -> None:
    """captum holds the values to their sum by a weight of a million, and we by construction."""
    game = KernelShap(CELLS, samples=40, seed=2).game(6)
    drawn = game.keep(np.arange(game.stages[-1]))
    assert len(drawn) < 2**6

    def peer(net: nn.Module, x: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        shap = attr.KernelShap(net)
        shap.perturb_func = coalitions(np.concatenate([np.ones((1, 6)), drawn]))
        return by_sample(shap, x, targets, n_samples=len(drawn) + 1, baselines=0.2)

    check(*case, peer, "kernel_shap", features=CELLS, samples=40, seed=2, baseline=0.2)


@pytest.mark.parametrize(("surrogate", "alpha"), [("ridge", 0.02), ("lasso", 1e-4)])
def test_lime_on_the_same_sets(case: Case, surrogate: str, alpha: float) -> None:
    method = Lime(CELLS, samples=50, seed=3, kernel_width=0.4)
    drawn = method.game(6).keep(np.arange(50))

    def nearness(_x: Any, _copy: Any, kept: torch.Tensor, **_: Any) -> torch.Tensor:
        everything = torch.ones_like(kept, dtype=torch.float64)
        cosine = nn.functional.cosine_similarity(kept.double(), everything)
        return torch.exp(-((1 - cosine) ** 2) / 0.4**2 / 2)

    def peer(net: nn.Module, x: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        model = {"ridge": linear_model.SkLearnRidge, "lasso": linear_model.SkLearnLasso}[surrogate](alpha=alpha)
        lime = attr.Lime(net, model, nearness, coalitions(drawn))
        return by_sample(lime, x, targets, n_samples=50, baselines=0.2)

    options = {"features": CELLS, "samples": 50, "seed": 3, "kernel_width": 0.4, "alpha": alpha, "baseline": 0.2}
    check(*case, peer, "lime", surrogate=surrogate, **options)


def test_shapley_sampling_in_the_same_orders(case: Case) -> None:
    method = ShapleySampling(CELLS, samples=12, seed=4)
    orders = _orders(method, 6)
    assert len(np.unique(orders, axis=0)) > 6

    def peer(net: nn.Module, x: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        sampling = attr.ShapleyValueSampling(net)
        sampling.permutation_generator = lambda _features, _samples: orders.tolist()
        given = {"feature_mask": torch.tensor(NUMBERED), "n_samples": 12, "baselines": 0.2}
        with torch.no_grad():
            return sampling.attribute(x, target=targets, **given)

    check(*case, peer, "shapley_sampling", features=CELLS, samples=12, seed=4, baseline=0.2)
    other = replace(method, seed=5)
    assert not np.array_equal(_orders(other, 6), orders)


def _orders(method: ShapleySampling, features: int) -> Array:
    """The orders that were drawn, from the sets that grow along them."""
    game = method.game(features)
    sets = game.keep(np.arange(1, game.stages[-1])).reshape(-1, features - 1, features)
    empty, full = np.zeros((len(sets), 1, features)), np.ones((len(sets), 1, features))
    return np.asarray(np.diff(np.concatenate([empty, sets, full], axis=1), axis=1).argmax(axis=2))
