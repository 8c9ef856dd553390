"""Small convolutional networks in torch, their export to ONNX, and how far two explanations of them may differ."""

from __future__ import annotations

import copy
import io
import logging
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

import onnxplain
from tests.reference import relative_error

Array = np.ndarray[Any, Any]
Peer = Callable[[nn.Module, torch.Tensor, torch.Tensor], torch.Tensor]  # (net, x, targets) -> attribution


class Vgg(nn.Module):
    """Convolution, (batch normalisation,) ReLU, twice; max pooling; all that twice; then two dense layers."""

    def __init__(self, norm: bool = False, bias: bool = True, size: int = 16) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inner, outer, pool in ((3, 8, False), (8, 8, True), (8, 12, False), (12, 12, True)):
            layers.append(nn.Conv2d(inner, outer, 3, padding=1, bias=bias))
            layers += [nn.BatchNorm2d(outer)] * norm + [nn.ReLU()] + [nn.MaxPool2d(2)] * pool
        self.features = nn.Sequential(*layers)
        hidden = nn.Linear(12 * (size // 4) ** 2, 16, bias=bias)
        self.classifier = nn.Sequential(hidden, nn.ReLU(), nn.Linear(16, 5, bias=bias))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(x).flatten(1))


class Tokens(nn.Module):
    """Dense layers on every row of an image, in ONNX a matrix product and an addition each; then one on all rows."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.Sequential(nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU())
        self.head = nn.Linear(3 * 16 * 8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.rows(x).flatten(1))


class Add(nn.Module):
    """A sum of two, which ``joined`` calculates from their stack: peers hook modules, ONNX has an operator."""

    def __init__(self, joined: nn.Module) -> None:
        super().__init__()
        self.joined = joined

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return a + b if torch.onnx.is_in_onnx_export() else self.joined(torch.stack((a, b), -1))


class BasicBlock(nn.Module):
    def __init__(self, inner: int, outer: int, stride: int, joined: nn.Module) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inner, outer, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outer)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(outer, outer, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outer)
        changed = stride > 1 or inner != outer
        narrow = nn.Conv2d(inner, outer, 1, stride, bias=False)
        self.downsample = nn.Sequential(narrow, nn.BatchNorm2d(outer)) if changed else nn.Sequential()
        self.add = Add(joined)
        self.relu2 = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inside = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        return self.relu2(self.add(inside, self.downsample(x)))


class ResNet(nn.Module):
    """A stem with max pooling, three basic blocks, global average pooling, a dense layer."""

    def __init__(self, joined: Callable[[], nn.Module]) -> None:
        super().__init__()
        stem = [nn.Conv2d(3, 8, 5, 2, padding=2, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
        self.stem = nn.Sequential(*stem)
        blocks = ((8, 8, 1), (8, 12, 2), (12, 12, 1))
        self.blocks = nn.Sequential(*(BasicBlock(*sizes, joined()) for sizes in blocks))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(12, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.pool(self.blocks(self.stem(x))).flatten(1))


class MobileNet(nn.Module):
    """Inverted residuals: pointwise, depthwise and linear convolutions, ReLU6; upsampled again by a transposed one."""

    def __init__(self, joined: Callable[[], nn.Module]) -> None:
        super().__init__()

        def conv(inner: int, outer: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
            padding = kernel // 2
            return [
                nn.Conv2d(inner, outer, kernel, stride, padding, groups=groups, bias=False),
                nn.BatchNorm2d(outer),
            ]

        def block(inner: int, outer: int, stride: int) -> nn.Sequential:
            deep = conv(2 * inner, 2 * inner, 3, stride, 2 * inner)
            return nn.Sequential(*conv(inner, 2 * inner, 1), nn.ReLU6(), *deep, nn.ReLU6(), *conv(2 * inner, outer, 1))

        self.stem = nn.Sequential(*conv(3, 8, 3, 2), nn.ReLU6())
        self.wide, self.same = block(8, 12, 2), block(12, 12, 1)
        self.add = Add(joined())
        self.up = nn.Sequential(nn.ConvTranspose2d(12, 8, 2, 2), nn.ReLU())
        self.fc = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.wide(self.stem(x))
        return self.fc(self.up(self.add(self.same(x), x)))


class StackSum(nn.Module):
    """A sum as a module, like zennit's Sum."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.sum(-1)


def calibrated(make: Callable[[], nn.Module], size: int = 16) -> tuple[nn.Module, torch.Tensor]:
    """A network with random weights whose batch normalisations have seen data, and three samples for it."""
    torch.manual_seed(0)
    net = make()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the plain mean of what it sees
            module.eps = 1e-12  # which zennit 0.5 leaves in the normalisations that it has merged
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
    with torch.no_grad():
        net.train()(torch.randn(32, 3, size, size))
    return net.eval(), torch.rand(3, 3, size, size) * 2 - 1


def exported(net: nn.Module, x: torch.Tensor, opset: int = 17) -> onnxplain.Model:
    """The network as an ONNX model with a free batch axis."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracing exporter is deprecated, but needs no more packages
        axes = {"x": {0: "batch"}, "y": {0: "batch"}}
        names = {"input_names": ["x"], "output_names": ["y"], "dynamic_axes": axes}
        torch.onnx.export(net, (x,), file, dynamo=False, opset_version=opset, **names)
    return onnxplain.load(file.getvalue())


def check(
    model: onnxplain.Model, net: nn.Module, x: torch.Tensor, peer: Peer, method: str, roundings: int = 0, **options: Any
) -> None:
    """Assert that ours is as near to the peer in float64 as three times the peer's own float32, or as a thousandth.

    ``roundings``: how many float32 networks with other last digits count as the peer's own, besides the network itself.
    Deep networks need them: whether the last digit of a weight moves a unit over a kink is chance.
    """
    result = onnxplain.explain(model, x.numpy(), method, **options)
    targets = torch.tensor(result.target)
    exact = peer(copy.deepcopy(net).double(), x.double(), targets).detach().numpy()
    nets = [copy.deepcopy(net), *(_rounded(net, seed) for seed in range(roundings))]
    own = max(relative_error(peer(n, x.clone(), targets).detach().numpy(), exact) for n in nets)
    assert np.linalg.norm(exact) > 0
    error = relative_error(result.values, exact)
    assert error <= max(3 * own, 1e-3), f"{method} {options}: off by {error:.1e}, the peer's float32 by {own:.1e}"


def _rounded(net: nn.Module, seed: int) -> nn.Module:
    """The network with float32 weights that are off by half a unit in the last place or so."""
    torch.manual_seed(seed)
    net = copy.deepcopy(net)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter *= 1 + 6e-8 * torch.randn_like(parameter, dtype=torch.float64)
    return net
