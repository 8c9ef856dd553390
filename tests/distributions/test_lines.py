"""Points on a line and their weights, against what is known in closed form."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxplain.distributions.lines import QUADRATURES, Line, Quadrature, calibrated
from onnxplain.errors import OptionError


@pytest.mark.parametrize("quadrature", QUADRATURES)
@pytest.mark.parametrize("steps", [2, 3, 64])
def test_weights_are_a_mean_over_the_line(quadrature: Quadrature, steps: int) -> None:
    positions, weights = Line(steps, quadrature=quadrature).nodes()
    assert positions.shape == weights.shape == (steps,)
    assert abs(weights.sum() - 1) < 1e-12
    assert positions.min() >= 0
    assert positions.max() <= 1
    assert np.all(np.diff(positions) > 0)
    assert np.all(weights > 0)


# Highest power of t whose mean over [0, 1] each rule gets right with 4 points.
DEGREES = {"gauss_legendre": 7, "midpoint": 1, "trapezoid": 1, "left": 0, "right": 0}


@pytest.mark.parametrize("quadrature", QUADRATURES)
def test_exact_up_to_a_degree_and_no_further(quadrature: Quadrature) -> None:
    positions, weights = Line(4, quadrature=quadrature).nodes()
    degree = DEGREES[quadrature]
    for power in range(degree + 1):
        assert abs(weights @ positions**power - 1 / (power + 1)) < 1e-12
    assert abs(weights @ positions ** (degree + 1) - 1 / (degree + 2)) > 1e-6


def test_left_and_right_have_their_end_points() -> None:
    assert Line(4, quadrature="left").nodes()[0].tolist() == [0, 0.25, 0.5, 0.75]
    assert Line(4, quadrature="right").nodes()[0].tolist() == [0.25, 0.5, 0.75, 1]
    assert Line(3, quadrature="trapezoid").nodes()[1].tolist() == [0.25, 0.5, 0.25]


LINES: list[tuple[dict[str, Any], str]] = [
    ({"steps": 0}, "steps must be a whole number of at least 1, not 0"),
    ({"steps": -3}, "not -3"),
    ({"steps": 2.5}, "not 2.5"),
    ({"steps": "x"}, "not 'x'"),
    ({"steps": True}, "not True"),
    ({"steps": 1, "quadrature": "trapezoid"}, "at least 2"),
    ({"quadrature": "gauss_legendr"}, "Did you mean 'gauss_legendre'"),
    ({"quadrature": 3}, "no quadrature 3"),
    ({"baseline": float("nan")}, "NaN"),
    ({"baseline": np.array([0, np.inf])}, "infinity"),
    ({"baseline": None}, "not None"),
    ({"baseline": None}, "not None"),
    ({"baseline": True}, "not True"),
]


@pytest.mark.parametrize(("options", "message"), LINES, ids=str)
def test_bad_lines(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        Line(**options)


def test_calibrated_weights_are_the_nearest_that_make_the_slopes_exact() -> None:
    """Against the constrained least squares solved densely: least sum (v - w)^2 / w, sum v = 1, sum v d = 0."""
    random = np.random.default_rng(0)
    w = random.random(7)
    w /= w.sum()
    d, g = random.normal(size=7), random.normal(size=(7, 3))
    # The minimum lies where v = w (1 + a + b d), with a and b from the two constraints.
    system = np.array([[w.sum(), w @ d], [w @ d, w @ d**2]])
    a, b = np.linalg.solve(system, [0, -(w @ d)])
    expected = (w * (1 + a + b * d)) @ g
    gap = w @ d
    assert np.allclose(calibrated(w @ g, (w * d) @ g, gap, w @ d**2 - gap**2), expected)
