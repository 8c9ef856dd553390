"""Files appear complete or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from skimage.data import chelsea
from skimage.io import imread

from onnxplain.errors import OutputError
from onnxplain.imaging.heatmap import save, write

RGB = chelsea()[:40, :60]


def test_png_is_exact(tmp_path: Path) -> None:
    save(tmp_path / "a.png", RGB)
    np.testing.assert_array_equal(imread(tmp_path / "a.png"), RGB)


@pytest.mark.parametrize("name", ["a.jpg", "a.jpeg", "a.JPG"])
def test_jpeg_is_close(tmp_path: Path, name: str) -> None:
    save(str(tmp_path / name), RGB)
    assert (tmp_path / name).read_bytes()[:2] == b"\xff\xd8"
    assert np.abs(imread(tmp_path / name).astype(int) - RGB).mean() < 4


def test_npy_is_any_array(tmp_path: Path) -> None:
    values = np.arange(24, dtype=np.float16).reshape(2, 3, 4)
    save(tmp_path / "a.npy", values)
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), values)


def test_it_replaces(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_text("old")
    save(path, RGB)
    np.testing.assert_array_equal(imread(path), RGB)
    assert os.listdir(tmp_path) == ["a.png"]


def test_permissions_are_those_of_any_new_file(tmp_path: Path) -> None:
    save(tmp_path / "a.png", RGB)
    (tmp_path / "b").touch()
    assert (tmp_path / "a.png").stat().st_mode == (tmp_path / "b").stat().st_mode


@pytest.mark.parametrize("name", ["missing/a.png", "missing/a.npy", "file/a.png"])
def test_without_a_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="there is no folder"):
        save(tmp_path / name, RGB)
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("name", ["a.bmp", "a", ".png"])
def test_unknown_endings(tmp_path: Path, name: str) -> None:
    with pytest.raises(OutputError, match="unknown ending"):
        save(tmp_path / name, RGB)
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("array", [RGB / 255, RGB[..., 0], RGB[:0]])
def test_no_picture(tmp_path: Path, array: np.ndarray) -> None:
    with pytest.raises(OutputError, match="picture"):
        save(tmp_path / "a.png", array)
    assert not os.listdir(tmp_path)


def test_too_large_for_the_format(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="70000 x 1 pixels"):
        save(tmp_path / "a.jpg", np.zeros((1, 70_000, 3), np.uint8))
    assert not os.listdir(tmp_path)


def test_a_folder_of_that_name(tmp_path: Path) -> None:
    (tmp_path / "a.png").mkdir()
    with pytest.raises(OutputError, match=r"a\.png"):
        save(tmp_path / "a.png", RGB)
    assert os.listdir(tmp_path) == ["a.png"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    path = tmp_path / "a.png"
    path.write_text("old")

    def replace(*_: object) -> None:
        raise error

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(OutputError if isinstance(error, OSError) else KeyboardInterrupt):
        save(path, RGB)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.png"]


def test_an_encoder_that_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def imencode(*_: object) -> None:
        raise cv2.error("encoder")

    monkeypatch.setattr(write.cv2, "imencode", imencode)
    with pytest.raises(OutputError, match="60 x 40 pixels"):
        save(tmp_path / "a.png", RGB)
    assert not os.listdir(tmp_path)
