"""LIME (Ribeiro et al. 2016): a linear model of the scores of random sets of features."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np

from onnxplain.arguments import Count, NotNegative, Positive, Seed, check_fields
from onnxplain.distributions.baselines import Baseline
from onnxplain.distributions.perturbation.coalitions import Coalitional, Game, doubling
from onnxplain.distributions.perturbation.features import Features, is_picture, library
from onnxplain.distributions.perturbation.standard_errors import regression_errors
from onnxplain.errors import OptionError

Array = np.ndarray[Any, Any]

Surrogate = Literal["ridge", "lasso"]
"""Linear model that is fitted to the scores."""

SURROGATES: dict[Surrogate, tuple[str, float]] = {"ridge": ("Ridge", 1.0), "lasso": ("Lasso", 0.01)}
"""Surrogate -> its class in scikit-learn, and the default strength of its penalty."""


@dataclass(frozen=True, eq=False)
class Lime(Coalitional):
    """Coefficients of a linear model from sets of features to scores.

    Each feature is in a set with probability 1/2; the first set has all of them. A set at cosine distance d from the
    first one has the weight exp(-d^2 / kernel_width^2 / 2). The standard errors of a ridge are those of
    `regression_errors`: the spread of its coefficients over sets drawn anew, without the bias that its penalty causes.
    A lasso has no standard errors.

    Attributes
    ----------
    features
        See `Features`; by default, superpixels of pictures, otherwise a grid.
    samples
        Number of sets.
    kernel_width
        Width of the kernel, as a cosine distance.
    surrogate
        The linear model.
    alpha
        Strength of its penalty; by default 1 for a ridge (as in the package lime), 0.01 for a lasso.
    baseline
        See `Perturbation`.
    seed
        Seed of the NumPy generator.
    tolerance
        See `Perturbation`; for a ridge only.
    """

    features: Features = None
    samples: Count = 1000
    kernel_width: Positive = 0.25
    surrogate: Surrogate = "ridge"
    alpha: NotNegative | None = None
    baseline: Baseline = 0.0
    seed: Seed = 0
    tolerance: Positive | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if self.tolerance is not None and self.surrogate != "ridge":
            why = f"surrogate={self.surrogate!r} does not provide"
            raise OptionError(f"tolerance= needs standard errors, which {why}", "Use surrogate='ridge'.")

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Raise OptionError if the features do not fit an input, or scikit-learn is not installed."""
        super().check_shape(shape)
        self._model()

    def numbering(self, sample: Mapping[str, Array]) -> Features:
        """Superpixels for pictures, unless features are given."""
        pictures = self.features is None and any(is_picture(x) for x in sample.values())
        return "slic" if pictures else self.features

    def game(self, features: int) -> Game:
        """The set of all features, and random sets."""
        self._model()  # an error for a missing library comes before any run
        sets = np.random.default_rng(self.seed).random((self.samples, features)) < 0.5
        sets[0] = True
        return Game(doubling(self.samples, self.tolerance), sets.__getitem__, partial(self._fit, sets))

    def _fit(self, sets: Array, score: float, scores: Array) -> tuple[Array, Array | None]:
        sets = sets[: len(scores)]
        distance = 1 - np.sqrt(sets.mean(axis=1))  # cosine of a set and the whole: |S| / sqrt(|S| n)
        weights = np.exp(-(distance**2) / self.kernel_width**2 / 2)
        model = self._model().fit(sets, scores, weights)
        values = np.asarray(model.coef_, np.float64)
        if self.surrogate != "ridge":
            return values, None
        centred = sets - np.average(sets, axis=0, weights=weights)
        residuals = scores - model.predict(sets)
        return values, regression_errors(centred, weights, residuals, model.alpha)

    def _model(self) -> Any:
        name, alpha = SURROGATES[self.surrogate]
        return getattr(library("sklearn.linear_model", "lime"), name)(alpha if self.alpha is None else self.alpha)
