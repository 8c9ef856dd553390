"""Pictures by their properties: what is white, red, blue, transparent; and that stronger looks stronger."""

from __future__ import annotations

import numpy as np
import pytest
from skimage.color import rgb2lab
from skimage.data import chelsea

from onnxplain.errors import InputError, OptionError
from onnxplain.imaging.heatmap import COLORS, bars, heatmap, overlay, picture, render
from onnxplain.imaging.heatmap.colors import palette

PHOTO = np.ascontiguousarray(chelsea()[:120, :160])
RAMP = np.linspace(-1, 1, 65)[None].astype(np.float32)
DIVERGING = [c for c in COLORS if c != "auto" and palette(c, signed=False).zero]
SEQUENTIAL = [c for c in COLORS if c != "auto" and c not in DIVERGING]


def blob(height: int, width: int, y: float, x: float) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width]
    return np.exp(-(((rows / height - y) ** 2 + (columns / width - x) ** 2) * 40))


SIGNED = heatmap(blob(120, 160, 0.3, 0.3) - blob(120, 160, 0.7, 0.7)).astype(np.float32)


def test_signed_maps_are_blue_white_red() -> None:
    rgb = render(RAMP)[0].astype(int)
    assert rgb.shape == (65, 3)
    assert (rgb[32] == 255).all()
    assert (rgb[33:, 0] > rgb[33:, 2]).all()
    assert (rgb[:32, 2] > rgb[:32, 0]).all()


def test_maps_without_sign_are_inferno() -> None:
    np.testing.assert_array_equal(render(np.abs(RAMP)), render(np.abs(RAMP), colors="inferno"))
    assert render(np.zeros((2, 2))).max() < 5


def test_rounding_errors_below_zero_are_no_sign() -> None:
    values = np.array([[1.0, 0.5, -1e-4]])
    np.testing.assert_array_equal(render(values), render(np.maximum(values, 0)))


@pytest.mark.parametrize("colors", DIVERGING)
def test_lightness_falls_on_both_sides_of_a_white_zero(colors: str) -> None:
    lightness = rgb2lab(render(RAMP, colors=colors))[0, :, 0]
    assert lightness[32] == pytest.approx(100)
    assert (np.diff(lightness[32:]) < 0).all()
    assert (np.diff(lightness[:33]) > 0).all()


@pytest.mark.parametrize("colors", ["inferno", "magma", "plasma", "viridis", "cividis", "hot"])
def test_lightness_rises_with_the_value(colors: str) -> None:
    lightness = rgb2lab(render(np.linspace(0, 1, 33)[None], colors=colors))[0, :, 0]
    assert (np.diff(lightness) > 0).all()


@pytest.mark.parametrize("colors", SEQUENTIAL)
def test_a_sequential_table_spreads_over_a_signed_map(colors: str) -> None:
    signed = render(np.array([[-1.0, 0, 1]]), colors=colors)[0].astype(int)
    assert len({tuple(color) for color in signed}) == 3


def test_unknown_colors() -> None:
    with pytest.raises(OptionError, match="Did you mean 'inferno'"):
        render(RAMP, colors="inferna")


@pytest.mark.parametrize("colors", COLORS)
def test_the_photo_stays_where_the_heatmap_is_zero(colors: str) -> None:
    values = SIGNED.copy()
    values[:, 60:100] = 0
    over = overlay(values, PHOTO, colors=colors)
    np.testing.assert_array_equal(over[:, 60:100], PHOTO[:, 60:100])
    assert (over[:, :60] != PHOTO[:, :60]).mean() > 0.25


def test_an_overlay_hides_more_where_the_heatmap_is_stronger() -> None:
    photo = np.full((1, 65, 3), 200, np.uint8)
    over = overlay(RAMP, photo).astype(int)[0]
    assert (np.diff(over[32:, 1]) < 0).all()  # green leaves as red comes
    assert (np.diff(over[:33, 0]) > 0).all()  # red comes back as blue goes
    assert (over[33:, 0] > over[33:, 2]).all()
    assert (over[:32, 2] > over[:32, 0]).all()


def test_hues_over_a_colourful_photo_are_the_heatmaps() -> None:
    orange = np.full((1, 65, 3), (235, 120, 30), np.uint8)
    over = overlay(RAMP, orange).astype(int)[0]
    assert (over[:12, 2] > over[:12, 0]).all()  # blue on orange is blue, not grey


def test_no_white_veil_on_a_dark_photo() -> None:
    dark = np.zeros((1, 65, 3), np.uint8)
    over = overlay(RAMP, dark).astype(int)[0]
    assert (np.diff(over[32:, 0]) >= 0).all()
    assert over[:, 1].max() < 80


def test_opacity() -> None:
    np.testing.assert_array_equal(overlay(SIGNED, PHOTO, opacity=0), PHOTO)
    np.testing.assert_array_equal(overlay(SIGNED, PHOTO, opacity=1, fade=False), render(SIGNED))
    half = overlay(SIGNED, PHOTO, opacity=0.5, fade=False)
    assert np.abs(half - (PHOTO / 2 + render(SIGNED) / 2)).max() <= 0.5


@pytest.mark.parametrize("fade", [True, False])
def test_an_overlay_is_rounded_to_the_nearest(fade: bool) -> None:
    random = np.random.default_rng(0)
    photo = random.integers(0, 256, (203, 199, 3)).astype(np.uint8)  # more than one band
    values = random.uniform(-1.2, 1.2, photo.shape[:2]).astype(np.float32)
    colors = palette("rdbu", signed=True)
    colors = colors.for_photos() if fade else colors
    alpha = 0.8 * (np.minimum(np.abs(values, dtype=np.float64), 1) if fade else np.ones(values.shape))[..., None]
    greyed = np.minimum(2 * alpha, 1) if fade else 0
    base = photo + greyed * ((photo @ [0.299, 0.587, 0.114])[..., None] - photo)
    expected = base + alpha * (colors.paint(values) - base)
    got = overlay(values, photo, colors="rdbu", opacity=0.8, fade=fade)
    assert np.abs(got - expected).max() <= 0.5 + 1e-9  # both round in float64
    wide = np.zeros((203, 199, 4), np.uint8)
    wide[..., 2::-1] = photo
    wide.flags.writeable = False
    np.testing.assert_array_equal(overlay(values, wide[..., 2::-1], colors="rdbu", opacity=0.8, fade=fade), got)


@pytest.mark.parametrize("opacity", [-0.1, 1.1, float("nan")])
def test_bad_opacity(opacity: float) -> None:
    with pytest.raises(OptionError, match="opacity"):
        overlay(SIGNED, PHOTO, opacity=opacity)


@pytest.mark.parametrize("shape", [(7, 7), (40, 200), (1, 1), (300, 500), (120, 160), (1, 30)])
def test_heatmaps_of_any_size(shape: tuple[int, int]) -> None:
    values = np.full(shape, 0.5)
    over = overlay(values, PHOTO)
    assert over.shape == PHOTO.shape
    assert over.dtype == np.uint8
    assert (over != PHOTO).mean() > 0.5


def test_resizing_makes_no_new_sign_and_keeps_the_place() -> None:
    values = np.zeros((7, 7), np.float32)
    values[1, 5] = 1
    white = np.full((140, 140, 3), 255, np.uint8)
    over = overlay(values, white, colors="blue_white_red").astype(int)
    darkening = 255 - over.min(2)
    y, x = np.unravel_index(darkening.argmax(), darkening.shape)
    assert 25 <= y < 35
    assert 105 <= x < 115
    assert (over[..., 2] <= over[..., 0]).all()  # no blue
    assert darkening[70:, :70].max() == 0


@pytest.mark.parametrize(("size", "smooth"), [(140, True), (21, False)])
def test_only_coarse_maps_lose_the_creases_of_linear_interpolation(size: int, smooth: bool) -> None:
    values = np.zeros((7, 7), np.float32)
    values[3, 3] = 1
    grey = np.full((size, size, 3), 200, np.uint8)
    row = overlay(values, grey, colors="blue_white_red", opacity=1).astype(int)[size // 2, :, 1]
    slopes = np.diff(row) / (200 * 7 / size)  # -1 and 1 for linear interpolation of the peak
    assert (np.abs(np.diff(slopes)).max() < 0.5) == smooth
    assert (row.min() > 60) == smooth  # the peak of the fine one is kept


def test_bad_images_and_heatmaps() -> None:
    for photo in (PHOTO.astype(np.float32), PHOTO[..., 0], PHOTO[..., :2], PHOTO[:0]):
        with pytest.raises(InputError, match="photo"):
            overlay(SIGNED, photo)
    for values in (SIGNED[0], SIGNED[None], SIGNED * np.nan):
        with pytest.raises(InputError, match="heatmap"):
            render(values)


def test_pictures_of_maps_are_tiles() -> None:
    values = np.random.default_rng(0).normal(size=(3, 8, 14))
    drawn = picture(values)
    assert drawn.shape == (256, 448, 3)
    np.testing.assert_array_equal(drawn[16::32, 16::32], render(heatmap(values)))
    assert picture(np.ones((1000, 900))).shape == (1000, 900, 3)  # large enough as it is
    assert picture(np.ones((1, 1000))).shape == (64, 1000, 3)


def test_pictures_on_photos_are_smoothed_by_one_percent() -> None:
    values = np.random.default_rng(0).normal(size=(3, 200, 300))
    np.testing.assert_array_equal(picture(values, PHOTO), overlay(heatmap(values, smooth=2.0), PHOTO))
    np.testing.assert_array_equal(picture(values, PHOTO, smooth=0), overlay(heatmap(values), PHOTO))
    np.testing.assert_array_equal(picture(np.moveaxis(values, 0, 2), PHOTO, layout="HWC"), picture(values, PHOTO))


def test_pictures_of_zeros() -> None:
    np.testing.assert_array_equal(picture(np.zeros((3, 20, 30)), PHOTO), PHOTO)
    assert picture(np.zeros(5)).min() == 128  # the zero line only


def test_picture_names_a_bad_rank() -> None:
    for image in (None, PHOTO):
        with pytest.raises(InputError, match="shape"):
            picture(np.float32(3), image)
        with pytest.raises(InputError, match="shape"):
            picture(np.zeros((1, 3, 4, 5)), image)


def test_bars_point_up_and_down() -> None:
    chart = bars([1.0, -0.5, 0.0]).astype(int)[16:-16, 16:-16]
    red, blue = chart[..., 0] > chart[..., 2] + 50, chart[..., 2] > chart[..., 0] + 50
    height, third = chart.shape[0], chart.shape[1] // 3
    assert red[: height // 2 - 1, : third - 1].all()
    assert not red[:, third:].any()
    assert blue[:, third : 2 * third - 1].sum(0) == pytest.approx(height / 4, abs=2)
    assert not blue[: height // 2].any()


def test_bars_of_values_without_sign_use_the_whole_height() -> None:
    chart = bars([1.0, 0.5]).astype(int)[16:-16, 16:-16]
    red = chart[..., 0] > chart[..., 2] + 50
    assert red.sum(0)[0] >= 318
    assert red.sum(0)[-2] == pytest.approx(160, abs=1)


@pytest.mark.parametrize("count", [1, 959, 960, 961, 100_000])
def test_bars_of_any_length_lose_no_peak(count: int) -> None:
    values = np.zeros(count)
    values[count // 3] = 1
    values[-1] -= 0.5 if count > 1 else 0
    chart = bars(values).astype(int)
    assert chart.shape[1] <= 992
    assert (chart[..., 0] > chart[..., 2] + 50).any(1).sum() > 150
    assert (chart[..., 2] > chart[..., 0] + 50).any() == (count > 1)
