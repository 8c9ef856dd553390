"""What becomes of a method's findings at the points of a distribution."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from onnxplain.distributions.sampling import Sampled

Array = np.ndarray[Any, Any]
Arrays = Mapping[str, Array]


def add_weighted(totals: Array, sample: Array, weights: Array, values: Array) -> None:
    """Add weighted values to the totals of their samples, in float64.

    Parameters
    ----------
    totals
        (samples, ...), float64.
    sample, weights
        (points,): which sample each value is of, and its weight.
    values
        (points, ...).
    """
    # Not as a product of matrices: the threads of BLAS would go on spinning for a while, beside those of ONNX Runtime.
    for row, weight, value in zip(sample, weights, values, strict=True):
        totals[row] += weight * value.astype(np.float64)


def moment_and_error(
    means: Arrays, squares: Arrays, sampled: Sampled, moment: str, dtypes: Mapping[str, Any]
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Attributions, and their standard errors where points are drawn at random and the mean is asked for.

    Where points are spread evenly (see `Lines`), the errors are upper bounds: n such points are at least as good as
    n - 1 independent ones (Owen 1997), and the more the method's findings are sums of what place and baseline do, the
    better. NaN for a single point.

    Parameters
    ----------
    means, squares
        Means of what was found, and of its squares, by name.
    moment
        "mean", "square" or "variance".
    dtypes
        Of the attributions.
    """
    variances = {name: np.maximum(squares[name] - mean**2, 0) for name, mean in means.items()}
    found = {"mean": means, "square": squares, "variance": variances}[moment]
    free = sampled.count - 1 if sampled.count > 1 else np.nan
    random = sampled.random and moment == "mean"
    errors = {name: np.sqrt(variance / free) for name, variance in variances.items()} if random else {}
    values, errors = (
        {name: array.astype(dtypes[name]) for name, array in arrays.items()} for arrays in (found, errors)
    )
    return values, errors
