"""LIME (Ribeiro et al. 2016): a linear model of the scores near the sample."""

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

# Class of scikit-learn, and its regularisation where the option alpha is None.
SURROGATES: dict[Surrogate, tuple[str, float]] = {"ridge": ("Ridge", 1.0), "lasso": ("Lasso", 0.01)}


@dataclass(frozen=True, eq=False)
class Lime(Coalitional):
    """Coefficients of a linear model from sets of features to scores.

    Each feature is in a set with probability 1/2; the first set has all of them. A set at cosine distance d from that
    weighs exp(-d^2 / width^2 / 2). The standard errors of a ridge are those of `regression_errors`: the spread of its
    coefficients over sets drawn anew, without what its penalty pulls them to 0. Those of a lasso are not known.

    Attributes
    ----------
    features
        Default: superpixels of pictures, else a grid.
    samples
        Number of sets.
    kernel_width
        The width.
    surrogate
        "ridge" or "lasso".
    alpha
        Strength of its regularisation; default: 1 for ridge (as in lime), 0.01 for lasso.
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
            raise OptionError(f"nobody knows the standard errors of a {self.surrogate}: there is no tolerance for them")

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Raise OptionError where the features do not fit an input, or scikit-learn is missing."""
        super().check_shape(shape)
        self._model()

    def numbering(self, sample: Mapping[str, Array]) -> Features:
        """How the features of samples like this one are numbered."""
        pictures = self.features is None and any(is_picture(x) for x in sample.values())
        return "slic" if pictures else self.features

    def game(self, features: int) -> Game:
        """Random sets."""
        self._model()  # before they are run
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
