"""DeepLIFT's Rescale rule against captum, where captum 0.9.0 follows it.

Where it does not, its contributions do not add up to the change of the score, and ours do:

- max pooling right behind an activation: both have a hook on the tensor between, and the activation's gets the plain
  gradient. `Apart` stands between them in the comparisons;
- windows of max pooling that overlap: `max_unpool` keeps one of several values;
- softmax: normalised over the whole batch and the reference together;
- modules it has no rule for (GELU, LayerNorm): the gradient at the input, without a word.

At a reference of zeros all elements of a feature map are equal but for rounding, so that rounding chooses which one was
the largest in a window; networks with max pooling are compared at other references.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from itertools import product

import numpy as np
import pytest
import torch
from torch import nn

import onnxplain as ox
from tests.peers.nets import Peer, ResNet, StackSum, Vgg, calibrated, check, exported
from tests.reference import relative_error

attr = pytest.importorskip("captum.attr")


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """captum warns of its hooks on every call."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


class Functions(nn.Module):
    """Functions of every kind that captum has a rule for, one module each."""

    def __init__(self) -> None:
        super().__init__()
        functions = (nn.ELU(), nn.LeakyReLU(0.1), nn.Sigmoid(), nn.Tanh(), nn.Softplus(), nn.ReLU())
        sizes = (12, 11, 10, 9, 8, 7)
        layers: list[nn.Module] = []
        for f, inner, outer in zip(functions, (3 * 16 * 16, *sizes), sizes, strict=False):
            layers += [nn.Linear(inner, outer), f]
        self.net = nn.Sequential(nn.Flatten(), *layers, nn.Linear(7, 5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)


class Apart(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 1.0


def vgg(norm: bool = False) -> nn.Module:
    """`Vgg`, with something between activations and pooling."""
    net = Vgg(norm)
    net.features = nn.Sequential(
        *(nn.Sequential(Apart(), f) if isinstance(f, nn.MaxPool2d) else f for f in net.features)
    )
    return net


def resnet() -> nn.Module:
    """`ResNet` whose pooling has windows that do not overlap."""
    net = ResNet(StackSum)
    net.stem[3] = nn.Sequential(Apart(), nn.MaxPool2d(2))
    return net


NETS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "vgg": (vgg, 16),
    "vgg_bn": (lambda: vgg(norm=True), 16),
    "resnet": (resnet, 32),
    "functions": (Functions, 16),
}


def by_captum(baseline: torch.Tensor | float) -> Peer:
    def peer(net: nn.Module, x: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        there = baseline.to(x.dtype) if isinstance(baseline, torch.Tensor) else baseline
        return attr.DeepLift(net).attribute(x, there, target=targets)

    return peer


@pytest.mark.parametrize(("name", "kind"), [*product(NETS, ["array", "each"]), ("functions", "zero")])
def test_rescale(name: str, kind: str) -> None:
    make, size = NETS[name]
    net, x = calibrated(make, size)
    torch.manual_seed(1)
    other = torch.rand(3 if kind == "each" else 1, 3, size, size) - 0.5
    theirs = 0.0 if kind == "zero" else other if kind == "each" else other.expand(3, -1, -1, -1)
    ours = 0.0 if kind == "zero" else other.numpy()
    check(exported(net, x), net, x, by_captum(theirs), "deeplift", roundings=2, rule="rescale", baseline=ours)


def test_several_baselines() -> None:
    """captum's DeepLiftShap: the mean over a set."""
    net, x = calibrated(vgg)
    torch.manual_seed(1)
    others = torch.rand(4, 3, 16, 16) - 0.5

    def peer(net: nn.Module, x: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return attr.DeepLiftShap(net).attribute(x, others.to(x.dtype), target=targets)

    check(exported(net, x), net, x, peer, "deeplift", baselines=others.numpy())


class Pooled(nn.Module):
    def __init__(self, between: nn.Module, pool: nn.Module, width: int) -> None:
        super().__init__()
        layers = nn.Conv2d(3, 6, 3), nn.ReLU(), between, pool, nn.Flatten(), nn.Linear(width, 5)
        self.net = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)


def dense(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(768, 6), *layers, nn.Linear(6, 5))


LOSSES: dict[str, Callable[[], nn.Module]] = {
    "pooling right behind": lambda: Pooled(nn.Identity(), nn.MaxPool2d(2), 294),
    "overlapping windows": lambda: Pooled(Apart(), nn.MaxPool2d(3, 2), 216),
    "softmax": lambda: dense(nn.Softmax(1)),
    "normalisation": lambda: dense(nn.LayerNorm(6)),
    "gelu": lambda: dense(nn.GELU()),
}


@pytest.mark.parametrize("name", LOSSES)
def test_where_captum_loses_something(name: str) -> None:
    net, x = calibrated(LOSSES[name])
    torch.manual_seed(1)
    x0 = torch.rand(3, 3, 16, 16) - 0.5
    result = ox.explain(exported(net, x), x.numpy(), "deeplift", baseline=x0.numpy())
    targets = torch.tensor(result.target)
    theirs = attr.DeepLift(net).attribute(x.clone(), x0, target=targets).detach().numpy()
    with torch.no_grad():
        change = (net(x) - net(x0))[torch.arange(3), targets].double().numpy()
    missing = [abs(a.reshape(3, -1).sum(1, dtype=np.float64) - change) / abs(change) for a in (theirs, result.values)]
    assert missing[0].max() > 0.01
    assert missing[1].max() < 1e-3
    assert relative_error(theirs, result.values) > 0.01
