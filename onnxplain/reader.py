"""Protobuf in: a model file, its bytes or a ModelProto become a `Source`, and a ModelProto becomes a `Graph`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError

from onnxplain.errors import ModelError, UnsupportedModelError
from onnxplain.ir import Graph, Node, Shape, Value

OLDEST_OPSET, NEWEST_OPSET = 7, 26


@dataclass(frozen=True)
class Source:
    """A parsed model: weights that lie in external files are still there.

    Attributes
    ----------
    proto
        The model; nobody changes it.
    folder
        Where external data is looked for.
    path
        The file it came from, if any.
    """

    proto: onnx.ModelProto
    folder: Path
    path: Path | None

    @property
    def metadata(self) -> dict[str, str]:
        """The model's own metadata properties."""
        return {p.key: p.value for p in self.proto.metadata_props}


def read(model: str | os.PathLike[str] | bytes | onnx.ModelProto) -> Source:
    """Parse a model and check what can be checked without running it.

    Raises
    ------
    ModelError
        Not an ONNX file, truncated, an opset out of range, or external data missing.
    """
    path: Path | None = None
    if isinstance(model, onnx.ModelProto):
        proto, what = model, "the ModelProto"
    elif isinstance(model, bytes | bytearray | memoryview):
        proto, what = _parse(bytes(model), "the bytes"), "the bytes"
    else:
        path = Path(model)
        what = f"'{path}'"
        try:
            proto = _parse(path.read_bytes(), what)
        except FileNotFoundError:
            raise ModelError(f"there is no file {what}") from None
        except OSError as error:
            raise ModelError(f"cannot read {what}: {error.strerror}") from None
    if not proto.graph.node or not proto.opset_import:
        raise ModelError(f"{what} is not an ONNX model: it has no graph", "Is it a file of another format?")
    opset = max((o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), default=NEWEST_OPSET)
    if not OLDEST_OPSET <= opset <= NEWEST_OPSET:
        raise UnsupportedModelError(
            f"{what} uses opset {opset}; supported are {OLDEST_OPSET} to {NEWEST_OPSET}",
            "Convert it with onnx.version_converter.convert_version(model, 21).",
        )
    source = Source(proto, path.parent if path else Path.cwd(), path)
    _check_external_data(source)
    return source


def _parse(data: bytes, what: str) -> onnx.ModelProto:
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except DecodeError:
        raise ModelError(
            f"{what} is not an ONNX model, or is cut off: protobuf cannot parse its {len(data)} bytes",
            "Compare its size or checksum with the original.",
        ) from None
    return proto


def tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Every tensor stored in a graph, in its Constant nodes and in its subgraphs."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            for body in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                yield from tensors(body)


def is_external(tensor: onnx.TensorProto) -> bool:
    """Whether the tensor's data lies in a file of its own."""
    return tensor.data_location == onnx.TensorProto.EXTERNAL


def external_location(tensor: onnx.TensorProto) -> tuple[str, int, int | None]:
    """File name, offset and length (None: to the end) of a tensor's external data."""
    entries = {e.key: e.value for e in tensor.external_data}
    length = entries.get("length")
    return entries.get("location", ""), int(entries.get("offset") or 0), int(length) if length else None


def _check_external_data(source: Source) -> None:
    missing: dict[str, str] = {}
    for tensor in filter(is_external, tensors(source.proto.graph)):
        location, offset, length = external_location(tensor)
        file = source.folder / location
        if not file.is_file():
            missing[location] = "not found"
        elif file.stat().st_size < offset + (length or 0):
            missing[location] = "too short"
    if missing:
        files = ", ".join(f"'{name}' ({why})" for name, why in missing.items())
        raise ModelError(
            f"the model keeps weights in external files that are not usable: {files}",
            f"Put them into '{source.folder}', next to the model."
            if source.path
            else "Load the model from its path, next to its external files.",
        )


def array_of(tensor: onnx.TensorProto, folder: Path) -> np.ndarray[Any, Any]:
    """A tensor's data; external data is mapped into memory, not read."""
    if not is_external(tensor):
        return onnx.numpy_helper.to_array(tensor)
    location, offset, _ = external_location(tensor)
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    if not int(np.prod(tensor.dims)):
        return np.zeros(tuple(tensor.dims), dtype)
    return np.memmap(folder / location, dtype, "r", offset, tuple(tensor.dims))


def to_graph(proto: onnx.ModelProto, folder: Path) -> Graph:
    """Convert a canonical ModelProto with inferred shapes to the IR.

    Every attribute gets its default from the operator's schema, so code that looks at nodes needs no knowledge of defaults.
    """
    versions = {o.domain: o.version for o in proto.opset_import}
    return _graph(proto.graph, lambda t: array_of(t, folder), versions)


def _graph(
    graph: onnx.GraphProto, load: Callable[[onnx.TensorProto], np.ndarray[Any, Any]], versions: dict[str, int]
) -> Graph:
    constants = {t.name: load(t) for t in graph.initializer}
    nodes = []
    for proto in graph.node:
        if proto.op_type == "Constant" and len(proto.attribute) == 1 and proto.attribute[0].HasField("t"):
            constants[proto.output[0]] = load(proto.attribute[0].t)
        else:
            nodes.append(_node(proto, load, versions))
    inputs = tuple(_value(v) for v in graph.input if v.name not in constants)
    outputs = tuple(_value(v) for v in graph.output)
    values = {v.name: v for v in (*map(_value, graph.value_info), *outputs, *inputs) if v.name not in constants}
    return Graph(inputs, outputs, tuple(nodes), constants, values, graph.name or "graph")


def _node(
    proto: onnx.NodeProto, load: Callable[[onnx.TensorProto], np.ndarray[Any, Any]], versions: dict[str, int]
) -> Node:
    attrs = dict(_default_attributes(proto.op_type, proto.domain, versions.get(proto.domain, 1)))
    for attribute in proto.attribute:
        value = onnx.helper.get_attribute_value(attribute)
        if isinstance(value, onnx.TensorProto):
            value = load(value)
        elif isinstance(value, onnx.GraphProto):
            value = _graph(value, load, versions)
        elif isinstance(value, bytes):
            value = value.decode(errors="replace")
        elif isinstance(value, Iterable) and not isinstance(value, str):
            value = [v.decode(errors="replace") if isinstance(v, bytes) else v for v in value]
        if attribute.name in ("to", "dtype") and isinstance(value, int):
            value = onnx.helper.tensor_dtype_to_np_dtype(value)
        attrs[attribute.name] = value
    outputs = list(proto.output)
    while outputs and not outputs[-1]:
        outputs.pop()
    inputs = list(proto.input)
    while inputs and not inputs[-1]:
        inputs.pop()
    return Node(proto.op_type, tuple(inputs), tuple(outputs), attrs, proto.name, proto.domain)


def _default_attributes(op: str, domain: str, version: int) -> Iterator[tuple[str, Any]]:
    if not onnx.defs.has(op, version, domain):
        return
    for name, attribute in onnx.defs.get_schema(op, version, domain).attributes.items():
        default = attribute.default_value
        if default.type:
            value = onnx.helper.get_attribute_value(default)
            value = value.decode() if isinstance(value, bytes) else value
            yield name, list(value) if isinstance(value, Iterable) and not isinstance(value, str) else value


def _value(info: onnx.ValueInfoProto) -> Value:
    tensor = info.type.tensor_type
    shape: Shape | None = None
    if tensor.HasField("shape"):
        shape = tuple(
            d.dim_value if d.HasField("dim_value") else (d.dim_param or None) for d in tensor.shape.dim
        )
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type) if tensor.elem_type else np.dtype(object)
    return Value(info.name, dtype, shape)
