"""From an attribution to a heatmap in [-1, 1]."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest

from onnxplain.errors import InputError, OptionError
from onnxplain.imaging.heatmap import POOLINGS, heatmap
from onnxplain.imaging.heatmap.reduce import blur, pool

RNG = np.random.default_rng(0)
VALUES = RNG.normal(size=(3, 20, 30)).astype(np.float32)


def test_the_default_sums_channels_and_divides_by_a_percentile() -> None:
    pooled = VALUES.astype(np.float64).sum(0)
    expected = np.clip(pooled / np.percentile(np.abs(pooled), 99.5), -1, 1)
    got = heatmap(VALUES)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    assert got.min() == -1 or got.max() == 1
    np.testing.assert_array_equal(np.sign(got), np.sign(pooled))


def test_percentile_100_clips_nothing() -> None:
    got = heatmap(VALUES[0], percentile=100)
    np.testing.assert_allclose(got, VALUES[0] / np.abs(VALUES[0]).max(), rtol=1e-6)


def test_layouts_agree() -> None:
    for layout in ("HWC", "auto"):
        np.testing.assert_array_equal(heatmap(VALUES), heatmap(np.moveaxis(VALUES, 0, 2), layout=layout))


@pytest.mark.parametrize(
    ("shape", "result"), [((3, 20, 3), (20, 3)), ((64, 7, 7), (7, 7)), ((20, 30, 1), (20, 30)), ((20, 30, 4), (20, 30))]
)
def test_automatic_layout(shape: tuple[int, ...], result: tuple[int, ...]) -> None:
    assert heatmap(np.ones(shape)).shape == result


@pytest.mark.parametrize("pooling", ["abs_sum", "max", "norm"])
def test_poolings_without_sign(pooling: str) -> None:
    assert heatmap(VALUES, pooling=pooling).min() >= 0
    np.testing.assert_array_equal(heatmap(VALUES, pooling=pooling), heatmap(-VALUES, pooling=pooling))


DEFINITIONS = {
    "sum": sum,
    "abs_sum": lambda pixel: sum(map(abs, pixel)),
    "mean": lambda pixel: sum(pixel) / len(pixel),
    "max": lambda pixel: max(map(abs, pixel)),
    "norm": lambda pixel: math.hypot(*pixel),
}


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int8])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_each_pooling_is_its_definition_pixel_by_pixel(pooling: str, dtype: type) -> None:
    values = (RNG.normal(size=(5, 6, 7)) * 40).astype(dtype)
    values[:, 0, 0] = -128  # whose magnitude an int8 cannot hold
    given = values.copy()
    given.flags.writeable = False
    expected = [[DEFINITIONS[pooling](values[:, i, j].tolist()) for j in range(7)] for i in range(6)]
    got = pool(given, "CHW", pooling)
    assert got.dtype == np.float64
    np.testing.assert_allclose(got, expected, rtol=1e-13, atol=1e-13)
    np.testing.assert_array_equal(pool(np.moveaxis(given, 0, 2), "HWC", pooling), got)


def test_vectors_and_maps_have_one_channel() -> None:
    assert heatmap(VALUES[0, 0]).shape == (1, 30)
    np.testing.assert_array_equal(pool(VALUES[0]), VALUES[0].astype(np.float64))


@pytest.mark.parametrize("dtype", [np.float16, np.int64, np.float64])
def test_every_number_type(dtype: type) -> None:
    values = np.arange(-6, 6).reshape(1, 3, 4)
    np.testing.assert_array_equal(heatmap(values.astype(dtype)), heatmap(values.astype(np.float32)))


def test_zeros_stay_zeros() -> None:
    for smooth in (0.0, 1.5):
        np.testing.assert_array_equal(heatmap(np.zeros((3, 4, 5)), smooth=smooth), np.zeros((4, 5)))


def test_a_map_with_few_values_shows_them() -> None:
    values = np.zeros((100, 100))
    values[50, 50] = -3  # far fewer than 0.5 %
    assert heatmap(values)[50, 50] == -1
    assert np.count_nonzero(heatmap(values)) == 1


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_scale_does_not_matter(scale: float) -> None:
    np.testing.assert_allclose(heatmap(VALUES.astype(np.float64) * scale), heatmap(VALUES), atol=1e-6)


def test_smoothing_is_a_gaussian_before_scaling() -> None:
    pooled = cv2.GaussianBlur(VALUES.astype(np.float64).sum(0), (0, 0), 2.0, borderType=cv2.BORDER_REFLECT)
    np.testing.assert_allclose(heatmap(VALUES, smooth=2.0), heatmap(pooled), atol=1e-6)
    single = np.zeros((31, 31))
    single[15, 15] = 1
    blurred = heatmap(single, smooth=2.0, percentile=100)
    assert blurred[15, 17] == pytest.approx(np.exp(-(2**2) / (2 * 2.0**2)), rel=1e-3)


def test_smoothing_keeps_the_sum() -> None:
    values = VALUES[0].astype(np.float64)
    assert blur(values, 1.0).sum() == pytest.approx(values.sum(), rel=1e-6)


@pytest.mark.parametrize("values", [np.float32(1), np.zeros((1, 3, 4, 5)), np.zeros((0, 4)), [[1, np.nan]], [np.inf]])
def test_bad_arrays(values: np.ndarray) -> None:
    with pytest.raises(InputError):
        heatmap(values)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"pooling": "summ"}, "Did you mean 'sum'"),
        ({"layout": "NCHW"}, "CHW"),
        ({"percentile": 0}, "percentile"),
        ({"percentile": 101}, "percentile"),
        ({"smooth": -1}, "smooth"),
        ({"smooth": float("nan")}, "smooth"),
    ],
)
def test_bad_options(options: dict, named: str) -> None:
    with pytest.raises(OptionError, match=named):
        heatmap(VALUES, **options)
