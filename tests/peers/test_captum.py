"""Gradient methods, LRP and occlusion against captum."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import onnxplain
from onnxplain.composites import Composite, Row
from onnxplain.ops import Kind
from onnxplain.rules.base import Gradient, Rule
from onnxplain.rules.lrp import AlphaBeta, Epsilon, Gamma
from onnxplain.rules.sums import Norm, Pass
from tests.peers.nets import Peer, ResNet, StackSum, Vgg, calibrated, check, exported
from tests.reference import rng

attr = pytest.importorskip("captum.attr")
lrp_rules = pytest.importorskip("captum.attr._utils.lrp_rules")

NETS = {"vgg": Vgg, "vgg_bn": lambda: Vgg(norm=True), "resnet": lambda: ResNet(StackSum)}


Case = tuple[onnxplain.Model, nn.Module, torch.Tensor]


@pytest.fixture(scope="module", params=NETS)
def case(request: pytest.FixtureRequest) -> Case:
    net, x = calibrated(NETS[request.param], 32 if request.param == "resnet" else 16)
    return exported(net, x), net, x


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """captum warns of its hooks on every call."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


def explained_by(name: str, **options: Any) -> Peer:
    return lambda net, x, targets: getattr(attr, name)(net).attribute(x.requires_grad_(), target=targets, **options)


GRADIENTS: dict[str, tuple[Peer, dict[str, Any]]] = {
    "gradient": (explained_by("Saliency", abs=False), {}),
    "sensitivity": (explained_by("Saliency"), {"norm": "absolute"}),
    "gradient_x_input": (explained_by("InputXGradient"), {}),
    "guided_backprop": (explained_by("GuidedBackprop"), {}),
    "deconvnet": (explained_by("Deconvolution"), {}),
}


@pytest.mark.parametrize("method", GRADIENTS)
def test_gradients(case: Case, method: str) -> None:
    peer, options = GRADIENTS[method]
    check(*case, peer, method, **options)


def test_squared_sensitivity(case: Case) -> None:
    check(*case, lambda *args: explained_by("Saliency")(*args) ** 2, "sensitivity")


QUADRATURES = {
    "gauss_legendre": "gausslegendre",
    "left": "riemann_left",
    "right": "riemann_right",
    "midpoint": "riemann_middle",
    "trapezoid": "riemann_trapezoid",
}
STEPS = 12


@pytest.mark.parametrize("quadrature", QUADRATURES)
@pytest.mark.parametrize("kind", ["zero", "array"])
def test_integrated_gradients(case: Case, quadrature: str, kind: str) -> None:
    shape = (1, *case[2].shape[1:])
    baseline = 0.0 if kind == "zero" else rng(1).uniform(-0.5, 0.5, shape).astype(np.float32)
    theirs = baseline if kind == "zero" else torch.tensor(baseline)
    peer = explained_by("IntegratedGradients", baselines=theirs, n_steps=STEPS, method=QUADRATURES[quadrature])
    weight = STEPS / (STEPS - 1) if quadrature == "trapezoid" else 1  # captum's weights sum to (n - 1) / n
    options = {"steps": STEPS, "baseline": baseline, "quadrature": quadrature}
    check(*case, lambda *args: weight * peer(*args), "integrated_gradients", **options)


@pytest.mark.parametrize(
    ("window", "stride"), [((5, 5), (3, 3)), ((4, 4), (4, 4)), ((6, 3), (5, 2))], ids=["cropped", "even", "oblong"]
)
def test_occlusion(case: Case, window: tuple[int, int], stride: tuple[int, int]) -> None:
    """Windows that the border crops included; captum's span the channels when told to, ours always."""
    options = {"sliding_window_shapes": (3, *window), "strides": (3, *stride), "baselines": 0.25}
    check(*case, explained_by("Occlusion", **options), "occlusion", window=window, stride=stride, baseline=0.25)


def test_occlusion_of_everything() -> None:
    """A window larger than the input is the input."""
    net, x = calibrated(Vgg)
    peer = explained_by("Occlusion", sliding_window_shapes=(3, 16, 16))
    check(exported(net, x), net, x, peer, "occlusion", window=40)


def lrp_by(rule: Any = None) -> Peer:
    """captum's LRP with a rule for convolutions; its epsilon is 1e-9 everywhere."""

    def peer(net: nn.Module, x: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        for module in net.modules():
            if rule is not None and isinstance(module, nn.Conv2d):
                module.rule = rule()
        return attr.LRP(net).attribute(x, target=targets)

    return peer


def test_lrp_epsilon() -> None:
    net, x = calibrated(Vgg)
    check(exported(net, x), net, x, lrp_by(), "lrp", rule="epsilon", epsilon=1e-9)


# captum neither splits negative inputs off nor treats biases as zennit and we do; without both, the rules are the same.
CONV_RULES: dict[str, tuple[Any, Rule]] = {
    "gamma": (lambda: lrp_rules.GammaRule(0.5), Gamma(0.5, 1e-9)),
    "alpha1_beta0": (lrp_rules.Alpha1_Beta0_Rule, AlphaBeta(1.0, 0.0, 1e-9)),
}


@pytest.mark.parametrize("name", CONV_RULES)
def test_lrp_where_inputs_are_positive(name: str) -> None:
    theirs, ours = CONV_RULES[name]
    net, x = calibrated(lambda: Vgg(bias=False))
    rows = (
        Row(Kind.CONV, ours),
        Row(Kind.DENSE, Epsilon(1e-9)),
        Row(Kind.AVG_POOL | Kind.SUM, Norm(1e-9)),
        Row(Kind.MAX_POOL | Kind.MOVEMENT, Gradient()),
        Row(Kind.ACTIVATION, Pass()),
    )
    check(exported(net, x), net, x.abs(), lrp_by(theirs), "lrp", composite=Composite(rows))
