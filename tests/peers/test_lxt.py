"""AttnLRP and CP-LRP on small transformers, against the explicit rules of LXT.

LXT 2.1 divides by z + epsilon also where z is negative, which makes quotients larger there and infinite at -epsilon. It
gets the papers' z + epsilon sign(z) here; `test_what_the_sign_is_for` shows the difference.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import onnxplain
from tests.models import model
from tests.peers.nets import Peer, check, exported

functional = pytest.importorskip("lxt.explicit.functional")
explicit = pytest.importorskip("lxt.explicit.rules")


@pytest.fixture(autouse=True)
def signed(monkeypatch: pytest.MonkeyPatch) -> None:
    def stabilize(z: torch.Tensor, epsilon: float = 1e-6, inplace: bool = False) -> torch.Tensor:
        return z + epsilon * torch.where(z >= 0, 1.0, -1.0).to(z)

    for module in (functional, explicit):
        monkeypatch.setattr(module, "_stabilize", stabilize)


WIDTH, HEADS, TOKENS = 16, 2, 6


@dataclass(frozen=True)
class Steps:
    """The steps of a transformer: torch's own, or LXT's."""

    linear: Callable[..., Any] = F.linear
    scores: Callable[..., Any] = torch.matmul
    mix: Callable[..., Any] = torch.matmul
    softmax: Callable[..., Any] = torch.softmax
    add: Callable[..., Any] = torch.add
    mul: Callable[..., Any] = torch.mul
    mean: Callable[..., Any] = torch.mean
    layer_norm: Callable[..., Any] = lambda x, weight, bias, eps: F.layer_norm(x, weight.shape, weight, bias, eps)
    rms_norm: Callable[..., Any] = lambda x, weight, eps: weight * (x * torch.rsqrt((x * x).mean(-1, True) + eps))
    activation: Callable[..., Any] = lambda function, x: function(x)


# Its epsilons are 1e-6 or 1e-8 of sums, doubled products, sums of tokens; here all are 1e-6 of what nodes give,.
LXT = Steps(
    functional.linear_epsilon,
    partial(functional.matmul, epsilon=2e-6),
    partial(functional.matmul, epsilon=2e-6),
    functional.softmax,
    partial(functional.add2, epsilon=1e-6),
    functional.mul2,
    partial(functional.mean, epsilon=TOKENS * 1e-6),
    functional.layer_norm,
    functional.rms_norm_identity,
    explicit.identity,
)
CP = replace(LXT, mix=lambda weights, v: explicit.epsilon_lrp(torch.matmul, 1e-6, weights.detach(), v))


class Norm(nn.Module):
    def __init__(self, root: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(WIDTH) + 0.5)
        self.bias = None if root else nn.Parameter(torch.randn(WIDTH) * 0.3)

    def forward(self, x: torch.Tensor, steps: Steps) -> torch.Tensor:
        if self.bias is None:
            return steps.rms_norm(x, self.weight, 1e-6)
        return steps.layer_norm(x, self.weight, self.bias, 1e-5)


class Transformer(nn.Module):
    """Two blocks on the rows of an image; ``after``: normalised behind each sum, as in BERT."""

    def __init__(
        self,
        function: Callable[[torch.Tensor], torch.Tensor] = F.gelu,
        *,
        root: bool = False,
        gated: bool = False,
        after: bool = False,
        causal: bool = False,
    ) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.function, self.gated, self.after = function, gated, after
        self.steps = Steps()
        self.first = nn.Linear(8, WIDTH)
        self.position = nn.Parameter(torch.randn(TOKENS, WIDTH) * 0.3)
        self.mask = torch.ones(TOKENS, TOKENS).tril().bool() if causal else None
        sizes = {"q": 1, "k": 1, "v": 1, "out": 1, "up": 2, "gate": 2}
        self.blocks = nn.ModuleList()
        for _ in range(2):
            block = {name: nn.Linear(WIDTH, WIDTH * size) for name, size in sizes.items()}
            block |= {"down": nn.Linear(2 * WIDTH, WIDTH), "norm1": Norm(root), "norm2": Norm(root)}
            self.blocks.append(nn.ModuleDict(block))
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        steps = self.steps

        def linear(layer: nn.Linear, x: torch.Tensor) -> torch.Tensor:
            return steps.linear(x, layer.weight, layer.bias)

        def heads(x: torch.Tensor) -> torch.Tensor:
            return x.reshape(x.shape[0], TOKENS, HEADS, WIDTH // HEADS).transpose(1, 2)

        def attention(block: nn.ModuleDict, x: torch.Tensor) -> torch.Tensor:
            q, k, v = (heads(linear(block[name], x)) for name in "qkv")
            scores = steps.mul(steps.scores(q, k.transpose(-1, -2)), 1 / math.sqrt(WIDTH // HEADS))
            if self.mask is not None:
                scores = scores.masked_fill(~self.mask, -math.inf)
            mixed = steps.mix(steps.softmax(scores, -1), v)
            return linear(block["out"], mixed.transpose(1, 2).reshape(x.shape))

        def mlp(block: nn.ModuleDict, x: torch.Tensor) -> torch.Tensor:
            inner = steps.activation(self.function, linear(block["up"], x))
            return linear(block["down"], steps.mul(inner, linear(block["gate"], x)) if self.gated else inner)

        x = steps.add(linear(self.first, x), self.position.expand(x.shape[0], -1, -1))
        for block in self.blocks:
            for norm, part in (("norm1", attention), ("norm2", mlp)):
                if self.after:
                    x = block[norm](steps.add(x, part(block, x)), steps)
                else:
                    x = steps.add(x, part(block, block[norm](x, steps)))
        return linear(self.head, steps.mean(x, 1, False))


def explained_by(steps: Steps) -> Peer:
    def peer(net: nn.Module, x: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        net.steps = steps
        x = x.requires_grad_()
        y = net(x)
        return torch.autograd.grad(y, x, y.detach() * F.one_hot(targets, y.shape[1]))[0]

    return peer


NETS: dict[str, Callable[[], nn.Module]] = {
    "vit": Transformer,
    "vit tanh": lambda: Transformer(lambda x: F.gelu(x, approximate="tanh")),
    "vit silu": lambda: Transformer(F.silu),
    "vit hard swish": lambda: Transformer(F.hardswish),
    "bert": lambda: Transformer(after=True),
    "llama": lambda: Transformer(F.silu, root=True, gated=True, causal=True),
}


@pytest.mark.parametrize("opset", [13, 17])
@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize(("composite", "steps"), [("attn_lrp", LXT), ("cp_lrp", CP)])
def test_transformers(name: str, composite: str, steps: Steps, opset: int) -> None:
    """Opset 13 has no LayerNormalization: the exporter writes its steps, as it does those of activations."""
    net = NETS[name]().eval()
    x = torch.randn(2, TOKENS, 8)
    check(exported(net, x, opset), net, x, explained_by(steps), "lrp", composite=composite)


def test_what_the_sign_is_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """x = 1, w = -1 and epsilon = 0.1: the formula gives 1 / 1.1 of the relevance, LXT 1 / 0.9."""
    monkeypatch.undo()
    x = torch.ones(1, 1, requires_grad=True)
    y = functional.linear_epsilon(x, -torch.ones(1, 1), None, 0.1)
    (theirs,) = torch.autograd.grad(y, x, torch.ones(1, 1))
    assert theirs.item() == pytest.approx(1 / 0.9)
    net = model("net (float[N, 1] x) => (float[N, 1] y) { y = MatMul(x, w) }", w=-np.ones((1, 1)))
    result = onnxplain.explain(net, x.detach().numpy(), "lrp", rule="epsilon", epsilon=0.1, target=0)
    assert result.values.item() == pytest.approx(-1 / 1.1)  # it starts from y = -1
