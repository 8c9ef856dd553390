"""`Answer`: the explanation of a batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from onnxplain.runtime.device import Tensor

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Answer:
    """The explanation of a batch of N samples.

    Attributes
    ----------
    attributions
        Name of an explained tensor -> attribution.
    target
        Resolved targets: positions in the output, int64, shape (N,), or (N, K) for weighted sums; or labels.
    score
        Explained quantity of each sample, shape (N,).
    residual
        Sum of the attributions less the sum that the method promises, float64, shape (N,); None if it promises none.
    errors
        Standard errors of the attributions, by name; empty if the method has none.
    copies
        Number of masked copies that were run of each sample, int64, shape (N,); None for methods without copies.
    kept
        The attributions that stay on the device, by name.
    """

    attributions: dict[str, Array]
    target: Array
    score: Array
    residual: Array | None
    errors: dict[str, Array] = field(default_factory=dict)
    copies: Array | None = None
    kept: dict[str, Tensor] = field(default_factory=dict)


def sum_per_sample(attributions: Mapping[str, Array], samples: int) -> Array:
    """Sum of all attributions of each sample, float64, shape (samples,)."""
    total = np.zeros(samples)
    for values in attributions.values():
        total += values.reshape(samples, -1).sum(axis=1, dtype=np.float64)
    return total
