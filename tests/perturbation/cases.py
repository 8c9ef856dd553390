"""What the tests of masked copies share."""

from __future__ import annotations

from itertools import permutations, product

import numpy as np
import torch

from onnxplain.methods import forward_only
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
    """What each feature of one sample adds, in every order: shape (orders, features)."""
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
