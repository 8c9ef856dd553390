"""Photos become model inputs: files, geometry, values; and the notes that say how."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import PIL.Image
import pytest
from skimage.data import chelsea, coins
from skimage.transform import resize as skimage_resize

from onnxplain.errors import InputError, OptionError
from onnxplain.imaging.images import (
    PRESETS,
    Preprocessing,
    find_note,
    preprocess,
    preset,
    read_image,
    read_labels,
    view,
)

PHOTO = chelsea()  # 300 x 451
SHAPE = (1, 3, 96, 128)


# Files


@pytest.mark.parametrize("ending", ["png", "jpg", "webp", "bmp", "tiff"])
def test_read_image(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a.{ending}"
    PIL.Image.fromarray(PHOTO).save(path, **({"quality": 95} if ending in ("jpg", "webp") else {}))
    image = read_image(path)
    assert image.shape == PHOTO.shape
    assert image.dtype == np.uint8
    assert np.abs(image.astype(int) - PHOTO).mean() < (3 if ending in ("jpg", "webp") else 1e-9)


def test_read_grey(tmp_path: Path) -> None:
    PIL.Image.fromarray(coins()).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), np.stack([coins()] * 3, axis=2))


def test_read_16_bits(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), PHOTO[:, :, ::-1].astype(np.uint16) * 257)
    assert np.abs(read_image(tmp_path / "a.png").astype(int) - PHOTO).max() <= 1


@pytest.mark.parametrize("bits", [8, 16])
def test_transparency_is_laid_over_white(tmp_path: Path, bits: int) -> None:
    alpha = np.tile(np.linspace(0, 255, PHOTO.shape[1]).astype(np.uint8), (PHOTO.shape[0], 1))[..., None]
    whole = np.concatenate([PHOTO[:, :, ::-1], alpha], axis=2)
    cv2.imwrite(str(tmp_path / "a.png"), whole if bits == 8 else whole.astype(np.uint16) * 257)
    expected = 255 + (PHOTO - 255.0) * (alpha / 255)
    assert np.abs(read_image(tmp_path / "a.png") - expected).max() <= 0.5 + 1e-6


def test_grey_with_transparency(tmp_path: Path) -> None:
    pixels = np.stack([coins(), np.full_like(coins(), 0)], axis=2)
    PIL.Image.fromarray(pixels, "LA").save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png").min() == 255


@pytest.mark.parametrize(("orientation", "turn"), [(1, 0), (3, 2), (6, 3), (8, 1)])
def test_the_cameras_orientation(tmp_path: Path, orientation: int, turn: int) -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    PIL.Image.fromarray(PHOTO).save(tmp_path / "a.jpg", exif=exif, quality=95)
    image = read_image(tmp_path / "a.jpg")
    upright = np.rot90(PHOTO, turn)
    assert image.shape == upright.shape
    assert np.abs(image.astype(int) - upright).mean() < 3


@pytest.mark.parametrize("content", [None, b"", b"no image", b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n"])
def test_no_image(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "cat.png"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"cat\.png"):
        read_image(path)


def test_a_folder_is_no_image(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read"):
        read_image(tmp_path)


def test_read_labels(tmp_path: Path) -> None:
    path = tmp_path / "labels.txt"
    path.write_bytes("\ufefftench\r\n\r\nKatze, Käfer \n\n".encode())
    assert read_labels(path) == ["tench", "", "Katze, Käfer"]
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="UTF-8"):
        read_labels(path)
    with pytest.raises(InputError, match="missing"):
        read_labels(tmp_path / "missing.txt")


# Geometry


def assert_pillow(seen: np.ndarray, expected: np.ndarray) -> None:
    # Pillow's weights have 22 bits, so what lies halfway between two levels may be rounded otherwise, in both passes.
    difference = np.abs(seen.astype(int) - expected)
    assert difference.max() <= 2
    assert (difference > 0).mean() < 0.01


@pytest.mark.parametrize(("name", "pillow"), [("linear", PIL.Image.BILINEAR), ("cubic", PIL.Image.BICUBIC)])
@pytest.mark.parametrize("size", [(224, 224), (97, 311), (600, 800), (1, 1)])
def test_resizing_is_pillows(name: str, pillow: int, size: tuple[int, int]) -> None:
    seen = view(PHOTO, Preprocessing(interpolation=name), (1, 3, *size)).astype(int)
    expected = np.asarray(PIL.Image.fromarray(PHOTO).resize(size[::-1], pillow)).astype(int)
    assert_pillow(seen, expected)


def test_resizing_without_antialiasing_is_sampling() -> None:
    seen = view(PHOTO, Preprocessing(antialias=False), SHAPE)
    expected = skimage_resize(PHOTO, SHAPE[2:], order=1, anti_aliasing=False, preserve_range=True)
    assert np.abs(seen - expected).max() < 1.5  # OpenCV's weights have 11 bits
    assert np.abs(view(PHOTO, Preprocessing(), SHAPE) - expected).max() > 10


def test_area_averages() -> None:
    seen = view(PHOTO[:300, :450], Preprocessing(interpolation="area"), (1, 3, 100, 150))
    expected = PHOTO[:300, :450].reshape(100, 3, 150, 3, 3).mean((1, 3))
    assert np.abs(seen - expected).max() <= 0.5 + 1e-6


@pytest.mark.parametrize("photo", [PHOTO, PHOTO.swapaxes(0, 1), PHOTO[:, :300], PHOTO[:50, :40]])
@pytest.mark.parametrize(("size", "shorter"), [(224, 256), (299, 342)])
def test_crop_is_torchvisions(photo: np.ndarray, size: int, shorter: int) -> None:
    pillow = PIL.Image.fromarray(np.ascontiguousarray(photo))
    factor = shorter / min(pillow.size)
    width, height = (shorter if side == min(pillow.size) else int(factor * side) for side in pillow.size)
    left, top = round((width - size) / 2), round((height - size) / 2)
    expected = pillow.resize((width, height), PIL.Image.BILINEAR).crop((left, top, left + size, top + size))
    seen = view(photo, Preprocessing(resize="crop", crop=0.875), (1, 3, size, size)).astype(int)
    assert_pillow(seen, np.asarray(expected))


def test_crop_of_everything_keeps_the_centre() -> None:
    seen = view(PHOTO, Preprocessing(resize="crop"), (1, 3, 300, 300))
    np.testing.assert_array_equal(seen, PHOTO[:, 76:376])


@pytest.mark.parametrize("size", [(64, 64), (100, 30), (30, 100), (225, 225)])
def test_crop_to_any_shape(size: tuple[int, int]) -> None:
    for photo in (PHOTO, PHOTO[:1], PHOTO[:, :1]):
        assert view(photo, Preprocessing(resize="crop", crop=0.9), (1, 3, *size)).shape == (*size, 3)


def test_pad_fits_in_and_fills_up() -> None:
    photo = np.full((50, 100, 3), 200, np.uint8)
    seen = view(photo, Preprocessing(resize="pad", fill=7), (1, 3, 64, 64))
    assert (seen[16:48] == 200).all()
    assert (seen[:16] == 7).all()
    assert (seen[48:] == 7).all()
    np.testing.assert_array_equal(
        view(np.swapaxes(photo, 0, 1), Preprocessing(resize="pad", fill=7), (1, 3, 64, 64)), np.swapaxes(seen, 0, 1)
    )


def test_a_photo_of_the_right_size_is_untouched() -> None:
    for resize in ("stretch", "crop", "pad"):
        np.testing.assert_array_equal(view(PHOTO, Preprocessing(resize=resize), (1, 3, 300, 451)), PHOTO)


def test_view_is_what_the_model_sees() -> None:
    how = PRESETS["imagenet-caffe"]
    values = preprocess(PHOTO, how, SHAPE)[0]
    back = (values + np.reshape(how.mean, (3, 1, 1)))[::-1].transpose(1, 2, 0)
    np.testing.assert_allclose(back, view(PHOTO, how, SHAPE), atol=1e-4)
    grey = view(PHOTO, PRESETS["unit"], (1, 1, 96, 128))
    np.testing.assert_allclose(preprocess(PHOTO, PRESETS["unit"], (1, 1, 96, 128))[0, 0] * 255, grey[..., 1], atol=1e-4)


# Values


EXACT = (1, 3, 300, 451)  # the photo's own size: no resampling
X = PHOTO.astype(np.float64)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("imagenet", (X / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]),
        ("imagenet-caffe", X[:, :, ::-1] - [103.939, 116.779, 123.68]),
        ("inception", X / 127.5 - 1),
        ("tf", X / 127.5 - 1),
        ("unit", X / 255),
        ("raw", X),
        ("efficientnet-lite", (X - 127) / 128),
    ],
)
def test_presets(name: str, expected: np.ndarray) -> None:
    how = Preprocessing.from_note({"preset": name, "crop": 1})
    values = preprocess(PHOTO, how, EXACT)
    assert values.shape == EXACT
    assert values.dtype == np.float32
    assert values.flags.c_contiguous
    np.testing.assert_allclose(values[0].transpose(1, 2, 0), expected, atol=2e-6, rtol=1e-6)
    np.testing.assert_array_equal(preprocess(PHOTO, how, (1, 300, 451, 3))[0], values[0].transpose(1, 2, 0))


def test_grey_is_luma() -> None:
    values = preprocess(PHOTO, Preprocessing(mean=[10], std=2), (1, 1, 300, 451))
    assert np.abs(values[0, 0] * 2 + 10 - X @ [0.299, 0.587, 0.114]).max() <= 0.51


@pytest.mark.parametrize("dtype", ["float16", "float64", "uint8"])
def test_element_types(dtype: str) -> None:
    values = preprocess(PHOTO, Preprocessing(dtype=dtype, mean=10.4), EXACT)
    assert values.dtype == dtype
    expected = np.clip(np.rint(X - 10.4), 0, 255) if dtype == "uint8" else X - 10.4
    np.testing.assert_allclose(
        values[0].transpose(1, 2, 0), expected, rtol=1e-3, atol=0.06 if dtype == "float16" else 0
    )


@pytest.mark.parametrize("photo", [X, PHOTO[..., 0], PHOTO[:0]])
def test_no_photo(photo: np.ndarray) -> None:
    with pytest.raises(InputError, match="uint8"):
        preprocess(photo, Preprocessing(), SHAPE)


# The model's input


@pytest.mark.parametrize(
    ("shape", "layout", "color", "size"),
    [
        ((1, 3, 224, 192), "NCHW", "RGB", (224, 192)),
        (("batch", 224, 192, 3), "NHWC", "RGB", (224, 192)),
        ((None, 1, 28, 28), "NCHW", "GRAY", (28, 28)),
        ((8, 28, 28, 1), "NHWC", "GRAY", (28, 28)),
        ((1, "C", 32, 32), "NCHW", "RGB", (32, 32)),
        ((1, 32, 32, "C"), "NHWC", "RGB", (32, 32)),
        ((1, 3, "H", "W"), "NCHW", "RGB", (10, 20)),
        ((None, None, None, 3), "NHWC", "RGB", (10, 20)),
        (("N", "C", "H", "W"), "NCHW", "RGB", (10, 20)),
        ((1, 3, 10, None), "NCHW", "RGB", (10, 20)),
    ],
)
def test_what_is_missing_comes_from_the_shape(
    shape: tuple[Any, ...], layout: str, color: str, size: tuple[int, int]
) -> None:
    how = Preprocessing(size=(10, 20) if size == (10, 20) else None).for_shape(shape)
    assert (how.layout, how.color, how.size) == (layout, color, size)
    channels = 1 if color == "GRAY" else 3
    assert preprocess(PHOTO, how, shape).shape == ((1, channels, *size) if layout == "NCHW" else (1, *size, channels))


@pytest.mark.parametrize(
    ("how", "shape", "named"),
    [
        (Preprocessing(), (1, 10), "four axes"),
        (Preprocessing(), (1, 4, 32, 32), "3 channels"),
        (Preprocessing(color="RGB"), (1, 1, 32, 32), "3 channels"),
        (Preprocessing(color="GRAY"), (1, 3, 32, 32), "1 channels"),
        (Preprocessing(layout="NHWC"), (1, 3, 32, 32), "32"),
        (Preprocessing(), (1, 3, "H", "W"), "any size"),
        (Preprocessing(), (1, 3, 32, None), "any size"),
        (Preprocessing(size=(30, 32)), (1, 3, 32, 32), "does not fit"),
        (PRESETS["imagenet"], (1, 1, 32, 32), "mean"),
        (Preprocessing(std=[1.0]), (1, 3, 32, 32), "std"),
    ],
)
def test_contradictions(how: Preprocessing, shape: tuple[Any, ...], named: str) -> None:
    with pytest.raises(OptionError, match=named):
        how.for_shape(shape)


# Notes


@pytest.mark.parametrize("how", PRESETS.values(), ids=PRESETS)
def test_notes_keep_everything(how: Preprocessing) -> None:
    assert Preprocessing.from_note(json.loads(json.dumps(how.to_note()))) == how


def test_a_note_may_start_from_a_preset() -> None:
    how = Preprocessing.from_note({"preset": "imagenet", "size": [10, 20], "labels": "names.txt"})
    assert how == Preprocessing(**{**vars(preset("imagenet")), "size": (10, 20)})


@pytest.mark.parametrize(
    ("note", "named"),
    [
        ({"sice": [1, 2]}, "sice.*\n.*Did you mean 'size'"),
        ({"size": 224}, "size"),
        ({"size": [224]}, "size"),
        ({"size": [224, 0]}, "size"),
        ({"size": [224.0, 224]}, "size"),
        ({"size": [True, 224]}, "size"),
        ({"layout": "CHW"}, "layout.*NCHW"),
        ({"color": "rgb"}, "color.*RGB"),
        ({"scale": "1/255"}, "scale"),
        ({"scale": True}, "scale"),
        ({"scale": float("nan")}, "scale"),
        ({"scale": 10**400}, "scale"),
        ({"mean": [1, 2]}, "mean"),
        ({"mean": [1, 2, "3"]}, "mean"),
        ({"mean": None}, "mean"),
        ({"mean": float("inf")}, "mean"),
        ({"std": 0}, "std"),
        ({"std": [1, 0.0, 1]}, "std"),
        ({"resize": "squash"}, "resize.*stretch"),
        ({"crop": 0}, "crop"),
        ({"crop": 1.1}, "crop"),
        ({"fill": -1}, "fill"),
        ({"fill": 1.5}, "fill"),
        ({"interpolation": "nearest"}, "interpolation.*linear"),
        ({"antialias": 1}, "antialias"),
        ({"dtype": "int8"}, "dtype.*float32"),
        ({"dtype": ["float32"]}, "dtype"),
        ({"labels": ["cat"]}, "labels"),
        ({"preset": "imagnet"}, "Did you mean 'imagenet'"),
        ({"preset": ["imagenet"]}, "preset"),
        (["imagenet"], "JSON object"),
    ],
)
def test_bad_notes_name_the_key(note: Any, named: str) -> None:
    with pytest.raises(OptionError, match=named):
        Preprocessing.from_note(note)


def test_find_note(tmp_path: Path) -> None:
    model = tmp_path / "cat.v1.onnx"
    metadata = {"onnxplain.preprocessing": '{"preset": "unit"}'}
    assert find_note(model, {}) is None
    assert find_note(None, {}) is None
    for path in (model, None):
        found = find_note(path, metadata)
        assert found is not None
        assert found.preprocessing == PRESETS["unit"]
        assert found.labels is None
        assert "metadata" in found.source
    (tmp_path / "cat.v1.preprocessing.json").write_text('{"preset": "raw", "labels": "names.txt"}')
    found = find_note(model, metadata)
    assert found is not None
    assert found.preprocessing == PRESETS["raw"]  # the file is easier to correct than the model: it wins
    assert found.labels == tmp_path / "names.txt"
    assert "cat.v1.preprocessing.json" in found.source


@pytest.mark.parametrize("content", [b"{", b"\xff", b'{"sice": 1}', b"[1]"])
def test_a_bad_note_names_its_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "cat.preprocessing.json").write_bytes(content)
    with pytest.raises(OptionError, match=r"cat\.preprocessing\.json"):
        find_note(tmp_path / "cat.onnx", {})
