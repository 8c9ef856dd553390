"""Weighted sums, means and standard errors of attributions over sampled points."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from onnxplain.distributions.sampling import Moment, Sampled

Array = np.ndarray[Any, Any]
Arrays = Mapping[str, Array]


def add_weighted(totals: Array, sample: Array, weights: Array, values: Array) -> None:
    """Add weighted values to the totals of their samples, in float64.

    Parameters
    ----------
    totals
        Shape (samples, ...), float64.
    sample, weights
        Shape (points,): number of the sample that each value belongs to, and its weight.
    values
        Shape (points, ...).
    """
    # A matrix product would leave the threads of BLAS spinning for a while, beside those of ONNX Runtime.
    for row, weight, value in zip(sample, weights, values, strict=True):
        totals[row] += weight * value.astype(np.float64)


def moment_and_error(
    means: Arrays, squares: Arrays, sampled: Sampled, moment: Moment, dtypes: Mapping[str, Any]
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Attributions, and their standard errors if the points are random and the moment is the mean.

    Where random points are stratified (see `Lines`), the errors are upper bounds: n such points are at least as good as
    n - 1 independent ones (Owen 1997), and better the more the attributions are sums of a part that depends on the
    position alone and a part that depends on the baseline alone. NaN for a single point.

    Parameters
    ----------
    means, squares
        Weighted means of the attributions at the points, and of their squares, by name.
    sampled
        The points.
    moment
        The statistic to return.
    dtypes
        Dtypes of the attributions, by name.
    """
    variances = {name: np.maximum(squares[name] - mean**2, 0) for name, mean in means.items()}
    moments: dict[Moment, Arrays] = {"mean": means, "square": squares, "variance": variances}
    degrees_of_freedom = sampled.count - 1 if sampled.count > 1 else np.nan
    random = sampled.random and moment == "mean"
    errors = {name: np.sqrt(variance / degrees_of_freedom) for name, variance in variances.items()} if random else {}
    attributions, errors = (
        {name: array.astype(dtypes[name]) for name, array in arrays.items()} for arrays in (moments[moment], errors)
    )
    return attributions, errors
