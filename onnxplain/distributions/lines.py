"""Distributions on the line from a baseline to the input: equally or unequally spaced points, and root points."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from onnxplain.arguments import Count, Positive, check_fields, one_of, whole_number
from onnxplain.distributions.baselines import Baseline, check_fits, check_internal_baseline
from onnxplain.distributions.distribution import Distribution
from onnxplain.errors import OptionError

Array = np.ndarray[Any, Any]

MAX_STEPS = 4096  # points per sample up to which a tolerance may double them

Quadrature = Literal["gauss_legendre", "midpoint", "trapezoid", "left", "right"]
"""How points on [0, 1] and their weights are chosen (`QUADRATURES`)."""

Search = Literal["segment", "gradient"]
"""In which direction a root is searched: straight to the baseline, or down the gradient at the input."""


def _gauss_legendre(n: int) -> tuple[Array, Array]:
    positions, weights = np.polynomial.legendre.leggauss(n)
    return (1 + positions) / 2, weights / 2


def _trapezoid(n: int) -> tuple[Array, Array]:
    weights = np.full(n, 1 / (n - 1))
    weights[[0, -1]] /= 2
    return np.linspace(0, 1, n), weights


QUADRATURES: dict[Quadrature, Callable[[int], tuple[Array, Array]]] = {
    "gauss_legendre": _gauss_legendre,
    "midpoint": lambda n: ((np.arange(n) + 0.5) / n, np.full(n, 1 / n)),
    "trapezoid": _trapezoid,
    "left": lambda n: (np.arange(n) / n, np.full(n, 1 / n)),
    "right": lambda n: (np.arange(1, n + 1) / n, np.full(n, 1 / n)),
}
"""Number of points -> their positions between 0 and 1, and their weights, which sum to 1."""


def check_quadrature(quadrature: Any, steps: Any) -> None:
    """Raise OptionError unless there is such a quadrature with that many points."""
    one_of(QUADRATURES).check("quadrature", quadrature)
    whole_number(2 if quadrature == "trapezoid" else 1).check("steps", steps)


@dataclass(frozen=True, eq=False)
class Line(Distribution):
    """Points on the straight line from a baseline to the input.

    Attributes
    ----------
    steps
        Number of points.
    baseline
        A number; an array, either one for all samples or one per sample; or "blur" (`onnxplain.distributions.fills`).
    quadrature
        Positions and weights of the points. The weights sum to 1 for all of them (captum's trapezoid does not).
    calibrate
        Change the weights, as little as possible, so that the weighted slopes of the score at the points sum to its
        exact change along the line; the weights stay as they are where that change would be large (see `calibrated`).
    tolerance
        Double the steps of a sample until the absolute value of its residual is at most this, in units of the score,
        or until `MAX_STEPS`. None: never double.
    """

    steps: Count = 64
    baseline: Baseline = 0.0
    quadrature: Quadrature = "gauss_legendre"
    calibrate: bool = False
    tolerance: Positive | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        check_quadrature(self.quadrature, self.steps)

    def nodes(self) -> tuple[Array, Array]:
        """Positions between 0 (baseline) and 1 (input), and weights; float64, shape (steps,) each."""
        return QUADRATURES[self.quadrature](self.steps)

    def check(self, name: str, x: Array, axis: int) -> None:
        """Raise OptionError if the baseline does not fit the explained input ``name``."""
        check_fits(self.baseline, x, name, axis)

    def check_internal(self, name: str) -> None:
        """Raise OptionError if there is no baseline of that name."""
        check_internal_baseline(self.baseline, name)

    def check_export(self, method: str) -> None:
        """Raise OptionError for a tolerance."""
        if self.tolerance is not None:
            why = "a stand-alone explainer takes a fixed number of steps"
            raise OptionError(f"{method} with a tolerance cannot be exported: {why}", "Give steps= instead.")


def calibrated(mean: Any, tilted: Any, gap: Any, spread: Any) -> Any:
    """Weighted mean with calibrated weights: the weighted mean of the slopes becomes exact at no further cost.

    The exact change F of the score along the line is known, and the slopes s_k at the points estimate it. Calibrated
    weights w_k (1 + c (d_k - gap)), d_k = s_k - F, are those nearest to w_k (in the chi-square distance) for which the
    weighted sum of d is 0 [deville]_. Takes numbers, arrays and Vars that broadcast.

    Parameters
    ----------
    mean, tilted
        sum w_k g_k and sum w_k d_k g_k, where g is averaged.
    gap, spread
        sum w_k d_k, and sum w_k d_k^2 - gap^2. An infinite spread leaves the weights as they are. Callers pass infinity
        where the spread is not above gap^2: there the slopes are too similar to tell the points apart, and the weights
        would change by more than themselves (their chi-square distance is gap^2 / spread), or by an amount that only
        the rounding of the spread decides.

    References
    ----------
    .. [deville] Deville and Särndal 1992, Calibration estimators in survey sampling, JASA.
    """
    return mean - gap / spread * (tilted - gap * mean)


@dataclass(frozen=True, eq=False)
class Root(Distribution):
    """The nearest point in one direction from the input at which the score is zero.

    Attributes
    ----------
    search
        The direction: "segment", straight to the baseline; "gradient", down the gradient at the input.
    baseline
        See `Line`; used by "segment" only.
    steps
        Forward passes of the search; each halves the interval in which the root lies.
    """

    runs_on_device: ClassVar[bool] = True
    search: Search
    baseline: Baseline = 0.0
    steps: Count = 20

    def __post_init__(self) -> None:
        check_fields(self)

    def check(self, name: str, x: Array, axis: int) -> None:
        """Raise OptionError if the baseline does not fit the explained input ``name``."""
        check_fits(self.baseline, x, name, axis)

    def check_internal(self, name: str) -> None:
        """Raise OptionError if there is no baseline of that name."""
        check_internal_baseline(self.baseline, name)
