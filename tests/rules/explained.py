"""Explanations by DeepLIFT of a network written as text, for the tests of its rules."""

from __future__ import annotations

from typing import Any

import numpy as np

import onnxplain as ox
from tests.models import model, weights
from tests.rules.paper import Array

TOLERANCE = 1e-4  # float32 rounding through a few layers


DENSE = """net (float[N, 6] x) => (float[N, 4] y) {
    z1 = Gemm<transB=1>(x, w1, b1)
    h1 = F(z1)
    p2 = MatMul(h1, v2)
    z2 = Add(p2, b2)
    h2 = F(z2)
    z3 = Gemm<transB=1, alpha=-2.0>(h2, v3, b3)
    h3 = F(z3)
    y = Gemm<transB=1>(h3, w4, b4)
}"""


def dense(seed: int = 0) -> tuple[dict[str, Array], list[tuple[Array, Array]]]:
    arrays = weights(seed, w1=(8, 6), b1=(8,), w2=(7, 8), b2=(7,), w3=(5, 7), b3=(5,), w4=(4, 5), b4=(4,))
    pairs = [(arrays[f"w{i}"].astype(np.float64), arrays[f"b{i}"].astype(np.float64)) for i in (1, 2, 3, 4)]
    arrays |= {"v2": arrays.pop("w2").T.copy(), "v3": arrays.pop("w3") * -0.5}
    return arrays, pairs


def explained(text: str, arrays: dict[str, Array], x: Array, **options: Any) -> ox.Attribution:
    return ox.explain(model(text, **arrays), x, "deeplift", **options)
