"""Waveforms and point sets: where the curve is, and which colour it has there."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from onnxplain.errors import InputError
from onnxplain.imaging.heatmap import projections, waveform
from onnxplain.imaging.heatmap.signals import GREY, MARGIN, SIDE, WIDTH


def inner(chart):
    return chart.astype(int)[MARGIN:-MARGIN, MARGIN:-MARGIN]


def curve(chart):
    return (chart == GREY).all(2)


@pytest.mark.parametrize("count", [1, 2, 7, 959, 960, 961, 2000, 100_000])
def test_a_waveform_without_attribution_is_a_grey_curve_without_gaps(count):
    signal = np.random.default_rng(0).normal(size=count)
    chart = inner(waveform(np.zeros(count), signal))
    assert chart.shape == (320, WIDTH, 3)
    assert (curve(chart) | (chart == 255).all(2)).all()
    rows = [np.flatnonzero(column) for column in curve(chart).T]
    assert all(len(r) == r[-1] - r[0] + 1 for r in rows)
    assert all(a[0] <= b[-1] and b[0] <= a[-1] for a, b in itertools.pairwise(rows))


def test_a_column_reaches_from_its_lowest_to_its_highest_sample():
    signal = np.zeros(WIDTH * 10)
    signal[5003], signal[8007] = 1, -3
    rows = [np.flatnonzero(column) for column in curve(inner(waveform(signal * 0, signal))).T]
    zero = rows[0].mean()
    assert rows[500][0] < 10
    assert rows[800][-1] > 310
    assert rows[500][-1] == pytest.approx(zero, abs=2)
    assert (rows[800][-1] - zero) / (zero - rows[500][0]) == pytest.approx(3, rel=0.03)


def test_curve_and_ground_have_the_colour_of_the_attribution():
    values = np.zeros(WIDTH * 4)
    values[400:800], values[2000:2400] = 1, -0.5
    chart = inner(waveform(values, np.sin(np.arange(WIDTH * 4) / 9)))
    assert (chart[:, 300:400] >= GREY).all()
    assert (chart[:, 110:190, 0] > chart[:, 110:190, 2] + 50).all()
    assert (chart[:, 510:590, 2] > chart[:, 510:590, 0] + 20).all()
    stronger, weaker = 255 - chart[2, 150].min(), 255 - chart[2, 550].min()
    assert stronger > weaker > 0


def test_opposite_signs_in_a_column_cancel():
    values = np.tile([1.0, -1], WIDTH)
    values[:10] = 1
    chart = inner(waveform(values, np.sin(np.arange(2 * WIDTH))))
    assert (chart[0, 0] != 255).any()
    assert (chart[0, 10:] == 255).all()


def test_uneven_columns_make_no_stripes():
    chart = inner(waveform(np.ones(2000), np.zeros(2000)))  # two or three samples a column
    assert len(np.unique(chart[0], axis=0)) == 1


def test_channels_are_panels_on_one_scale_of_colours():
    signal = np.random.default_rng(0).normal(size=(2, 50))
    chart = inner(waveform(np.stack([np.ones(50), np.full(50, 0.1)]), signal))
    assert chart.shape[0] == 320
    assert 255 - chart[0].min() > 5 * (255 - chart[-1].min()) > 0
    assert waveform(np.ones((1, 50)), signal).shape == waveform(signal, signal).shape
    assert inner(waveform(np.ones((12, 50)), np.ones((12, 50)))).shape[0] == 12 * 80


def test_a_constant_signal_is_in_the_middle():
    rows, _ = np.nonzero(curve(inner(waveform(np.zeros(5), np.full(5, 7.0)))))
    assert rows.mean() == pytest.approx(160, abs=3)


def test_projections_show_points_where_they_are():
    points = np.array([[-1, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, -0.5]])
    values = np.array([[1, 0, 0], [-0.5, -0.5, 0], [0, 0, 0], [0, 0, 0]])
    chart = projections(values, points).astype(int)
    assert chart.shape == (SIDE, 3 * SIDE, 3)
    red, blue = chart[..., 0] > chart[..., 2] + 50, chart[..., 2] > chart[..., 0] + 50
    left, right, middle = 32, SIDE - 32, SIDE // 2
    for side in (0, 1):  # x to the right
        assert red[:, side * SIDE + left].any()
        assert blue[:, side * SIDE + right].any()
    assert red[:, 2 * SIDE :].sum() + blue[:, 2 * SIDE :].sum() > 0
    grey_up = np.argwhere((chart[:, :SIDE] == 200).all(2)).mean(0)  # y = 1 in the first picture is above the rest
    assert grey_up[0] < middle
    np.testing.assert_array_equal(projections(values.T, points.T), chart)
    np.testing.assert_array_equal(projections(values.sum(1), points), chart)


def test_the_strongest_point_is_seen():
    points = np.zeros((50, 3))
    values = np.full(50, 0.01)
    values[20] = -1
    chart = projections(values, points).astype(int)
    assert chart[SIDE // 2, SIDE // 2, 2] > chart[SIDE // 2, SIDE // 2, 0] + 100


def test_what_does_not_belong_together():
    for values, signal in ((np.ones(3), np.ones(4)), (np.ones((2, 3)), np.ones((3, 3))), (np.ones((1, 1, 3)),) * 2):
        with pytest.raises(InputError, match="does not belong to a signal"):
            waveform(values, signal)
    for values, points in ((np.ones((4, 3)), np.ones((5, 3))), (np.ones(5), np.ones((5, 2))), (np.ones(3), np.ones(3))):
        with pytest.raises(InputError, match="does not belong to points"):
            projections(values, points)
    for draw in (waveform, projections):
        with pytest.raises(InputError, match="NaN"):
            draw(np.full((3, 3), np.nan), np.ones((3, 3)))
