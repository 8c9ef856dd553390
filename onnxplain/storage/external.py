"""External data: tensors of a model whose bytes are in other files."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx

# Types of 4 and 2 bits, several of which share a byte.
_PACKED = {v for k, v in onnx.TensorProto.DataType.items() if k.endswith(("INT4", "INT2", "E2M1"))}


def external_array(tensor: onnx.TensorProto, folder: Path, mapped: bool = True) -> np.ndarray[Any, Any]:
    """Map a tensor's data in an external file into memory, or read it.

    Parameters
    ----------
    tensor
        A tensor with external data.
    folder
        The folder of the model's file.
    mapped
        Map the data into memory; otherwise they are read.

    Raises
    ------
    ValueError
        The file is missing, outside of the folder, too short, or the number of bytes does not match the tensor's shape.
    """
    entries = {e.key: e.value for e in tensor.external_data}
    file = (folder / entries.get("location", "")).resolve()
    if not file.is_relative_to(folder.resolve()):
        raise ValueError("outside of the model's folder")
    if not file.is_file():
        raise ValueError("not found")
    if tensor.data_type in _PACKED:
        tensor = copy.deepcopy(tensor)
        onnx.external_data_helper.load_external_data_for_tensor(tensor, str(folder))
        return onnx.numpy_helper.to_array(tensor)
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    shape, offset = tuple(tensor.dims), int(entries.get("offset") or 0)
    count = math.prod(shape)
    size = count * dtype.itemsize
    if int(entries.get("length") or size) != size:
        raise ValueError(f"'{tensor.name}' has {entries['length']} bytes there instead of {size}")
    if file.stat().st_size < offset + size:
        raise ValueError("too short")
    if not count:
        return np.zeros(shape, dtype)
    if mapped:
        return np.memmap(file, dtype, "r", offset, shape)
    return np.fromfile(file, dtype, count, offset=offset).reshape(shape)
