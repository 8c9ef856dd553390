"""Running means, variances and covariances of rows that are not kept."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


class Moments:
    """Running mean and squared deviations of rows, in float64 [welford]_.

    Parameters
    ----------
    shape
        Shape of a row.
    together
        Track the covariance of every pair of elements instead of the variance of each; for short vectors, since memory
        is quadratic in their length.

    Attributes
    ----------
    count
        Number of rows.
    mean
        Mean of the rows, of shape ``shape``.
    products
        Sum over rows of the squared deviations from the mean, of shape ``shape``; with ``together``, of the products of
        the deviations of each pair of elements, of shape ``shape + shape``.

    References
    ----------
    .. [welford] Welford 1962, Note on a method for calculating corrected sums of squares and products, Technometrics.
    """

    def __init__(self, shape: tuple[int, ...], together: bool = False) -> None:
        self.count = 0
        self.mean = np.zeros(shape)
        self.products = np.zeros(shape * 2 if together else shape)
        self._product = np.multiply.outer if together else np.multiply

    def add(self, rows: Array) -> None:
        """Add rows, of shape (n, *shape): one at a time, so that no temporary of the size of all rows is needed."""
        for row in rows:
            self.count += 1
            deviation = row - self.mean
            self.mean += deviation / self.count
            self.products += self._product(deviation, row - self.mean)

    @property
    def covariance(self) -> Array:
        """Variance of the mean of each element, or with ``together`` their covariance matrix; NaN for one row."""
        if self.count < 2:
            return np.full(self.products.shape, np.nan)
        return np.asarray(self.products / ((self.count - 1) * self.count))

    @property
    def error(self) -> Array:
        """Standard error of the mean of each element, without ``together`` only; NaN for one row."""
        return np.sqrt(self.covariance)


def with_error(value: float, error: float, form: str) -> str:
    """Format a mean and its standard error for reading; a NaN error is left out."""
    return f"{value:{form}}" if np.isnan(error) else f"{value:{form}} ± {error:{form.removeprefix('+')}}"
