from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest

from onnxplain.storage.external import external_array
from onnxplain.storage.writer import external

DATA = np.arange(12, dtype=np.float32).reshape(3, 4)


def written(folder: Path, array: np.ndarray = DATA) -> onnx.TensorProto:
    with (folder / "data").open("wb") as file:
        file.write(b"before")
        return external(file, "t", array, "data")


@pytest.mark.parametrize("mapped", [True, False])
def test_what_was_written_is_read(mapped: bool, tmp_path: Path) -> None:
    array = external_array(written(tmp_path), tmp_path, mapped)
    assert isinstance(array, np.memmap) == mapped
    np.testing.assert_array_equal(array, DATA)


def test_types_that_share_bytes_are_unpacked(tmp_path: Path) -> None:
    tensor = onnx.numpy_helper.from_array(np.array([1, -2, 3], ml_dtypes.int4), "t")
    (tmp_path / "data").write_bytes(tensor.raw_data)
    onnx.external_data_helper.set_external_data(tensor, "data")
    tensor.ClearField("raw_data")
    assert external_array(tensor, tmp_path).astype(int).tolist() == [1, -2, 3]


def test_empty_tensors_need_no_bytes(tmp_path: Path) -> None:
    assert external_array(written(tmp_path, DATA[:0]), tmp_path).shape == (0, 4)


def test_data_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    tensor = written(tmp_path)
    (tmp_path / "data").write_bytes(b"short")
    with pytest.raises(ValueError, match="too short"):
        external_array(tensor, tmp_path)
    tensor.dims[0] = 2
    with pytest.raises(ValueError, match="'t' has 48 bytes there instead of 32"):
        external_array(tensor, tmp_path)
    (tmp_path / "data").unlink()
    with pytest.raises(ValueError, match="not found"):
        external_array(tensor, tmp_path)
    (tmp_path / "inner").mkdir()
    tensor.external_data[0].value = "../data"
    with pytest.raises(ValueError, match="outside of the model's folder"):
        external_array(tensor, tmp_path / "inner")
