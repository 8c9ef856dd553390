"""Distributions: the points at which a method looks, with their weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np

from onnxplain.arguments import is_count
from onnxplain.distributions.baselines import Baseline, check_baseline
from onnxplain.distributions.masked_copies import Prologue
from onnxplain.errors import OptionError, did_you_mean
from onnxplain.graph.emit import Var

Array = np.ndarray[Any, Any]

MOST_STEPS = 4096  # up to which a tolerance may double them


@dataclass(frozen=True)
class Point:
    """The input itself."""


@dataclass(frozen=True, eq=False)
class References:
    """The input itself, compared with a baseline or with each of several.

    Attributes
    ----------
    baseline
        A number, or an array: one for all samples, or one each; "blur", see `onnxplain.fills`.
    baselines
        An array of shape (K, ...): K baselines instead, each for all samples, that count alike.
    """

    baseline: Baseline = 0.0
    baselines: Array | None = None

    def __post_init__(self) -> None:
        check_baseline(self.baseline)
        if self.baselines is not None:
            check_baseline(self.baselines)
            if np.ndim(self.baselines) == 0 or len(self.baselines) == 0:
                raise OptionError("baselines is an array whose first axis counts the baselines, at least one")

    @property
    def count(self) -> int:
        """Number of baselines of a sample."""
        return 1 if self.baselines is None else len(self.baselines)

    def get(self, index: int) -> Baseline:
        """One of the baselines."""
        return self.baseline if self.baselines is None else np.asarray(self.baselines)[index]


@dataclass(frozen=True, eq=False)
class Line:
    """Points on the straight line from a baseline to the input.

    Attributes
    ----------
    steps
        Number of points.
    baseline
        A number, or an array: one for all samples, or one each; "blur", see `onnxplain.fills`.
    quadrature
        ``gauss_legendre``, ``midpoint``, ``trapezoid``, ``left`` or ``right``; weights of all of them sum to 1
        (captum's trapezoid does not).
    calibrate
        Move the weights, as little as possible, so that the slopes of the score at the points add up to its exact
        change, unless that would take more than a moderate move (see `calibrated`).
    tolerance
        Double the steps of a sample until its residual is at most this, in the score's units, or they are `MOST_STEPS`.
    """

    steps: int = 64
    baseline: Baseline = 0.0
    quadrature: str = "gauss_legendre"
    calibrate: bool = False
    tolerance: float | None = None

    def __post_init__(self) -> None:
        if self.quadrature not in QUADRATURES:
            known = did_you_mean(str(self.quadrature), QUADRATURES)
            raise OptionError(f"there is no quadrature {self.quadrature!r}", known)
        least = 2 if self.quadrature == "trapezoid" else 1
        if not is_count(self.steps, least):
            raise OptionError(f"steps must be a whole number of at least {least}, not {self.steps!r}")
        if self.tolerance is not None:
            number = isinstance(self.tolerance, int | float | np.number) and not isinstance(self.tolerance, bool)
            if not number or not self.tolerance > 0:
                raise OptionError(f"tolerance must be a number above 0, not {self.tolerance!r}")
        check_baseline(self.baseline)

    def nodes(self) -> tuple[Array, Array]:
        """Positions between 0 (baseline) and 1 (input), and weights; float64, shape (steps,) each."""
        return QUADRATURES[self.quadrature](self.steps)


def calibrated(mean: Any, tilted: Any, gap: Any, spread: Any) -> Any:
    """Weighted mean with calibrated weights: the slopes' own weighted mean becomes exact at no further cost.

    The exact change F of the score along the line is known, and the slopes s_k at the points estimate it. The weights
    w_k (1 + c (d_k - gap)), d_k = s_k - F, are those nearest to w_k (in the chi-square distance) for which the weighted
    sum of d is 0 [deville]_. Takes numbers, arrays and Vars that broadcast.

    Parameters
    ----------
    mean, tilted
        sum w_k g_k and sum w_k d_k g_k of what is averaged, g.
    gap, spread
        sum w_k d_k, and sum w_k d_k^2 - gap^2. An infinite spread leaves the weights as they are. So they should be
        where it is below gap^2: slopes that equal tell no points apart, and the weights would change by more than
        themselves (their chi-square distance is gap^2 / spread), or by whatever rounding makes of the spread.

    References
    ----------
    .. [deville] Deville and Särndal 1992, Calibration estimators in survey sampling, JASA.
    """
    return mean - gap / spread * (tilted - gap * mean)


def _gauss_legendre(n: int) -> tuple[Array, Array]:
    positions, weights = np.polynomial.legendre.leggauss(n)
    return (1 + positions) / 2, weights / 2


def _trapezoid(n: int) -> tuple[Array, Array]:
    weights = np.full(n, 1 / (n - 1))
    weights[[0, -1]] /= 2
    return np.linspace(0, 1, n), weights


QUADRATURES: dict[str, Callable[[int], tuple[Array, Array]]] = {
    "gauss_legendre": _gauss_legendre,
    "midpoint": lambda n: ((np.arange(n) + 0.5) / n, np.full(n, 1 / n)),
    "trapezoid": _trapezoid,
    "left": lambda n: (np.arange(n) / n, np.full(n, 1 / n)),
    "right": lambda n: (np.arange(1, n + 1) / n, np.full(n, 1 / n)),
}


SEARCHES = ("segment", "gradient")


@dataclass(frozen=True, eq=False)
class Root:
    """The nearest point along a way at which the score is zero.

    Attributes
    ----------
    search
        The way: "segment", straight to the baseline; "gradient", down the gradient at the input.
    baseline
        See `Line`.
    steps
        Forward passes of the search; each halves the way on which the root lies.
    """

    search: str
    baseline: Baseline = 0.0
    steps: int = 20

    def __post_init__(self) -> None:
        if self.search not in SEARCHES:
            known = did_you_mean(str(self.search), ["zero", *SEARCHES])
            raise OptionError(f"there is no root {self.search!r}", known)
        if not is_count(self.steps, 1):
            raise OptionError(f"steps must be a whole number of at least 1, not {self.steps!r}")
        check_baseline(self.baseline)


@dataclass(frozen=True, eq=False)
class Estimate:
    """What the scores of a sample's masked copies tell.

    Attributes
    ----------
    values
        Name of a tensor -> attribution, float64.
    errors
        Their standard errors: 0 where nothing is random, NaN where there are too few copies to know. None: the method
        knows none.
    """

    values: Mapping[str, Array]
    errors: Mapping[str, Array] | None = None

    def within(self, tolerance: float) -> bool:
        """Whether the largest error is at most this part of the largest magnitude of all attributions."""
        if self.errors is None:
            return False
        most = max(float(abs(a).max()) for a in self.values.values())
        return all(bool((error <= tolerance * most).all()) for error in self.errors.values())


class CopyPlan(Protocol):
    """Which masked copies of a sample are run, and what becomes of their scores.

    A graph makes the copies, of inputs that have the names of the arrays here (see `Perturbation.masked`).
    """

    @property
    def stages(self) -> Sequence[int]:
        """Numbers of copies after which there may be an estimate, rising; the last is that of all copies."""
        ...

    @property
    def shared(self) -> Mapping[str, Array]:
        """Inputs that are the same for all samples of the batch."""
        ...

    @property
    def own(self) -> Mapping[str, Array]:
        """Inputs that are the same for all copies that it describes; several samples may share a plan."""
        ...

    def describe(self, copies: Array) -> Mapping[str, Array]:
        """Inputs that describe copies, by number, a row for each; copy -1 hides nothing."""
        ...

    def donors(self, copies: Array) -> Array | None:
        """Which samples of the batch stand where each copy hides something; None: the baseline does."""
        ...

    def hole(self, copy: int) -> Mapping[str, Array]:
        """What one copy hides, for fills that are made of what is left: booleans by name of a tensor."""
        ...

    def estimate(self, score: float, scores: Array) -> Estimate:
        """Attributions from the score of the sample and those of its first copies, as many as a stage has."""
        ...


class Perturbation(ABC):
    """Masked copies of the input, and what their scores tell: forward passes only.

    Attributes
    ----------
    baseline
        What is put in the place of what is masked: a number, a text, or an array that broadcasts to the input; "blur"
        or "inpaint", see `onnxplain.fills`.
    tolerance
        A sample is done at the first of its plan's stages at which `Estimate.within` holds for this.
    mixes
        Whether what is found about a sample depends on the others of its batch.
    """

    baseline: Baseline = 0.0
    tolerance: float | None = None
    mixes: ClassVar[bool] = False

    @abstractmethod
    def plans(self, here: Mapping[str, Array]) -> Sequence[CopyPlan]:
        """One plan per sample of the explained tensors, which are given by name, the batch axis in front."""

    @abstractmethod
    def masked(self, prologue: Prologue, name: str, x: Var, fill: Var) -> Var:
        """Write what makes masked copies of the tensor ``name`` from its samples and what stands where it is hidden.

        The batch axis is in front; one row of x, or of the fill, stands for all copies.
        """

    def check(self, shape: tuple[int, ...]) -> None:  # noqa: B027 - most fit every shape
        """Raise OptionError where an option does not fit the shape of an input, the batch axis in front."""


Distribution = Point | References | Line | Perturbation | Root
