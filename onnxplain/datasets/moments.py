"""Mean and spread of rows that come one by one and are not kept."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


class Moments:
    """Running mean and squared deviations, in float64 [welford]_.

    Parameters
    ----------
    shape
        Of a row.
    together
        Keep the products of the deviations of every pair of elements, for rows that are short vectors.

    Attributes
    ----------
    count
        Number of rows.
    mean
        Shape ``shape``.
    products
        Sum over rows of the squared deviations from the mean, shape ``shape``, or of their products, ``shape`` twice.

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
        """Take in rows, one after the other, so that no copy of all of them is made."""
        for row in rows:
            self.count += 1
            deviation = row - self.mean
            self.mean += deviation / self.count
            self.products += self._product(deviation, row - self.mean)

    @property
    def covariance(self) -> Array:
        """Of the mean; NaN where one row does not tell."""
        if self.count < 2:
            return np.full(self.products.shape, np.nan)
        return np.asarray(self.products / ((self.count - 1) * self.count))

    @property
    def error(self) -> Array:
        """Standard error of the mean; NaN where one row does not tell. Of squared deviations only."""
        return np.sqrt(self.covariance)


def with_error(value: float, error: float, form: str) -> str:
    """A mean and its standard error, where there is one, to read."""
    return f"{value:{form}}" if np.isnan(error) else f"{value:{form}} ± {error:{form.removeprefix('+')}}"
