"""Shapley values: what a feature adds to the score, mean over all orders in which features may come."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import permutations
from math import comb, factorial
from typing import Any

import numpy as np

from onnxplain.distributions import Baseline
from onnxplain.perturbation.coalitions import Coalitional, Game, check_options
from onnxplain.perturbation.features import Features

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False)
class ShapleySampling(Coalitional):
    """Mean over random orders (Castro et al. 2009); over all of them, if there are no more than ``samples``."""

    features: Features = None
    samples: int = 25
    baseline: Baseline = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        check_options(self.features, self.baseline, self.samples, self.seed)

    def game(self, features: int) -> Game:
        """No feature at all, and then, order by order, the first one, the first two ..."""
        if features < 20 and factorial(features) <= self.samples:
            orders = np.array(list(permutations(range(features))))
        else:
            rng = np.random.default_rng(self.seed)
            orders = np.stack([rng.permutation(features) for _ in range(self.samples)])
        places = orders.argsort(axis=1)

        def keep(index: int) -> Array:
            order, step = divmod(index - 1, max(1, features - 1))
            return np.asarray(places[order] <= step) if index else np.zeros(features, bool)

        return Game(1 + len(orders) * (features - 1), keep, partial(_steps, orders))


def _steps(orders: Array, score: float, scores: Array) -> Array:
    inner = scores[1:].reshape(len(orders), -1)
    way = np.column_stack([np.full(len(orders), scores[0]), inner, np.full(len(orders), score)])
    values = np.empty(orders.shape)
    np.put_along_axis(values, orders, np.diff(way, axis=1), axis=1)
    return np.asarray(values.mean(axis=0))


@dataclass(frozen=True, eq=False)
class KernelShap(Coalitional):
    """Weighted least squares over sets of features (Lundberg and Lee 2017), the sum held to the change of score.

    All sets, if there are no more than ``samples``: then the result is exact. Else sets drawn by the Shapley kernel,
    each with its complement.
    """

    features: Features = None
    samples: int = 1000
    baseline: Baseline = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        check_options(self.features, self.baseline, self.samples, self.seed)

    def game(self, features: int) -> Game:
        """No feature at all, and then the sets."""
        if features < 60 and 2**features <= self.samples:
            numbers = np.arange(2**features - 1)
            sets = (numbers[:, None] >> np.arange(features)) % 2 == 1
            sizes = sets[1:].sum(axis=1)
            weights = np.array([1 / (comb(features, s) * s * (features - s)) for s in sizes.tolist()])
        else:
            rng = np.random.default_rng(self.seed)
            kernel = 1 / (np.arange(1, features) * np.arange(features - 1, 0, -1))
            sizes = rng.choice(np.arange(1, features), -(-self.samples // 2), p=kernel / kernel.sum())
            drawn = rng.permuted(np.arange(features) < sizes[:, None], axis=1)
            sets = np.concatenate([np.zeros((1, features), bool), drawn, ~drawn])
            weights = np.ones(len(sets) - 1)
        return Game(len(sets), sets.__getitem__, partial(_regression, sets[1:], np.sqrt(weights)))


def _regression(sets: Array, roots: Array, score: float, scores: Array) -> Array:
    """Values that sum to the change: an equal share each, and a least-squares fit of the rest that sums to 0.

    The columns are centred, so the shortest solution, which lstsq gives, sums to 0 by itself.
    """
    change = score - scores[0]
    features = sets.shape[1]
    share = sets.mean(axis=1)
    centred = roots[:, None] * (sets - share[:, None])
    rest = np.linalg.lstsq(centred, roots * (scores[1:] - scores[0] - change * share))[0]
    return np.asarray(change / features + rest)
