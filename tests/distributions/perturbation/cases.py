"""Shared parts of the tests of masked copies."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import permutations, product
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from onnxplain.distributions.masked_copies import with_copies
from onnxplain.distributions.perturbation import Permutation, Perturbation, Rise
from onnxplain.execution.masked import MaskedCopies
from onnxplain.graph.emit import Emitter
from onnxplain.methods import forward_only
from onnxplain.runtime.providers import CPU, choose
from onnxplain.runtime.session import Session
from tests.models import MLP, Array, Tiny
from tests.reference import rng

METHODS = [name for name in forward_only() if name != "occlusion"]
SAMPLED = [name for name in METHODS if name != "feature_ablation"]
X = MLP.x(2)
PAIRS = np.array([4, 4, -1, -1, 7, 7])

LINEAR = Tiny(
    "linear (float[N,4] x) => (float[N,1] y) { y = Gemm(x, w, b) }",
    {"w": rng(7).normal(size=(4, 1)).astype(np.float32), "b": np.array([0.5], np.float32)},
    {"x": (4,)},
    (1,),
)
PICTURE = Tiny(
    "picture (float[N,2,7,5] x) => (float[N,1] y) { f = Flatten(x) y = Gemm(f, w, b) }",
    {"w": rng(8).normal(size=(70, 1)).astype(np.float32), "b": np.array([0.5], np.float32)},
    {"x": (2, 7, 5)},
    (1,),
)


def network() -> torch.nn.Module:
    """MLP in torch."""
    layers = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.ReLU(), torch.nn.Linear(8, 4))
    for layer, number in ((layers[0], "1"), (layers[2], "2")):
        layer.weight.data = torch.tensor(MLP.weights[f"w{number}"].T.copy())
        layer.bias.data = torch.tensor(MLP.weights[f"b{number}"])
    return layers


def contributions(x: Array, target: int, baseline: float, labels: Array) -> Array:
    """Return the change of the score by each feature of one sample, in every order: shape (orders, features)."""
    count = labels.max() + 1
    sets = np.array(list(product([False, True], repeat=count)))
    scores = MLP.evaluate({"x": np.where(sets[:, labels], x, np.float32(baseline))})[:, target]
    value = {tuple(s): v for s, v in zip(sets.tolist(), scores, strict=True)}
    rows = []
    for order in permutations(range(count)):
        have, row = [False] * count, np.zeros(count)
        for feature in order:
            before = value[tuple(have)]
            have[feature] = True
            row[feature] = value[tuple(have)] - before
        rows.append(row)
    return np.array(rows)


# Masked copies themselves: what the graph makes, and the same by hand


def made(
    perturbation: Perturbation, here: Mapping[str, Array], fills: Mapping[str, Array], jobs: Array, axis: int = 0
) -> dict[str, Array]:
    """Return the masked copies that the graph makes for (sample, copy number) pairs; ``axis``: the batch axis."""
    emitter = Emitter()
    shapes = {n: (*x.shape[1 : axis + 1], "batch", *x.shape[axis + 1 :]) for n, x in here.items()}
    inputs = [emitter.input(n, x.dtype, shapes[n]) for n, x in here.items()]
    outputs = {f"copied_{x.name}": emitter.op("Identity", x) for x in inputs}
    axes = dict.fromkeys(here, axis)
    graph = with_copies(emitter.graph(inputs, outputs), axes, [], here, perturbation.masked)
    runner: Any = SimpleNamespace(axes=axes, names=SimpleNamespace(weights=None))
    fed = MaskedCopies(runner, here, here, fills, perturbation.plans(here)).described(jobs)
    results = Session(graph, choose([CPU])).run(fed)
    return {name: np.moveaxis(results[f"copied_{name}"], axis, 0) for name in here}


def by_hand(
    perturbation: Perturbation, here: Mapping[str, Array], fills: Mapping[str, Array], jobs: Array
) -> dict[str, Array]:
    """The same in numpy, copy by copy, in double precision where masks are smooth."""
    plans, copies = perturbation.plans(here), {}
    for place, (name, x) in enumerate(here.items()):
        rows: list[Array] = []
        for k, copy in jobs.tolist():
            if copy < 0:
                rows.append(x[k])
            elif isinstance(perturbation, Rise):
                mask = rise_mask(perturbation, x[k], place, copy)
                if x.dtype.kind == "f" and x.ndim > 2:
                    rows.append(mask * x[k].astype(np.float64) + (1 - mask) * fills[name][k])
                else:
                    rows.append(np.where(np.broadcast_to(mask, x[k].shape) > 0.5, x[k], fills[name][k]))
            else:
                plan: Any = plans[k]
                (kept,) = plan.game.keep(np.array([copy]))
                fill = x[plan.others[copy]] if isinstance(perturbation, Permutation) else fills[name][k]
                rows.append(np.where(kept[plan.partition.labels[name]], x[k], fill))
        copies[name] = np.array(rows)
    return copies


def rise_mask(rise: Rise, x: Array, place: int, number: int) -> Array:
    """A grid of cells, drawn, interpolated along one axis after the other, and cut."""
    random = np.random.default_rng([rise.seed, place, number])
    if x.ndim < 2:
        return (random.random(x.shape) < rise.keep).astype(float)
    last = x.ndim > 2 and x.shape[-1] in (1, 3, 4) and x.shape[0] not in (1, 3, 4)
    axes = range(x.ndim - 1) if last else range(1, x.ndim)
    cells = [min(rise.cells, x.shape[axis]) for axis in axes]
    mask = (random.random(cells) < rise.keep).astype(float)
    for k, (axis, count) in enumerate(zip(axes, cells, strict=True)):
        extent = -(-x.shape[axis] // count)
        size = (count + 1) * extent
        at = np.clip((np.arange(size) + 0.5) * count / size - 0.5, 0, count - 1)
        at = at if x.dtype.kind == "f" else np.ceil(at - 0.5)  # the nearest cell
        large = np.apply_along_axis(lambda row, at=at: np.interp(at, np.arange(len(row)), row), k, mask)
        start = random.integers(extent)
        mask = large.take(range(start, start + x.shape[axis]), k)
    return np.expand_dims(mask, -1 if last else 0)
