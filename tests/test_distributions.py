from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxplain.distributions import QUADRATURES, Line, baseline_like, calibrated
from onnxplain.errors import OptionError
from onnxplain.perturbation import Windows


@pytest.mark.parametrize("quadrature", QUADRATURES)
@pytest.mark.parametrize("steps", [2, 3, 64])
def test_weights_are_a_mean_over_the_line(quadrature: str, steps: int) -> None:
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
def test_exact_up_to_a_degree_and_no_further(quadrature: str) -> None:
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


WINDOWS: list[tuple[dict[str, Any], str]] = [
    ({"window": 0}, "window must be a whole number of at least 1"),
    ({"window": (3, 0)}, r"not \(3, 0\)"),
    ({"window": ()}, r"not \(\)"),
    ({"window": 2.0}, "not 2.0"),
    ({"window": [3, 3]}, "a tuple of them"),
    ({"window": "a"}, "not 'a'"),
    ({"window": True}, "not True"),
    ({"stride": 0}, "stride must be a whole number"),
    ({"stride": (1, None)}, "stride must be a whole number"),
    ({"window": 3, "stride": 4}, "stride 4 is larger than window 3"),
    ({"window": (5, 3), "stride": 4}, "never be covered"),
    ({"window": (3, 5), "stride": (2, 6)}, "never be covered"),
    ({"window": (3, 3), "stride": (1, 1, 1)}, r"one number per axis of the window \(2\)"),
    ({"baseline": np.nan}, "NaN"),
]


@pytest.mark.parametrize(("options", "message"), WINDOWS, ids=str)
def test_bad_windows(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        Windows(**options)


def test_strides_are_compared_axis_by_axis() -> None:
    Windows((2, 8), (2, 8))
    Windows(8, (2, 8))


def starts(windows: Windows, shape: tuple[int, ...]) -> list[list[tuple[int, int]]]:
    """Per axis that windows span: start and stop of each."""
    axes = windows.axes(shape)
    return [sorted({(index[a - 1].start, index[a - 1].stop) for index in windows.slices(shape)}) for a in axes]


def test_windows_of_an_image() -> None:
    assert starts(Windows(3, 2), (1, 4, 7, 6)) == [[(0, 3), (2, 5), (4, 7)], [(0, 3), (2, 5), (4, 6)]]
    assert all(index[0] == slice(None) for index in Windows(3, 2).slices((1, 4, 7, 6)))
    assert len(list(Windows(3, 2).slices((1, 4, 7, 6)))) == 9


@pytest.mark.parametrize(
    ("shape", "axes"),
    [((2, 3, 8, 9), (2, 3)), ((2, 3, 9), (2,)), ((2, 9), (1,)), ((2,), ()), ((2, 3, 4, 5, 6), (2, 3, 4))],
)
def test_axes(shape: tuple[int, ...], axes: tuple[int, ...]) -> None:
    assert Windows(3).axes(shape) == axes


def test_default_stride_and_windows_beyond_the_border() -> None:
    assert starts(Windows(4), (1, 1, 8)) == [[(0, 4), (2, 6), (4, 8)]]
    assert starts(Windows(1), (1, 1, 2)) == [[(0, 1), (1, 2)]]
    assert starts(Windows(9), (1, 1, 5)) == [[(0, 5)]]
    assert starts(Windows((2, 9)), (1, 1, 3, 5)) == [[(0, 2), (1, 3)], [(0, 5)]]


def test_a_window_that_nobody_gives_a_size_is_a_seventh_of_each_axis() -> None:
    assert Windows().geometry((1, 3, 224, 8))[1:3] == ((32, 1), (16, 1))
    assert Windows(stride=4).geometry((1, 3, 224, 8))[1:3] == ((32, 1), (4, 1))


@pytest.mark.parametrize(("window", "stride"), [(w, s) for w in (1, 2, 3, 5, 8) for s in range(1, w + 1)])
def test_every_element_is_covered_and_no_window_lies_outside(window: int, stride: int) -> None:
    for size in range(1, 12):
        covered = np.zeros(size, int)
        for _, piece in Windows(window, stride).slices((1, 1, size)):
            assert piece.start < piece.stop <= size
            covered[piece] += 1
        assert covered.min() >= 1


def test_windows_that_do_not_fit_the_input() -> None:
    with pytest.raises(OptionError, match="more axes than the input"):
        Windows((1, 2, 3)).geometry((1, 5, 5))
    with pytest.raises(OptionError, match=r"one number per axis of the window \(2\)"):
        Windows(3, (1, 1, 1)).geometry((1, 1, 5, 5))


def test_baseline_like() -> None:
    x = np.ones((2, 3, 4), np.float32)
    for baseline in (0.5, np.zeros(4), np.zeros((3, 1)), np.zeros((1, 3, 4)), np.zeros((2, 1, 1), int)):
        array = baseline_like(baseline, x, "x")
        assert array.shape == x.shape
        assert array.dtype == x.dtype
    for baseline in (np.zeros(3), np.zeros((3, 3, 4)), np.zeros((1, 2, 3, 4))):
        with pytest.raises(OptionError, match=r"does not fit the input 'x' of shape \(2, 3, 4\)"):
            baseline_like(baseline, x, "x")


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
