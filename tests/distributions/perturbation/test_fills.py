"""Baselines that are made of the sample: blurred, and inpainted."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

import onnxplain as ox
from onnxplain.distributions.fills import blurred, inpainted
from onnxplain.errors import OptionError
from onnxplain.methods import forward_only
from tests.canonize.expansions.test_ml import COLUMNS, Case
from tests.distributions.perturbation.cases import made, rise_mask
from tests.models import IMAGES, MLP, SIGNAL, TOKENS, TWO_INPUTS, VOLUME, Array, Tiny
from tests.reference import relative_error, rng

HIDING = [name for name in forward_only() if name != "feature_permutation"]


def gaussian(x: Array, axes: tuple[int, ...]) -> Array:
    """Dense float64: each axis times a matrix of normalised weights, mirrored at the borders, cut 4 widths away."""
    width = min(x.shape[axis] for axis in axes) / 22
    reach = (int(np.rint(8 * width + 1)) | 1) // 2
    offsets = np.arange(-reach, reach + 1)
    weights = np.exp(-(offsets**2) / (2 * width**2))
    weights /= weights.sum()
    result = x.astype(np.float64)
    for axis in axes:
        n = x.shape[axis]
        matrix = np.zeros((n, n))
        for row in range(n):
            for offset, weight in zip(offsets, weights, strict=True):
                place = (row + offset) % (2 * n)
                matrix[row, place if place < n else 2 * n - 1 - place] += weight
        result = np.moveaxis(np.tensordot(matrix, result, (1, axis)), 0, axis)
    return result


SHAPES = [
    ((2, 300), (1,)),
    ((2, 3, 100), (2,)),
    ((2, 3, 60, 44), (2, 3)),
    ((2, 40, 66, 3), (1, 2)),
    ((1, 2, 30, 44, 25), (2, 3, 4)),
    ((3, 1, 1, 7), (2, 3)),
]


@pytest.mark.parametrize(("shape", "axes"), SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_blur_against_dense_weights(shape: tuple[int, ...], axes: tuple[int, ...], dtype: Any) -> None:
    x = rng(1).normal(size=shape).astype(dtype)
    found = blurred(x)
    assert found.dtype == dtype
    assert relative_error(found, gaussian(x, axes)) < (1e-6 if dtype == np.float32 else 1e-12)
    assert min(shape[axis] for axis in axes) < 22 or relative_error(found, x) > 0.3


def test_a_pixel_becomes_a_bell_of_ten_pixels() -> None:
    x = np.zeros((1, 1, 224, 300))
    x[0, 0, 112, 150] = 1
    along = blurred(x)[0, 0].sum(axis=0)
    assert np.sqrt(along @ (np.arange(300) - 150.0) ** 2) == pytest.approx(224 / 22, rel=1e-3)


@pytest.mark.parametrize("tiny", [SIGNAL, IMAGES, VOLUME], ids=lambda tiny: str(tiny.inputs["x"]))
@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("integrated_gradients", {"steps": 8}),
        ("expected_gradients", {"steps": 8}),
        ("internal_influence", {"steps": 8, "at": "c1"}),
        ("deeplift", {}),
        ("occlusion", {}),
        ("feature_ablation", {}),
        ("rise", {"samples": 20}),
        ("lime", {"samples": 20, "features": "grid"}),
        ("kernel_shap", {"samples": 20}),
        ("shapley_sampling", {"samples": 2}),
    ],
    ids=lambda part: part if isinstance(part, str) else "",
)
def test_blurred_baselines(tiny: Tiny, method: str, options: dict[str, Any]) -> None:
    """The same as handing in the blurred input as an array, one per sample."""
    x = tiny.x(2)
    known = "baselines" if method == "expected_gradients" else "baseline"
    found = ox.explain(tiny.proto(), x, method, target=1, **{known: "blur"}, **options).values
    if method == "expected_gradients":
        expected = [
            ox.explain(tiny.proto(), row, method, target=1, baselines=blurred(row), **options).values
            for row in np.split(x, 2)
        ]
        assert relative_error(found, np.concatenate(expected)) < 1e-5
    else:
        given = ox.explain(tiny.proto(), x, method, target=1, baseline=blurred(x), **options).values
        assert relative_error(found, given) < 1e-5
    plain = ox.explain(tiny.proto(), x, method, target=1, **options).values
    assert relative_error(found, plain) > 1e-3


def test_blurred_internal_tensors() -> None:
    x = IMAGES.x(2)
    inner = blurred(IMAGES.evaluate({"x": x}, "c1").reshape(2, 3, 9, 8).astype(np.float32))
    for method in ("integrated_gradients", "occlusion"):
        found, given = (
            ox.explain(IMAGES.proto(), x, method, target=1, at="c1", baseline=b).values for b in ("blur", inner)
        )
        assert relative_error(found, given) < 1e-4


# Inpainting


def test_constants_and_slopes_go_on_in_the_hole() -> None:
    """OpenCV itself, fed with these floats as they are, is off by up to 1.4."""
    hole = np.zeros((3, 40, 30), bool)
    hole[:, 10:20, 8:20] = True
    flat = np.broadcast_to(np.array([0.3, -2.0, 1e4], np.float32)[:, None, None], hole.shape)
    assert relative_error(inpainted(flat, hole), flat) < 1e-4
    down, right = np.mgrid[:40, :30] / 40
    for scale in (1.0, 1e-3, 1e5):
        slopes = (scale * np.stack([down, right - 2, down + right])).astype(np.float32)
        filled = inpainted(slopes, hole)
        np.testing.assert_array_equal(filled[~hole], slopes[~hole])
        assert abs(filled - slopes)[hole].max() < 0.15 * scale
    assert abs(cv2.inpaint(flat[0].copy(), hole[0].astype(np.uint8), 3, cv2.INPAINT_TELEA) - 0.3).max() > 1


@pytest.mark.parametrize("channel", [0, 2])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_telea_on_pixels(channel: int, dtype: Any) -> None:
    """What OpenCV makes of the same picture with 16 bits, up to its rounding; what lies in the hole does not matter."""
    down, right = np.mgrid[:32, :28]
    pixels = np.stack([np.rint(32767.5 * (1 + np.sin(down / a + right / b))) for a, b in ((5, 9), (8, 4), (11, 7))])
    hole = np.zeros(pixels.shape, bool)
    hole[0, 3:9, 5:12] = hole[1, 20:, 20:] = hole[2, ::5] = True
    by_cv2 = [
        cv2.inpaint(p.astype(np.uint16), h.astype(np.uint8), 3, cv2.INPAINT_TELEA)
        for p, h in zip(pixels, hole, strict=True)
    ]
    turned, where = np.moveaxis(pixels / 65535, 0, channel).astype(dtype), np.moveaxis(hole, 0, channel)
    found = inpainted(turned, where)
    assert found.dtype == dtype
    assert (
        abs(np.moveaxis(found, channel, 0) - np.array(by_cv2) / 65535)[hole].max() < 10 / 65535
    )  # it rounds all the way in
    np.testing.assert_array_equal(inpainted(np.where(where, 7, turned).astype(dtype), where), found)


def test_where_nothing_is_left() -> None:
    x = rng(2).normal(size=(2, 5, 6)).astype(np.float32)
    hole = np.zeros(x.shape, bool)
    hole[1] = True
    filled = inpainted(x, hole)
    np.testing.assert_array_equal(filled[0], x[0])
    np.testing.assert_allclose(filled[1], x[1].mean(), rtol=1e-6)


@pytest.mark.parametrize("method", ["occlusion", "feature_ablation"])
def test_inpainted_copies(method: str) -> None:
    """Against a loop over windows, or features, that are the same 3 x 2 cells here."""
    x = IMAGES.x(2)
    labels = (np.arange(9)[:, None] // 3 * 4 + np.arange(8) // 2)[None].repeat(2, axis=0)
    expected = np.zeros(x.shape)
    for k, cell in ((k, labels == number) for k in range(2) for number in range(12)):
        copy = np.where(cell, inpainted(x[k], cell), x[k])[None]
        expected[k][cell] = (IMAGES.evaluate({"x": x[[k]]}) - IMAGES.evaluate({"x": copy}))[0, 1]
    options = {"window": (3, 2), "stride": (3, 2)} if method == "occlusion" else {"features": labels}
    found = ox.explain(IMAGES.proto(), x, method, target=1, baseline="inpaint", **options).values
    assert relative_error(found, expected) < 1e-4


def test_inpainting_sums_to_the_change_from_the_mean_colour() -> None:
    x = IMAGES.x(2)
    flat = np.broadcast_to(x.mean(axis=(2, 3), keepdims=True), x.shape)
    change = (IMAGES.evaluate({"x": x}) - IMAGES.evaluate({"x": flat}))[:, 1]
    cells = np.arange(9)[:, None] // 3 + np.zeros((1, 8), int)
    for method in ("kernel_shap", "shapley_sampling"):
        values = ox.explain(IMAGES.proto(), x, method, target=1, baseline="inpaint", features=cells).values
        np.testing.assert_allclose(values[:, 0, ::3, 0].sum(axis=1), change, rtol=1e-3, atol=1e-4)


def test_inpainting_under_smooth_masks() -> None:
    """Where at least half is kept, nothing changes but by rounding; where nothing is, the fill is all."""
    x = IMAGES.x(1)
    rise: Any = ox.METHODS["rise"](samples=4, cells=2, baseline="inpaint").distribution
    copies = made(rise, {"x": x}, {}, np.array([(0, number) for number in range(4)]))["x"]
    for number, copy in enumerate(copies):
        mask = np.broadcast_to(rise_mask(rise, x[0], 0, number), x[0].shape)
        np.testing.assert_allclose(copy[mask >= 0.5], x[0][mask >= 0.5], rtol=2e-7)
        bare = mask == 0
        np.testing.assert_array_equal(copy[bare], inpainted(x[0], mask < 0.5)[bare])
    values = ox.explain(IMAGES.proto(), x, "rise", target=1, samples=30, baseline="inpaint").values
    assert np.isfinite(values).all()


def test_texts_called_blur_are_texts() -> None:
    feeds = {"x": np.ones((2, 4), np.float32), "c": np.array([["u"], ["w"]], object)}
    proto = Case(COLUMNS, feeds, version=2).proto()
    for text in ("blur", "inpaint"):
        found, other = (
            ox.explain(proto, feeds, "feature_ablation", wrt="c", baseline=b).values for b in (text, "no such word")
        )
        np.testing.assert_array_equal(found, other)


# Refusals


@pytest.mark.parametrize("method", ["integrated_gradients", "deeplift", *HIDING])
def test_misspelt_names(method: str) -> None:
    with pytest.raises(OptionError, match="no baseline 'blurr'\nDid you mean 'blur'"):
        ox.explain(MLP.proto(), MLP.x(1), method, baseline="blurr", progress=pytest.fail)
    with pytest.raises(OptionError, match="no baseline 'imprint'\nDid you mean 'inpaint'"):
        ox.explain(MLP.proto(), MLP.x(1), method, at="h", baseline="imprint", progress=pytest.fail)


@pytest.mark.parametrize("name", ["blur", "inpaint"])
@pytest.mark.parametrize("method", ["integrated_gradients", *HIDING])
def test_integers_are_neither_blurred_nor_inpainted(method: str, name: str) -> None:
    with pytest.raises(OptionError, match=f"of dtype int64 cannot hold a baseline of '{name}'\n.*floating-point"):
        ox.explain(TOKENS.proto(), np.array([[1, 2, 3, 4, 5]]), method, baseline=name, progress=pytest.fail)


@pytest.mark.parametrize("method", ["integrated_gradients", "deeplift", "internal_influence"])
def test_inpainting_is_for_methods_that_hide(method: str) -> None:
    options = {"at": "r1"} if method == "internal_influence" else {}
    with pytest.raises(OptionError, match=r"fills only the parts.*\n.*occlusion"):
        ox.explain(IMAGES.proto(), IMAGES.x(1), method, baseline="inpaint", progress=pytest.fail, **options)


@pytest.mark.parametrize("method", HIDING)
def test_inpainting_is_for_pictures(method: str) -> None:
    for tiny in (MLP, SIGNAL, VOLUME, TWO_INPUTS):
        with pytest.raises(OptionError, match=r"is for pictures, and '[xa]' has the shape"):
            ox.explain(tiny.proto(), tiny.feeds(1), method, baseline="inpaint", progress=pytest.fail)


def test_blurring_needs_an_axis_and_a_tensor_at_hand(tmp_path: Path) -> None:
    proto = Tiny("m (float[N] x) => (float[N] y) { y = Exp(x) }", {}, {"x": ()}, ()).proto()
    with pytest.raises(OptionError, match="needs an axis to blur along"):
        ox.explain(proto, np.ones(3, np.float32), "occlusion", baseline="blur")
    with pytest.raises(OptionError, match="'p1' is an internal tensor\nGive a number"):
        ox.explain(IMAGES.proto(), IMAGES.x(1), "deeplift", at="p1", baseline="blur")
    for method in ("occlusion", "integrated_gradients", "deeplift", "expected_gradients"):
        known = "baselines" if method == "expected_gradients" else "baseline"
        with pytest.raises(OptionError, match="made of each sample, outside of the graph"):
            ox.Explainer(IMAGES.proto(), method, **{known: "blur"}).export(tmp_path / "x.onnx")
    with pytest.raises(OptionError, match="made of each sample"):
        ox.explain(IMAGES.proto(), IMAGES.x(1), "taylor", root="segment", baseline="blur")
    assert not list(tmp_path.iterdir())


def test_opencv_is_not_imported_before_it_is_needed() -> None:
    code = "import sys, onnxplain; onnxplain.METHODS['occlusion'](baseline='blur'); print('cv2' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
