"""Volumes: which slices are shown, where, and on one scale."""

from __future__ import annotations

import numpy as np
import pytest

from onnxplain.errors import InputError, OptionError
from onnxplain.imaging.heatmap import montage
from onnxplain.imaging.heatmap.volumes import GAP

BAND = 18


def tile(sheet, place, size):
    row, column = divmod(place, 4)
    height, width = size
    top, left = row * (height + BAND) + BAND, column * (width + GAP) + GAP
    return sheet[top : top + height, left : left + width].astype(int)


def test_few_slices_are_all_shown_on_one_scale():
    values = np.zeros((2, 5, 112, 112))
    for depth, value in enumerate([1, 0.5, 0, -0.5, -1]):
        values[:, depth] = value
    sheet = montage(values)
    assert sheet.shape == (2 * (224 + BAND) + GAP, 4 * (224 + GAP) + GAP, 3)
    greens = [tile(sheet, place, (224, 224))[..., 1] for place in range(5)]
    assert all((green == green[0, 0]).all() for green in greens)
    assert [g[0, 0] < 255 for g in greens] == [True, True, False, True, True]
    assert greens[0][0, 0] < greens[1][0, 0]
    assert greens[4][0, 0] < greens[3][0, 0]
    assert (tile(sheet, 6, (224, 224)) == 255).all()


def test_of_many_slices_the_strongest_of_each_slab_is_shown():
    values = np.zeros((1, 64, 224, 224), np.float32)
    values[0, 37, 50, 70] = -1
    sheet = montage(values)
    drawn = tile(sheet, 9, (224, 224))  # slices 36 to 39
    assert drawn[50, 70, 2] > drawn[50, 70, 0] + 100
    assert (np.delete(drawn.reshape(-1, 3), 50 * 224 + 70, axis=0) == 255).all()


def test_over_a_scan_it_shows_where_nothing_is_attributed():
    scan = np.random.default_rng(0).normal(size=(4, 224, 224))
    values = np.zeros((1, 4, 224, 224))
    values[0, 2, 100:120, 100:120] = 1
    plain = montage(np.zeros_like(values), scan)
    black, white = np.percentile(scan, (1, 99))
    grey = np.clip((scan[1] - black) / (white - black) * 255, 0, 255).astype(np.uint8)
    np.testing.assert_array_equal(tile(plain, 1, (224, 224)), np.repeat(grey[..., None], 3, axis=2))
    drawn = montage(values, scan)
    changed = np.argwhere((tile(drawn, 2, (224, 224)) != tile(plain, 2, (224, 224))).any(2))
    assert (changed.min(0).tolist(), changed.max(0).tolist()) == ([100, 100], [119, 119])
    for place in (0, 1, 3):
        np.testing.assert_array_equal(tile(drawn, place, (224, 224)), tile(plain, place, (224, 224)))


def test_channels_first_or_last():
    values = np.random.default_rng(0).normal(size=(2, 3, 30, 20))
    expected = montage(values, layout="CHW")
    last = np.moveaxis(values, 0, 3)
    np.testing.assert_array_equal(montage(last, layout="HWC"), expected)
    np.testing.assert_array_equal(montage(values, values), montage(values, values.mean(axis=0)))
    one = np.random.default_rng(0).normal(size=(5, 30, 20, 1))
    np.testing.assert_array_equal(montage(one), montage(np.moveaxis(one, 3, 0)))


def test_what_is_no_volume():
    volume = np.ones((1, 4, 5, 6))
    with pytest.raises(InputError, match="four axes"):
        montage(volume[0])
    with pytest.raises(InputError, match="does not belong"):
        montage(volume, volume[:, :3])
    with pytest.raises(InputError, match="NaN"):
        montage(volume * np.nan)
    with pytest.raises(OptionError, match="Did you mean 'CHW'"):
        montage(volume, layout="CHV")
    assert montage(volume * 0, volume * 0).shape
