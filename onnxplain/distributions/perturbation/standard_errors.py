"""Standard errors: how far estimates from random copies would spread, were they drawn again."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def mean_error(rows: Array) -> Array:
    """Standard error of the mean over independent rows; NaN for a single one."""
    if len(rows) < 2:
        return np.full(rows.shape[1:], np.nan)
    return np.asarray(rows.std(axis=0, ddof=1) / len(rows) ** 0.5)


def regression_errors(design: Array, weights: Array, residuals: Array, penalty: float = 0.0) -> Array:
    """Standard errors of the coefficients of a weighted least-squares fit whose rows were drawn at random.

    The sandwich estimate P (sum_k g_k g_k^T) P, with P = (X^T W X + penalty I)^+ and g_k = w_k r_k x_k / sqrt(1 - h_k),
    less the mean of g; h_k = w_k x_k^T P x_k is the leverage of a row (HC2, MacKinnon and White 1985). It holds
    whatever the scores are: they need not be linear, and rows differ by which sets were drawn, not by noise.

    Parameters
    ----------
    design
        Shape (rows, coefficients); centred by the weighted mean, if there is an intercept.
    weights, residuals
        Shape (rows,).
    penalty
        Of a ridge. How far it pulls the coefficients to 0 is not part of the errors.

    Returns
    -------
    Array
        Shape (coefficients,); NaN for less than two rows a coefficient, with which the fit just follows the rows.
    """
    rows, coefficients = design.shape
    if rows < 2 * coefficients:
        return np.full(coefficients, np.nan)
    weighted = design * weights[:, None]
    inverse = np.linalg.pinv(design.T @ weighted + penalty * np.eye(coefficients), hermitian=True)
    moves = weighted @ inverse
    leverage = (moves * design).sum(axis=1)
    moves *= (residuals / np.sqrt(np.maximum(1 - leverage, 1e-9)))[:, None]
    return np.asarray(np.sqrt(((moves - moves.mean(axis=0)) ** 2).sum(axis=0)))
