"""LRP of one linear layer in float64 with the layer's dense Jacobian: every rule as its formula, weight by weight.

Nothing here uses the package but the type of a case: torch computes the layers, and the rules work on the matrix of
contributions c_ji = w_ji x_i.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from tests.reference import Case

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Dense:
    """``z = W x + b`` of a flattened batch; ``connected``: which outputs depend on which inputs, for any weights."""

    W: Array
    x: Array
    b: Array
    connected: Array
    shape: tuple[int, ...]  # of the output

    @property
    def contributions(self) -> Array:
        return self.W * self.x

    @property
    def z(self) -> Array:
        return self.W @ self.x + self.b


def dense(case: Case) -> Dense:
    """Return the layer of a case as a matrix; ``connected`` comes from the same layer with all weights set to 1."""
    at = data_index(case)
    arrays = [None if a is None else torch.tensor(np.asarray(a, np.float32), dtype=torch.float64) for a in case.inputs]
    x = arrays[at]

    def layer(factors: list[torch.Tensor | None]) -> tuple[Array, torch.Tensor]:
        def of(point: torch.Tensor) -> torch.Tensor:
            return evaluate(case, [point if i == at else a for i, a in enumerate(factors)])

        jacobian = torch.autograd.functional.jacobian(of, x)
        return jacobian.reshape(-1, x.numel()).numpy(), of(torch.zeros_like(x))

    W, b = layer(arrays)
    ones, _ = layer([a if a is None else torch.ones_like(a) for a in arrays])
    return Dense(W, x.flatten().numpy(), b.flatten().numpy(), ones != 0, tuple(b.shape))


def data_index(case: Case) -> int:
    """Return the position of the only input that is not constant."""
    (index,) = (i for i, a in enumerate(case.inputs) if a is not None and i not in case.constant)
    return index


def evaluate(case: Case, inputs: list[torch.Tensor | None]) -> torch.Tensor:
    """Evaluate a linear operator with torch."""
    x, w, *rest = inputs
    bias = rest[0] if rest else None
    if case.op == "MatMul":
        return x @ w
    if case.op == "Einsum":
        return torch.einsum(case.attrs["equation"], x, w)
    if case.op == "Gemm":
        a, b = (t.T if case.attrs.get(key) else t for t, key in ((x, "transA"), (w, "transB")))
        y = case.attrs.get("alpha", 1.0) * (a @ b)
        return y if bias is None else y + case.attrs.get("beta", 1.0) * bias
    rank = x.ndim - 2
    pads = case.attrs.get("pads", [0] * 2 * rank)
    steps = {
        "stride": case.attrs.get("strides", [1] * rank),
        "dilation": case.attrs.get("dilations", [1] * rank),
        "groups": case.attrs.get("group", 1),
    }
    ends = [n for axis in reversed(range(rank)) for n in (pads[axis], pads[axis + rank])]  # torch: last axis first
    if case.op == "Conv":
        return getattr(F, f"conv{rank}d")(F.pad(x, ends), w, bias, **steps)
    added = case.attrs.get("output_padding", [0] * rank)
    y = getattr(F, f"conv_transpose{rank}d")(x, w, bias, output_padding=added, **steps)
    return F.pad(y, [-n for n in ends])


def stabilized(z: Array, epsilon: float | Array) -> Array:
    """z + epsilon sign(z), sign(0) = +1; with epsilon 0, x / 0 is x / 1 (x is 0)."""
    z = z + epsilon * np.where(z >= 0, 1.0, -1.0)
    return np.where(z == 0, 1.0, z)


def spread(contributions: Array, denominators: Array, r: Array, epsilon: float = 1e-6) -> Array:
    """R_i = sum_j c_ji R_j / S(z_j)."""
    return (contributions * (r / stabilized(denominators, epsilon))[:, None]).sum(0)


def epsilon(layer: Dense, r: Array, epsilon: float = 1e-6) -> Array:
    return spread(layer.contributions, layer.z, r, epsilon)


def alpha_beta(layer: Dense, r: Array, alpha: float = 2.0, beta: float = 1.0) -> Array:
    c, b = layer.contributions, layer.b
    rising, falling = np.maximum(c, 0), np.minimum(c, 0)
    activating = spread(rising, rising.sum(1) + np.maximum(b, 0), r)
    return alpha * activating - beta * spread(falling, falling.sum(1) + np.minimum(b, 0), r)


def gamma(layer: Dense, r: Array, gamma: float = 0.25) -> Array:
    c, b, z = layer.contributions, layer.b, layer.z

    def boosted(part: Callable[[Array, float], Array], chosen: Array) -> Array:
        raised = c + gamma * part(c, 0.0)
        return spread(raised, raised.sum(1) + b + gamma * part(b, 0.0), r * chosen)

    return boosted(np.maximum, z > 0) + boosted(np.minimum, z < 0)


def interpolated(layer: Dense, r: Array, gamma: float = 0.25) -> Array:
    def part(t: Array) -> Array:
        return np.maximum(t, 0) + gamma * np.minimum(t, 0)

    c = part(layer.contributions)
    return spread(c, c.sum(1) + part(layer.b), r)


def relative_epsilon(layer: Dense, r: Array, epsilon: float = 0.25) -> Array:
    """Epsilon in units of the root mean square of z: over all but the first axis, that of the samples."""
    z = layer.z.reshape(layer.shape)
    scale = np.sqrt((z**2).mean(tuple(range(1, z.ndim)), keepdims=True))
    return spread(layer.contributions, stabilized(z, epsilon * scale).flatten(), r, 0.0)


def unbiased(layer: Dense) -> Dense:
    return replace(layer, b=layer.b * 0)


def z_box(layer: Dense, r: Array, low: Array | float, high: Array | float) -> Array:
    W = layer.W
    c = W * layer.x - np.maximum(W, 0) * low - np.minimum(W, 0) * high
    return spread(c, c.sum(1), r)


def w_square(layer: Dense, r: Array) -> Array:
    squares = layer.W**2
    return spread(squares, squares.sum(1) + layer.b**2, r)


def flat(layer: Dense, r: Array) -> Array:
    ones = layer.connected.astype(float)
    return spread(ones, ones.sum(1), r)
