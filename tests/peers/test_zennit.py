"""LRP composites and rules against zennit, with its batch normalisations merged and its Sum in place of additions.

zennit starts from one-hot vectors times the logit here, so that both start from f(x).
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import onnxplain
from onnxplain.composites import LRP_RULES, Composite, Row, beta_smooth, everywhere
from onnxplain.ops import Kind
from onnxplain.rules.lrp import AlphaBeta, Epsilon, LinearRule, Unbiased, WSquare
from tests.peers.nets import MobileNet, Peer, ResNet, StackSum, Tokens, Vgg, calibrated, check, exported


def _zennit() -> ModuleType:
    """Import zennit. It needs the names of two classes of torchvision, which may be built for another torch."""
    resnet = ModuleType("torchvision.models.resnet")
    resnet.Bottleneck, resnet.BasicBlock = type("Bottleneck", (), {}), type("BasicBlock", (), {})
    names = ("torchvision", "torchvision.models", "torchvision.models.resnet")
    before = {name: sys.modules.get(name) for name in names}
    sys.modules.update(zip(names, (ModuleType(names[0]), ModuleType(names[1]), resnet), strict=True))
    try:
        return pytest.importorskip("zennit")
    finally:
        for name, module in before.items():
            sys.modules.pop(name)
            if module is not None:
                sys.modules[name] = module


_zennit()
from zennit import attribution, canonizers, composites, layer, rules, types  # noqa: E402


def explained_by(composite: Any) -> Peer:
    def peer(net: nn.Module, x: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        def start(output: torch.Tensor) -> torch.Tensor:
            return output * F.one_hot(targets, output.shape[1])

        return attribution.Gradient(net, composite, start)(x)[1]

    return peer


NETS = {
    "vgg": Vgg,
    "vgg_bn": lambda: Vgg(norm=True),
    "resnet": lambda: ResNet(layer.Sum),
    "mobilenet": lambda: MobileNet(layer.Sum),
    "tokens": Tokens,
}


Case = tuple[onnxplain.Model, nn.Module, torch.Tensor]


@pytest.fixture(scope="module", params=NETS)
def case(request: pytest.FixtureRequest) -> Case:
    net, x = calibrated(NETS[request.param], 32 if request.param in ("resnet", "mobilenet") else 16)
    return exported(net, x), net, x


LOW, HIGH = np.array([-1.0, -1.5, -2.0]).reshape(3, 1, 1), np.array([1.0, 1.25, 3.0]).reshape(3, 1, 1)
BOX = {"low": torch.tensor(LOW)[None], "high": torch.tensor(HIGH)[None]}
COMPOSITES: dict[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {
    "epsilon_plus": (composites.EpsilonPlus, {}, {}),
    "epsilon_plus_flat": (composites.EpsilonPlusFlat, {}, {}),
    "epsilon_alpha2_beta1": (composites.EpsilonAlpha2Beta1, {}, {}),
    "epsilon_alpha2_beta1_flat": (composites.EpsilonAlpha2Beta1Flat, {}, {}),
    "epsilon_gamma_box": (composites.EpsilonGammaBox, BOX, {"low": LOW, "high": HIGH}),
}


# iNNvestigate's presets are zennit's composites with a larger epsilon. It needs TensorFlow; its biases count otherwise.
PRESETS = {
    "preset_a": "epsilon_plus",
    "preset_a_flat": "epsilon_plus_flat",
    "preset_b": "epsilon_alpha2_beta1",
    "preset_b_flat": "epsilon_alpha2_beta1_flat",
}


def test_every_composite_of_zennit_is_here() -> None:
    ours = {*onnxplain.COMPOSITES, *onnxplain.METHODS}
    assert set(composites.COMPOSITES) <= ours


@pytest.mark.parametrize("name", PRESETS)
def test_presets(case: Case, name: str) -> None:
    composite = COMPOSITES[PRESETS[name]][0](epsilon=0.1, canonizers=[canonizers.SequentialMergeBatchNorm()])
    check(*case, explained_by(composite), "lrp", composite=name)


def test_excitation_backprop(case: Case) -> None:
    composite = composites.ExcitationBackprop(canonizers=[canonizers.SequentialMergeBatchNorm()])
    check(*case, explained_by(composite), "lrp", composite="excitation_backprop")


def test_beta_smooth(case: Case) -> None:
    composite = composites.BetaSmooth(beta_smooth=5.0)
    check(*case, explained_by(composite), "lrp", composite=beta_smooth(5.0))


UNBIASED: dict[str, tuple[Any, LinearRule]] = {
    "epsilon": (rules.Epsilon, Epsilon()),
    "alpha_beta": (rules.AlphaBeta, AlphaBeta()),
    "z_plus": (rules.ZPlus, AlphaBeta(1.0, 0.0)),
    "w_square": (rules.WSquare, WSquare()),
}


@pytest.mark.parametrize("name", UNBIASED)
def test_rules_without_biases(case: Case, name: str) -> None:
    theirs, ours = UNBIASED[name]
    layers = [*composites.layer_map_base(), (types.Linear, theirs(zero_params="bias"))]
    composite = composites.LayerMapComposite(layers, canonizers=[canonizers.SequentialMergeBatchNorm()])
    rows = [Row(Kind.CONV | Kind.DENSE, Unbiased(ours)), *everywhere("epsilon").rows]
    check(*case, explained_by(composite), "lrp", composite=Composite(rows))


@pytest.mark.parametrize("name", COMPOSITES)
@pytest.mark.parametrize("epsilon", [1e-6, 0.1])
def test_composites(case: Case, name: str, epsilon: float) -> None:
    make, theirs, ours = COMPOSITES[name]
    composite = make(epsilon=epsilon, canonizers=[canonizers.SequentialMergeBatchNorm()], **theirs)
    check(*case, explained_by(composite), "lrp", composite=name, epsilon=epsilon, **ours)


SINGLE: dict[str, tuple[Any, dict[str, Any]]] = {
    "zero": (rules.Epsilon(epsilon=0), {}),
    "epsilon": (rules.Epsilon(epsilon=0.25), {"epsilon": 0.25}),
    "gamma": (rules.Gamma(gamma=0.5), {"gamma": 0.5}),
    "alpha_beta": (rules.AlphaBeta(alpha=1.5, beta=0.5), {"alpha": 1.5, "beta": 0.5}),
    "z_plus": (rules.ZPlus(), {}),
    "z_box": (rules.ZBox(low=-10.0, high=20.0), {"low": -10.0, "high": 20.0}),
    "w_square": (rules.WSquare(), {}),
    "flat": (rules.Flat(), {}),
}


def test_every_rule_has_a_peer() -> None:
    assert set(SINGLE) == set(LRP_RULES) - {"interpolated"}  # zennit has none; see tests/rules


@pytest.mark.parametrize("name", SINGLE)
def test_one_rule_everywhere(case: Case, name: str) -> None:
    rule, options = SINGLE[name]
    layers = [*composites.layer_map_base(), (types.Linear, rule)]
    composite = composites.LayerMapComposite(layers, canonizers=[canonizers.SequentialMergeBatchNorm()])
    check(*case, explained_by(composite), "lrp", rule=name, **options)


@pytest.mark.parametrize("method", ["guided_backprop", "deconvnet"])
def test_rectifiers(case: Case, method: str) -> None:
    make = {"guided_backprop": composites.GuidedBackprop, "deconvnet": composites.DeconvNet}[method]

    def peer(net: nn.Module, x: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return attribution.Gradient(net, make(), lambda y: F.one_hot(targets, y.shape[1]).to(y))(x)[1]

    check(*case, peer, method)


def test_a_sum_that_is_not_zennits_is_another_network() -> None:
    """The comparison sees the difference between a stated rule and zennit's silent fallback at unknown modules."""
    net, x = calibrated(lambda: ResNet(StackSum), 32)
    composite = composites.EpsilonPlus(canonizers=[canonizers.SequentialMergeBatchNorm()])
    with pytest.raises(AssertionError, match="off by"):
        check(exported(net, x), net, x, explained_by(composite), "lrp", composite="epsilon_plus")
