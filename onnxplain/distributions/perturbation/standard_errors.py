"""Standard errors of estimates from random copies: their spread if the copies were drawn again."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
MIN_FREEDOM = 1e-9  # least 1 - leverage: a row that the fit follows exactly has 0, up to rounding


def mean_error(rows: Array) -> Array:
    """Standard error of the mean over independent rows (the first axis); NaN for a single row."""
    if len(rows) < 2:
        return np.full(rows.shape[1:], np.nan)
    return np.asarray(rows.std(axis=0, ddof=1) / len(rows) ** 0.5)


def regression_errors(design: Array, weights: Array, residuals: Array, penalty: float = 0.0) -> Array:
    """Standard errors of the coefficients of a weighted least-squares fit with rows that were drawn at random.

    The sandwich estimate P (sum_k g_k g_k^T) P, with P = (X^T W X + penalty I)^+ and g_k = w_k r_k x_k / sqrt(1 - h_k),
    where the mean of g is subtracted first; h_k = w_k x_k^T P x_k is the leverage of a row (HC2, MacKinnon and White
    1985). It holds for scores that are not linear: rows differ by the sets that were drawn, not by noise.

    Parameters
    ----------
    design
        The rows x_k, shape (rows, coefficients); centred by the weighted mean, if the fit has an intercept.
    weights, residuals
        The weights w_k and the residuals r_k of the fit, shape (rows,).
    penalty
        Strength of a ridge. The errors do not include the bias that it causes.

    Returns
    -------
    Array
        Shape (coefficients,); NaN for less than two rows per coefficient, which the fit follows too closely.
    """
    rows, coefficients = design.shape
    if rows < 2 * coefficients:
        return np.full(coefficients, np.nan)
    weighted = design * weights[:, None]
    inverse = np.linalg.pinv(design.T @ weighted + penalty * np.eye(coefficients), hermitian=True)
    moves = weighted @ inverse
    leverage = (moves * design).sum(axis=1)
    moves *= (residuals / np.sqrt(np.maximum(1 - leverage, MIN_FREEDOM)))[:, None]
    return np.asarray(np.sqrt(((moves - moves.mean(axis=0)) ** 2).sum(axis=0)))
