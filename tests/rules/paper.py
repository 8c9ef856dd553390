"""DeepLIFT as in its paper, for chains of layers: float64, dense matrices, one contribution at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Function = Callable[[Array], Array]
Layer = tuple[Array, Array] | Function  # W of shape (outputs, inputs) and b, or an activation

ACTIVATIONS: dict[str, Function] = {
    "Relu": lambda z: np.maximum(z, 0),
    "Sigmoid": lambda z: 1 / (1 + np.exp(-z)),
    "Tanh": np.tanh,
    "Softplus": lambda z: np.log1p(np.exp(z)),
}


def contributions(layers: Sequence[Layer], x: Array, x0: Array, target: int, rule: str) -> Array:
    """Return each input's contribution to the change of one output of the last, linear layer (section 3, appendix)."""
    values, values0 = [x.astype(np.float64)], [x0.astype(np.float64)]
    for layer in layers:
        for v in (values, values0):
            v.append(layer[0] @ v[-1] + layer[1] if isinstance(layer, tuple) else layer(v[-1]))
    m_pos = m_neg = np.eye(len(values[-1]))[target]  # multipliers of the positive and of the negative part
    for k in reversed(range(len(layers))):
        layer, d = layers[k], values[k] - values0[k]
        if isinstance(layer, tuple):
            m_pos = m_neg = _linear(layer[0], d, m_pos, m_neg)
        elif rule == "rescale":
            m_pos = m_neg = m_pos * (values[k + 1] - values0[k + 1]) / d
        else:
            before = layers[k - 1]
            assert isinstance(before, tuple)
            parts = _parts(before[0], values[k - 1] - values0[k - 1])
            by_pos, by_neg = _reveal_cancel(layer, values0[k], *parts)
            m_pos, m_neg = m_pos * by_pos, m_neg * by_neg
    return m_pos * (x - x0)


def _parts(W: Array, d: Array) -> tuple[Array, Array]:
    """Return Dy+ and Dy-: the sums of the positive and of the negative w_i Dx_i (3.5.1)."""
    each = W * d
    return np.where(each > 0, each, 0).sum(1), np.where(each < 0, each, 0).sum(1)


def _linear(W: Array, d: Array, m_pos: Array, m_neg: Array) -> Array:
    """The Linear rule (3.5.1): 1{w Dx > 0} w m+ + 1{w Dx < 0} w m-, and half of both where Dx = 0."""
    result = np.zeros(W.shape[1])
    for j, i in np.ndindex(W.shape):
        w = W[j, i]
        if d[i] == 0:
            result[i] += 0.5 * w * (m_pos[j] + m_neg[j])
        elif w * d[i] > 0:
            result[i] += w * m_pos[j]
        elif w * d[i] < 0:
            result[i] += w * m_neg[j]
    return result


def _reveal_cancel(f: Function, z0: Array, p: Array, n: Array) -> tuple[Array, Array]:
    """The RevealCancel rule (3.5.3); parts that are zero get a step of 1e-7, as in the authors' implementation."""
    p, n = np.where(p < 5e-8, p + 1e-7, p), np.where(n > -5e-8, n - 1e-7, n)
    y_pos = 0.5 * (f(z0 + p) - f(z0)) + 0.5 * (f(z0 + n + p) - f(z0 + n))
    y_neg = 0.5 * (f(z0 + n) - f(z0)) + 0.5 * (f(z0 + p + n) - f(z0 + p))
    return y_pos / p, y_neg / n
