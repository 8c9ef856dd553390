"""Large tensors are kept outside of protobuf messages, which copy what they hold, and stubs take their places."""

from __future__ import annotations

import os
from collections.abc import Sequence
from io import BufferedIOBase
from typing import Any

import numpy as np
import onnx
from google.protobuf.descriptor import Descriptor

from onnxplain.storage import wire

Array = np.ndarray[Any, Any]

LARGE_TENSOR = 1024  # bytes: larger tensors are taken out

_STUB, _LIFTED = "taken-out", "lifted"  # external locations: of stubs, and of data that `_lifted` left in the file

_FOLLOWED = {  # fields that lead to the data of tensors of the main graph
    "onnx.ModelProto.graph",
    "onnx.GraphProto.node",
    "onnx.GraphProto.initializer",
    "onnx.NodeProto.attribute",
    "onnx.AttributeProto.t",
    "onnx.TensorProto.raw_data",
}


def take_out(file: BufferedIOBase) -> tuple[onnx.ModelProto, dict[str, Array]]:
    """Read a model without the large tensors of its main graph, those of Constant nodes included.

    Each of them is read once, into the array that is returned; protobuf would hold a copy of it, and make another one
    for each access.

    Parameters
    ----------
    file
        A seekable file that holds a ModelProto.

    Returns
    -------
    model, weights
        A small message with stubs (name, type and shape, with the data marked as external), and the data by name.

    Raises
    ------
    ValueError, DecodeError
        The file does not hold a ModelProto, or ends too early.
    """
    model = onnx.ModelProto.FromString(_lifted(file, onnx.ModelProto.DESCRIPTOR, 0, file.seek(0, os.SEEK_END)))
    weights: dict[str, Array] = {}

    def taken(tensor: onnx.TensorProto, name: str) -> bool:
        """Move a tensor's data to ``weights`` if it is large; whether it was."""
        place = _place(tensor)
        if place is None and (is_external(tensor) or tensor.ByteSize() - _text_size(tensor) <= LARGE_TENSOR):
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
    light.CopyFrom(model)  # a message keeps the memory of data that were removed from it
    return light, weights


def _lifted(file: BufferedIOBase, message: Descriptor, start: int, end: int) -> bytes:
    """Copy the message at ``start:end`` of a file, with the data of large tensors replaced by their place in the file.

    ``message`` is the message's definition.
    """
    parts = []
    for field in wire.fields(file, message, start, end):
        if field.name not in _FOLLOWED or field.size <= LARGE_TENSOR:
            parts.append(wire.read_bytes(file, field.begin, field.end))
        elif field.message:
            parts.append(wire.length_delimited(field.key, _lifted(file, field.message, field.start, field.end)))
        else:
            tensor = onnx.TensorProto(data_location=onnx.TensorProto.EXTERNAL)
            for name, value in {"location": _LIFTED, "offset": field.start, "length": field.size}.items():
                tensor.external_data.add(key=name, value=str(value))
            parts.append(tensor.SerializeToString())
    return b"".join(parts)


def _text_size(tensor: onnx.TensorProto) -> int:
    """Bytes of a tensor's message that are not data: its name, which may be long, and its documentation."""
    return len(tensor.name.encode()) + len(tensor.doc_string.encode())


def _place(tensor: onnx.TensorProto) -> tuple[int, int] | None:
    """Offset and length, in bytes, of data that `_lifted` left in the file; None for any other tensor."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    return (int(entries["offset"]), int(entries["length"])) if entries.get("location") == _LIFTED else None


def _read(file: BufferedIOBase, place: tuple[int, int]) -> Array:
    """Read bytes at an offset, of a length, into an array."""
    offset, length = place
    data = np.empty(length, np.uint8)
    file.seek(offset)
    if file.readinto(data.data) != length:
        raise ValueError("it is shorter than before")
    return data


def stub(name: str, data_type: int, dims: Sequence[int]) -> onnx.TensorProto:
    """Make a tensor of a name, dtype and shape without data."""
    tensor = onnx.TensorProto(name=name, data_type=data_type, dims=dims, data_location=onnx.TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=_STUB)
    return tensor


def is_stub(tensor: onnx.TensorProto) -> bool:
    """Whether `stub` made the tensor."""
    return is_external(tensor) and tensor.external_data[0].value == _STUB


def is_external(tensor: onnx.TensorProto) -> bool:
    """Whether the tensor's data is outside of the message."""
    return tensor.data_location == onnx.TensorProto.EXTERNAL


def is_plain(dtype: np.dtype[Any]) -> bool:
    """Whether ONNX stores the dtype as numpy does (it packs several 4-bit numbers into one byte)."""
    return dtype.kind in "biufc" or dtype.name.startswith(("bfloat16", "float8"))
