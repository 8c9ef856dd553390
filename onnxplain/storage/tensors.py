"""Large tensors travel outside of protobuf messages, which copy whatever they hold: stubs stand for them there."""

from __future__ import annotations

import os
from collections.abc import Sequence
from io import BufferedIOBase
from typing import Any

import numpy as np
import onnx

Array = np.ndarray[Any, Any]

LARGE_TENSOR = 1024  # bytes from which on a tensor is taken out

_STUB, _LIFTED = "taken-out", "lifted"

# Messages of onnx.proto that lead to the data of tensors -> the fields to follow.
_FOLLOWED = {
    "Model": {7: "Graph"},
    "Graph": {1: "Node", 5: "Tensor"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor"},
    "Tensor": {9: "raw_data"},
}
_FIXED = {1: 8, 5: 4}  # wire type of a field -> bytes of its value


def take_out(file: BufferedIOBase) -> tuple[onnx.ModelProto, dict[str, Array]]:
    """Read a model without the large tensors of its main graph, those of Constant nodes included.

    Each of them is read once, to where it stays; protobuf would hold a copy, and make another one for who asks.

    Returns
    -------
    model, weights
        A small message with stubs (name, type and shape, with the data marked as external), and the data by name.

    Raises
    ------
    ValueError, DecodeError
        The file holds no such message.
    """
    model = onnx.ModelProto.FromString(_lifted(file, "Model", file.seek(0, os.SEEK_END), 0))
    weights: dict[str, Array] = {}

    def taken(tensor: onnx.TensorProto, name: str) -> bool:
        place = _place(tensor)
        if place is None and (is_external(tensor) or tensor.ByteSize() - _said(tensor) <= LARGE_TENSOR):
            return False
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
        if not is_plain(dtype):
            return False
        if place is None:
            weights[name] = onnx.numpy_helper.to_array(tensor)
        else:
            weights[name] = _read(file, place).view(dtype).reshape(tuple(tensor.dims))
        tensor.CopyFrom(stub(name, tensor.data_type, tensor.dims))
        return True

    for tensor in model.graph.initializer:
        taken(tensor, tensor.name)
    nodes = []
    for node in model.graph.node:
        constant = node.op_type == "Constant" and node.domain in ("", "ai.onnx") and len(node.attribute) == 1
        if constant and node.attribute[0].HasField("t") and taken(node.attribute[0].t, node.output[0]):
            model.graph.initializer.append(node.attribute[0].t)
        else:
            nodes.append(node)
    if len(nodes) < len(model.graph.node):
        kept = onnx.GraphProto(node=nodes)
        del model.graph.node[:]
        model.graph.node.extend(kept.node)
    others = (a.t for node in model.graph.node for a in node.attribute if a.HasField("t"))
    for tensor in (*model.graph.initializer, *others):
        place = _place(tensor)
        if place is not None:
            tensor.ClearField("external_data")
            tensor.ClearField("data_location")
            tensor.raw_data = _read(file, place).tobytes()
    light = onnx.ModelProto()
    light.CopyFrom(model)  # a message keeps the memory of what was in it
    return light, weights


def _lifted(file: BufferedIOBase, message: str, end: int, start: int) -> bytes:
    """A message that a file holds, but large tensors say where in the file their data is."""
    parts = []
    file.seek(start)
    while file.tell() < end:
        key = _number(file)
        follow, wire = _FOLLOWED[message].get(key >> 3), key & 7
        size = _number(file) if wire == 2 else _FIXED.get(wire, 0)
        start = file.tell()
        if start + size > end:
            raise ValueError("it ends within a field")
        if wire == 2 and follow and size > LARGE_TENSOR:
            if follow == "raw_data":
                tensor = onnx.TensorProto(data_location=onnx.TensorProto.EXTERNAL)
                for name, value in {"location": _LIFTED, "offset": start, "length": size}.items():
                    tensor.external_data.add(key=name, value=str(value))
                parts.append(tensor.SerializeToString())
                file.seek(size, os.SEEK_CUR)
            else:
                inner = _lifted(file, follow, start + size, start)
                parts += [_written(key), _written(len(inner)), inner]
        elif wire in (0, 1, 2, 5):
            value = _written(_number(file)) if wire == 0 else file.read(size)
            parts += [_written(key), _written(size) if wire == 2 else b"", value]
        else:
            raise ValueError(f"it has a field of type {wire}")
    return b"".join(parts)


def _number(file: BufferedIOBase) -> int:
    """Read a number of protobuf's: seven bits a byte, the lowest first."""
    value = 0
    for shift in range(0, 64, 7):
        byte = file.read(1)
        if not byte:
            raise ValueError("it ends within a number")
        value |= (byte[0] & 127) << shift
        if byte[0] < 128:
            return value
    raise ValueError("it has a number of more than 64 bits")


def _written(value: int) -> bytes:
    """Write a number of protobuf's."""
    written = bytearray()
    while value > 127:
        written.append(value & 127 | 128)
        value >>= 7
    return bytes([*written, value])


def _said(tensor: onnx.TensorProto) -> int:
    """Bytes of a tensor's message that are no data: its name, which may be long, and a text."""
    return len(tensor.name.encode()) + len(tensor.doc_string.encode())


def _place(tensor: onnx.TensorProto) -> tuple[int, int] | None:
    """Where the data is that `_lifted` has left out: offset and length."""
    found = {entry.key: entry.value for entry in tensor.external_data}
    return (int(found["offset"]), int(found["length"])) if found.get("location") == _LIFTED else None


def _read(file: BufferedIOBase, place: tuple[int, int]) -> Array:
    offset, length = place
    data = np.empty(length, np.uint8)
    file.seek(offset)
    if file.readinto(data.data) != length:
        raise ValueError("it is shorter than before")
    return data


def stub(name: str, data_type: int, dims: Sequence[int]) -> onnx.TensorProto:
    """Make a tensor without data."""
    tensor = onnx.TensorProto(name=name, data_type=data_type, dims=dims, data_location=onnx.TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=_STUB)
    return tensor


def is_stub(tensor: onnx.TensorProto) -> bool:
    """Whether it is one of `stub`'s."""
    return is_external(tensor) and tensor.external_data[0].value == _STUB


def is_external(tensor: onnx.TensorProto) -> bool:
    """Whether the tensor's data lies elsewhere."""
    return tensor.data_location == onnx.TensorProto.EXTERNAL


def is_plain(dtype: np.dtype[Any]) -> bool:
    """Whether ONNX stores the dtype as numpy does (it packs several 4-bit numbers into one byte)."""
    return dtype.kind in "biufc" or dtype.name.startswith(("bfloat16", "float8"))
