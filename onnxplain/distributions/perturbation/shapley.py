"""Shapley values: the change of score when a feature is added, mean over all orders of the features."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import permutations
from math import comb, factorial
from typing import Any

import numpy as np

from onnxplain.arguments import Count, Positive, Seed, check_fields
from onnxplain.distributions.baselines import Baseline
from onnxplain.distributions.perturbation.coalitions import Coalitional, Game, doubling
from onnxplain.distributions.perturbation.features import Features
from onnxplain.distributions.perturbation.standard_errors import mean_error, regression_errors

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False)
class ShapleySampling(Coalitional):
    """Mean over random orders (Castro et al. 2009), or over all orders if there are no more than ``samples``.

    Standard errors are those of a mean over orders; 0 if all orders are run.

    Attributes
    ----------
    features
        See `Features`; by default a grid.
    samples
        Number of orders. Each takes as many forward passes as there are features, less one.
    baseline, tolerance
        See `Perturbation`.
    seed
        Seed of the NumPy generator.
    """

    features: Features = None
    samples: Count = 25
    baseline: Baseline = 0.0
    seed: Seed = 0
    tolerance: Positive | None = None

    def __post_init__(self) -> None:
        check_fields(self)

    def game(self, features: int) -> Game:
        """The empty set, and then, order by order, the sets of its first feature, its first two features, ..."""
        every = features < 20 and factorial(features) <= self.samples
        if every:
            orders = np.array(list(permutations(range(features))))
        else:
            rng = np.random.default_rng(self.seed)
            orders = np.stack([rng.permutation(features) for _ in range(self.samples)])
        places = orders.argsort(axis=1)

        def keep(copies: Array) -> Array:
            order, step = np.divmod(copies - 1, max(1, features - 1))
            return np.asarray((places[order] <= step[:, None]) & (copies > 0)[:, None])

        counts = doubling(len(orders), None if every else self.tolerance)
        return Game([1 + n * (features - 1) for n in counts], keep, partial(_steps, orders, every))


def _steps(orders: Array, every: bool, score: float, scores: Array) -> tuple[Array, Array]:
    """Mean change of score at the step of each order that adds a feature, and its standard error."""
    features = orders.shape[1]
    inner = scores[1:].reshape(-1, features - 1) if features > 1 else np.empty((1, 0))
    orders = orders[: len(inner)]
    rising = np.column_stack([np.full(len(orders), scores[0]), inner, np.full(len(orders), score)])
    values = np.empty(orders.shape)
    np.put_along_axis(values, orders, np.diff(rising, axis=1), axis=1)
    return values.mean(axis=0), np.zeros(features) if every else mean_error(values)


@dataclass(frozen=True, eq=False)
class KernelShap(Coalitional):
    """Weighted least squares over sets of features (Lundberg and Lee 2017); values sum to the change of score.

    If there are no more than ``samples`` sets, all of them are run, and the result is exact. Otherwise sets are drawn
    by the Shapley kernel, each with its complement, and the standard errors are those of a fit to random pairs (see
    `regression_errors`); they are NaN while the sets do not determine all values.

    Attributes
    ----------
    features
        See `Features`; by default a grid.
    samples
        Number of sets.
    baseline, tolerance
        See `Perturbation`.
    seed
        Seed of the NumPy generator.
    """

    features: Features = None
    samples: Count = 1000
    baseline: Baseline = 0.0
    seed: Seed = 0
    tolerance: Positive | None = None

    def __post_init__(self) -> None:
        check_fields(self)

    def game(self, features: int) -> Game:
        """The empty set, and then the other sets, each followed by its complement."""
        every = features < 60 and 2**features <= max(2, self.samples)
        if every:
            numbers = np.arange(1, 2 ** (features - 1))  # sets without the last feature: their complements have it
            sets = (numbers[:, None] >> np.arange(features)) % 2 == 1
            sizes = sets.sum(axis=1)
            weights = np.array([1 / (comb(features, s) * s * (features - s)) for s in sizes.tolist()])
        else:
            rng = np.random.default_rng(self.seed)
            kernel = 1 / (np.arange(1, features) * np.arange(features - 1, 0, -1))
            sizes = rng.choice(np.arange(1, features), -(-self.samples // 2), p=kernel / kernel.sum())
            sets = rng.permuted(np.arange(features) < sizes[:, None], axis=1)
            weights = np.ones(len(sets))

        padded = np.concatenate([np.zeros((1, features), bool), sets])

        def keep(copies: Array) -> Array:
            complements = (copies > 0) & (copies % 2 == 0)
            return np.asarray(padded[(copies + 1) // 2] ^ complements[:, None])

        counts = doubling(len(sets), None if every else self.tolerance)
        return Game([1 + 2 * n for n in counts], keep, partial(_regression, padded[1:], weights, every))


def _regression(sets: Array, weights: Array, every: bool, score: float, scores: Array) -> tuple[Array, Array]:
    """Values that sum to the change of score: an equal share each, and a least-squares fit of the rest, of sum 0.

    A set and its complement have opposite rows and the same weight, so only half their difference counts. Each row sums
    to 0, so the shortest solution, which lstsq returns, sums to 0, too.
    """
    change = score - scores[0]
    pairs = scores[1:].reshape(-1, 2)
    sets, weights, features = sets[: len(pairs)], weights[: len(pairs)], sets.shape[1]
    share = sets.mean(axis=1)
    centred = sets - share[:, None]
    observed = (pairs[:, 0] - pairs[:, 1] - change * (2 * share - 1)) / 2
    roots = np.sqrt(weights)
    rest, _, rank, _ = np.linalg.lstsq(roots[:, None] * centred, roots * observed)
    if every:
        errors = np.zeros(features)
    elif rank < features - 1:  # the sets do not determine all values
        errors = np.full(features, np.nan)
    else:
        errors = regression_errors(centred, weights, observed - centred @ rest)
    return change / features + rest, errors
