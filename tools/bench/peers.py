"""The peers, each in its fastest form.

Gradients of weights are off, points are evaluated in batches, and reused activations become separate modules where a
peer needs that. A peer refuses if its result would not be what its name says.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from tools.bench.families import WINDOW
from tools.bench.nets import Array, Net

TOGETHER = 8  # points that go through at once, samples times points
# Modules that are linear or only move numbers, which every method passes as they are.
PLAIN = ("Dropout", "Identity", "Flatten", "Permute", "StochasticDepth", "Embedding", "ZeroPad2d", "Addition_Module")
Call = Callable[[], Array]


class RefusalError(Exception):
    """A method that a peer cannot run, and the reason."""


@dataclass(frozen=True)
class Case:
    """A peer's task: a module at an input, with a baseline, other arguments, and the explained classes."""

    net: Net
    module: nn.Module
    x: torch.Tensor
    baseline: torch.Tensor
    extra: tuple[torch.Tensor, ...]
    target: torch.Tensor
    points: int

    @property
    def together(self) -> int:
        """Return the number of points per evaluation."""
        return max(1, TOGETHER // len(self.x))


def autograd(case: Case) -> Call:
    """Plain torch."""

    def call() -> Array:
        leaf = case.x.detach().requires_grad_()
        output = case.module(leaf, *case.extra)
        return _array(torch.autograd.grad(output.gather(1, case.target[:, None]).sum(), leaf)[0])

    return call


def captum(case: Case, name: str) -> Call:
    """Captum's Saliency and similar classes."""
    signed = {"abs": False} if name == "Saliency" else {}
    return _attribute(_attr(name)(case.module), case, **signed)


def integrated_gradients(case: Case) -> Call:
    """Captum's integrated gradients, in batches."""
    options = {"n_steps": case.points, "internal_batch_size": max(TOGETHER, len(case.x))}
    return _attribute(_attr("IntegratedGradients")(case.module), case, baselines=case.baseline, **options)


def smoothgrad(case: Case) -> Call:
    """Captum's Saliency in its noise tunnel."""
    return _attribute(
        _attr("NoiseTunnel")(_attr("Saliency")(case.module)),
        case,
        nt_type="smoothgrad",
        nt_samples=case.points,
        nt_samples_batch_size=min(case.points, case.together),
        stdevs=0.15 * float(case.x.max() - case.x.min()),
        abs=False,
    )


def captum_lrp(case: Case) -> Call:
    """Captum's LRP with epsilon everywhere, additions as modules."""
    return _attribute(_attr("LRP")(_taken_apart(case.module, additions=True)), case)


def deeplift(case: Case) -> Call:
    """Captum's DeepLIFT (Rescale), from zero."""
    from captum.attr._core.deep_lift import SUPPORTED_NON_LINEAR

    linear = (nn.Conv2d, nn.Linear, nn.BatchNorm2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d)
    _refuse_unknown(case.module, (*SUPPORTED_NON_LINEAR, *linear))
    return _attribute(_attr("DeepLift")(_taken_apart(case.module)), case, baselines=case.baseline)


def grad_cam(case: Case) -> Call:
    """Captum's Grad-CAM, upsampled."""
    assert case.net.layer is not None
    layer = case.module.get_submodule(case.net.layer.removeprefix("<"))
    method = _attr("LayerGradCam")(case.module, layer)
    at_input = case.net.layer.startswith("<")
    found = _tensors(method, case, relu_attributions=True, attribute_to_layer_input=at_input)
    return lambda: _array(nn.functional.interpolate(found(), case.x.shape[2:], mode="bilinear"))


def occlusion(case: Case) -> Call:
    """Captum's occlusion, channels together."""
    channels = case.x.shape[1]
    return _attribute(
        _attr("Occlusion")(case.module),
        case,
        sliding_window_shapes=(channels, WINDOW, WINDOW),
        strides=(channels, WINDOW, WINDOW),
        perturbations_per_eval=case.together,
    )


def rise(case: Case) -> Call:
    """RISE as in the paper's code: masks made in advance, masked copies in batches."""
    cells = (torch.rand(case.points, 1, 8, 8, generator=torch.Generator().manual_seed(0)) < 0.5).to(case.x)
    masks = nn.functional.interpolate(cells, (256, 256), mode="bilinear")[:, :, 16:240, 16:240]

    def call() -> Array:
        total = torch.zeros_like(case.x[:, :1])
        with torch.no_grad():
            for part in masks.split(case.together):
                copies = (case.x[None] * part[:, None]).flatten(0, 1)
                scores = case.module(copies, *case.extra).gather(1, case.target.repeat(len(part))[:, None])
                total += (scores.reshape(len(part), -1, 1, 1, 1) * part[:, None]).sum(0)
        return _array(total / (0.5 * len(masks)))

    return call


def zennit(case: Case, composite: str, *bounds: tuple[str, float]) -> Call:
    """Composites of zennit; relevance starts from the score."""
    from zennit import canonizers, composites, torchvision, types

    known = (types.Linear, types.BatchNorm, types.AvgPool, types.MaxPool)
    activations = tuple(kind for kind in types.Activation.__subclass__ if kind is not nn.MultiheadAttention)
    _refuse_unknown(case.module, (*known, *activations))
    module = copy.deepcopy(case.module)
    options: dict[str, Any] = {key: torch.full_like(case.x[:1], value) for key, value in bounds}
    if case.net.canonizer:
        home = canonizers if hasattr(canonizers, case.net.canonizer) else torchvision
        options["canonizers"] = [getattr(home, case.net.canonizer)()]
    getattr(composites, composite)(**options).register(module)

    def call() -> Array:
        leaf = case.x.detach().requires_grad_()
        output = module(leaf, *case.extra)
        start = torch.zeros_like(output).scatter_(1, case.target[:, None], 1.0) * output.detach()
        return _array(torch.autograd.grad(output, leaf, start)[0])

    return call


def _attr(name: str) -> Any:
    import captum.attr

    return getattr(captum.attr, name)


def _tensors(method: Any, case: Case, **options: Any) -> Callable[[], torch.Tensor]:
    if case.extra:
        options["additional_forward_args"] = case.extra
    return lambda: method.attribute(case.x, target=case.target, **options)


def _attribute(method: Any, case: Case, **options: Any) -> Call:
    found = _tensors(method, case, **options)
    return lambda: _array(found())


def _array(tensor: torch.Tensor) -> Array:
    """Return an array, which waits for a GPU and copies from it, as our results do."""
    return np.asarray(tensor.detach().cpu().numpy())


def _refuse_unknown(module: nn.Module, known: tuple[Any, ...]) -> None:
    """Refuse modules that the peer would treat as linear: it would pass plain gradients instead."""
    leaves = [part for part in module.modules() if not any(True for _ in part.children())]
    names = {type(part).__name__ for part in leaves if not isinstance(part, known)} - {*PLAIN}
    if names:
        raise RefusalError(f"has no rule for {', '.join(sorted(names))}, and would pass plain gradients there")


def _taken_apart(module: nn.Module, additions: bool = False) -> nn.Module:
    """Return a copy in which every activation, and addition if asked for, is a module that is used once."""
    from captum.attr._utils.custom_modules import Addition_Module

    traced = fx.symbolic_trace(copy.deepcopy(module))
    seen: set[str] = set()
    for node in list(traced.graph.nodes):
        new: nn.Module | None = None
        if node.op == "call_module" and node.target in seen:
            new = copy.deepcopy(traced.get_submodule(node.target))
        elif node.op == "call_function" and node.target is nn.functional.relu:
            new, node.args, node.kwargs = nn.ReLU(), node.args[:1], {}
        elif node.op == "call_function" and node.target in (operator.add, operator.iadd) and additions:
            new = Addition_Module()
        if new is not None:
            name = f"own_{node.name}"
            traced.add_submodule(name, new)
            node.op, node.target = "call_module", name
        seen.add(str(node.target))
    traced.recompile()
    return traced.eval()
