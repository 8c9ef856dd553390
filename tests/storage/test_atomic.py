from __future__ import annotations

import os
from pathlib import Path

import pytest

from onnxplain.errors import OutputError
from onnxplain.storage.atomic import check_writable, replacing


def test_a_file_takes_the_place_of_another_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with open(path) as reader:
        with replacing(path) as temporary:
            temporary.write_text("new")
            assert path.read_text() == "old"
        assert reader.read() == "old"  # who reads the old file reads it to its end
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["a.txt"]


def write_half(path: Path, error: Exception) -> None:
    with replacing(path) as temporary:
        temporary.write_text("ne")
        raise error


def test_an_error_leaves_everything_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError, match="half way"):
        write_half(path, RuntimeError("half way"))
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_full_disk_is_an_output_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"cannot write '.*a.txt': No space left"):
        write_half(tmp_path / "a.txt", OSError(28, "No space left on device"))
    assert os.listdir(tmp_path) == []


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "folder.onnx").mkdir()
    for path, message in ((tmp_path / "no" / "a.onnx", "there is no folder"), (tmp_path / "folder.onnx", "folder")):
        with pytest.raises(OutputError, match=message), replacing(path) as temporary:
            temporary.write_text("new")
        with pytest.raises(OutputError, match=message):
            check_writable(path, {".onnx"})
    assert sorted(os.listdir(tmp_path)) == ["folder.onnx"]


def test_check_writable(tmp_path: Path) -> None:
    check_writable(tmp_path / "a.onnx", {".onnx"})
    check_writable(tmp_path / "a.npy", {".npy", ".png"})
    assert os.listdir(tmp_path) == []
    with pytest.raises(OutputError, match=r"must end in .npy or .png"):
        check_writable(tmp_path / "a.onnx", {".png", ".npy"})


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write everywhere")
def test_folders_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="no permission"):
        check_writable(tmp_path / "a.onnx", {".onnx"})
