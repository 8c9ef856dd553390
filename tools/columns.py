"""Test tabular explanations: scikit-learn models converted to ONNX, on data whose relevant columns are known.

The score is the first of eight columns plus three times the smaller of the next two; the other five are noise. The
table has, for each method: the share of the attributions' magnitude in the three relevant columns; the distance from
the exact Shapley values, which an enumeration of all 256 sets of columns computes with scikit-learn's model, not with
the converted one; and the score that remains when columns are replaced by their mean. HistGradientBoosting is missing
because skl2onnx 1.20 cannot convert that of scikit-learn 1.9.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from math import factorial
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table
from skl2onnx import to_onnx
from sklearn.ensemble import GradientBoostingClassifier, GradientBoostingRegressor, RandomForestClassifier
from sklearn.tree import DecisionTreeRegressor

import onnxplain as ox
from onnxplain.imaging import heatmap

Array = np.ndarray[Any, Any]

NAMES = ["alone", "both, one", "both, two", *(f"noise {k}" for k in range(1, 6))]
KNOWN = 3
ROWS = 60
HIDDEN = 2
METHODS: dict[str, dict[str, Any]] = {
    "occlusion": {"window": 1, "stride": 1},
    "kernel_shap": {"samples": 2 ** len(NAMES)},
    "shapley_sampling": {"samples": 60},
    "lime": {"samples": 400, "alpha": 1e-3},
}
COLUMNS = (
    "model",
    "method",
    "in the 3 known columns",
    "off exact Shapley values",
    "score",
    "2 most relevant hidden",
    "2 at random",
    "2 least relevant",
)


def models() -> Iterator[tuple[str, Any, Callable[[Array], Array], dict[str, Any]]]:
    """Yield fitted models, scikit-learn's predictions, and the explained output (class "yes" or the number)."""
    random = np.random.default_rng(0)
    x = random.normal(size=(3000, len(NAMES))).astype(np.float32)
    y = x[:, 0] + 3 * np.minimum(x[:, 1], x[:, 2]) + 0.1 * random.normal(size=len(x))
    for model in (
        RandomForestClassifier(60, min_samples_leaf=5, random_state=0),
        GradientBoostingClassifier(random_state=0),
    ):
        fitted = model.fit(x, y > 0)
        yield type(model).__name__, fitted, lambda a, m=fitted: m.predict_proba(a)[:, 1], {"target": 1}
    for model in (GradientBoostingRegressor(random_state=0), DecisionTreeRegressor(max_depth=6, random_state=0)):
        fitted = model.fit(x, y)
        yield type(model).__name__, fitted, fitted.predict, {"target": 0}


def exact(score: Callable[[Array], Array], x: Array, baseline: Array) -> Array:
    """Compute Shapley values by enumeration: phi_i = sum over S of |S|! (n - |S| - 1)! / n! (v(S + i) - v(S))."""
    count = x.shape[1]
    sets = np.array(list(product([False, True], repeat=count)))
    sizes = sets.sum(axis=1)
    share = np.array([factorial(k) * factorial(count - k - 1) / factorial(count) for k in range(count)])
    signed = np.where(sets, share[sizes - 1][:, None], -share[np.minimum(sizes, count - 1)][:, None])
    copies = np.where(sets[None], x[:, None], baseline)
    worth = score(copies.reshape(-1, count)).reshape(len(x), -1)
    return np.asarray(worth @ signed)


def hidden(score: Callable[[Array], Array], x: Array, baseline: Array, order: Array) -> float:
    """Return the mean score when the columns that come first in the order are replaced."""
    copies = x.copy()
    np.put_along_axis(copies, order[:, :HIDDEN], baseline[order[:, :HIDDEN]], axis=1)
    return float(score(copies).mean())


def table(out: Path) -> Table:
    """Explain rows with a high score by each method, and draw the mean magnitudes."""
    found = Table(*COLUMNS)
    random = np.random.default_rng(1)
    pool = random.normal(size=(2000, len(NAMES))).astype(np.float32)
    baseline = np.zeros(len(NAMES), np.float32)  # the columns' mean
    for name, fitted, score, asked in models():
        x = pool[np.argsort(score(pool))[-400:]][:: 400 // ROWS][:ROWS]
        options = {"zipmap": False} if hasattr(fitted, "predict_proba") else {}
        model = ox.load(to_onnx(fitted, x[:1], options=options))
        shapley = exact(score, x, baseline)
        by_chance = hidden(score, x, baseline, random.permuted(np.tile(np.arange(len(NAMES)), (ROWS, 1)), axis=1))
        for method, how in METHODS.items():
            values = ox.explain(model, x, method, probability=True, **asked, **how).values
            size = np.abs(values).mean(axis=0)
            off = np.linalg.norm(values - shapley) / np.linalg.norm(shapley)
            order = values.argsort(axis=1)
            left = [hidden(score, x, baseline, o) for o in (order[:, ::-1], order)]
            numbers = [f"{v:.3f}" for v in (score(x).mean(), left[0], by_chance, left[1])]
            found.add_row(name, method, f"{size[:KNOWN].sum() / size.sum():.1%}", f"{off:.1%}", *numbers)
            heatmap.save(out / f"columns_{name}_{method}.png", heatmap.ranking(size, NAMES))
    return found
