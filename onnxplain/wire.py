"""The wire format of a model file: large tensors are taken out of it without being parsed or copied.

Protobuf's own parser copies every weight several times, which costs seconds and gigabytes for large models. So the
bytes are walked once here, and the large tensors of the main graph become views on them; what is left is small. In the
small model a stub stands for each of these tensors: name, type and shape, with the data marked as external.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx

LARGE = 1024  # bytes from which on a tensor is taken out

_MODEL_GRAPH, _GRAPH_NODE, _GRAPH_INITIALIZER, _TENSOR_RAW = 7, 1, 5, 9  # field numbers in onnx.proto
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def split(data: bytes) -> tuple[bytes, dict[str, np.ndarray[Any, Any]]]:
    """Separate a serialized model from its large tensors, which are returned by name.

    Raises
    ------
    ValueError
        The bytes are no protobuf message, or are cut off.
    """
    view = memoryview(data)
    weights: dict[str, np.ndarray[Any, Any]] = {}
    parts: list[bytes | memoryview] = []
    for number, wire, start, body, end in _fields(view):
        if number == _MODEL_GRAPH and wire == _BYTES:
            parts.append(_field(number, _light_graph(view[body:end], weights)))
        else:
            parts.append(view[start:end])
    return b"".join(parts), weights


def join(model: onnx.ModelProto, weights: Mapping[str, np.ndarray[Any, Any]]) -> Iterator[bytes | memoryview]:
    """Serialize a model with further initializers, part by part: the opposite of `split`, as sparing with copies."""
    rest = onnx.ModelProto()
    rest.CopyFrom(model)
    rest.ClearField("graph")
    graph = model.graph.SerializeToString()
    heads = [_head(name, array) for name, array in weights.items()]
    size = len(graph) + sum(len(head) + array.nbytes for head, array in zip(heads, weights.values(), strict=True))
    yield rest.SerializeToString() + _key(_MODEL_GRAPH, size)
    yield graph
    for head, array in zip(heads, weights.values(), strict=True):
        yield head
        yield bytes_of(array)


def _head(name: str, array: np.ndarray[Any, Any]) -> bytes:
    """Serialize what comes before the data of an initializer."""
    tensor = onnx.TensorProto(name=name, dims=array.shape)
    tensor.data_type = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
    head: bytes = tensor.SerializeToString() + _key(_TENSOR_RAW, array.nbytes)
    return _key(_GRAPH_INITIALIZER, len(head) + array.nbytes) + head


def bytes_of(array: np.ndarray[Any, Any]) -> memoryview:
    """Look at an array's data as bytes; only an array that is not contiguous is copied."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def is_plain(dtype: np.dtype[Any]) -> bool:
    """Whether ONNX stores the dtype as numpy does (it packs several 4-bit numbers into one byte)."""
    return dtype.kind in "biufc" or dtype.name.startswith(("bfloat16", "float8"))


def _light_graph(graph: memoryview, weights: dict[str, np.ndarray[Any, Any]]) -> bytes:
    parts: list[bytes | memoryview] = []
    for number, wire, start, body, end in _fields(graph):
        taken = None
        if wire == _BYTES and end - body > LARGE:
            if number == _GRAPH_INITIALIZER:
                taken = _take(graph[body:end], "", weights)
            elif number == _GRAPH_NODE:
                taken = _take_constant(graph[body:end], weights)
        parts.append(graph[start:end] if taken is None else _field(_GRAPH_INITIALIZER, taken.SerializeToString()))
    return b"".join(parts)


def _take(message: memoryview, name: str, weights: dict[str, np.ndarray[Any, Any]]) -> onnx.TensorProto | None:
    """Move a TensorProto's data to ``weights``; return its stub, or None where the data has no plain layout."""
    raw, rest = None, []
    for number, _, start, body, end in _fields(message):
        if number == _TENSOR_RAW:
            raw = message[body:end]
        else:
            rest.append(message[start:end])
    tensor = onnx.TensorProto.FromString(b"".join(rest))
    name = name or tensor.name
    if raw is not None:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
        if math.prod(tensor.dims) * dtype.itemsize != len(raw):
            return None  # packed types, or a broken tensor that ONNX Runtime shall refuse
        array = np.frombuffer(raw, dtype).reshape(tensor.dims)
    elif is_external(tensor):
        return None
    else:
        array = onnx.numpy_helper.to_array(tensor)
    weights[name] = array
    return stub(name, tensor.data_type, tensor.dims)


def _take_constant(message: memoryview, weights: dict[str, np.ndarray[Any, Any]]) -> onnx.TensorProto | None:
    node = onnx.NodeProto.FromString(message.tobytes())
    if (
        node.op_type != "Constant"
        or node.domain not in ("", "ai.onnx")
        or not any(a.HasField("t") for a in node.attribute)
    ):
        return None
    return _take(memoryview(node.attribute[0].t.SerializeToString()), node.output[0], weights)


def stub(name: str, data_type: int, dims: Any) -> onnx.TensorProto:
    """Make a tensor without data."""
    tensor = onnx.TensorProto(name=name, data_type=data_type, dims=dims, data_location=onnx.TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="taken-out")
    return tensor


def is_external(tensor: onnx.TensorProto) -> bool:
    """Whether the tensor's data lies elsewhere."""
    return tensor.data_location == onnx.TensorProto.EXTERNAL


def _fields(message: memoryview) -> Iterator[tuple[int, int, int, int, int]]:
    """Field number, wire type, start of the field, start and end of its content."""
    position = 0
    while position < len(message):
        start = position
        tag, position = _varint(message, position)
        number, wire = tag >> 3, tag & 7
        if wire == _BYTES:
            size, position = _varint(message, position)
        elif wire == _VARINT:
            size = _varint(message, position)[1] - position
        elif wire in (_FIXED32, _FIXED64):
            size = 4 if wire == _FIXED32 else 8
        else:
            raise ValueError(f"wire type {wire} at byte {start}")
        if position + size > len(message):
            raise ValueError(f"a field of {size} bytes at byte {start} ends after byte {len(message)}")
        yield number, wire, start, position, position + size
        position += size


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(message):
            raise ValueError("cut off")
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise ValueError("a number of more than 10 bytes")


def _field(number: int, content: bytes) -> bytes:
    return _key(number, len(content)) + content


def _key(number: int, size: int) -> bytes:
    return _encoded(number << 3 | _BYTES) + _encoded(size)


def _encoded(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
