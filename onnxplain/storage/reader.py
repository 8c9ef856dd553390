"""Reading: a model file, its bytes or a ModelProto becomes a `Source`, and a ModelProto becomes a `Graph`."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from io import BufferedIOBase, BytesIO
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError

from onnxplain.errors import ModelError, UnsupportedModelError
from onnxplain.graph.ir import BATCH, EACH_SLICE, Dim, Graph, Multiple, Node, Shape, Value
from onnxplain.storage import shared_weights
from onnxplain.storage.digests import digest
from onnxplain.storage.external import external_array
from onnxplain.storage.tensors import LARGE_TENSOR, is_external, is_plain, stub, take_out

Weights = Mapping[str, np.ndarray[Any, Any]]

OLDEST_OPSET, NEWEST_OPSET = 7, 26  # of ONNX's own operators

_HOLD_GRAPHS = {onnx.AttributeProto.UNDEFINED, onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS}

_MULTIPLE = re.compile(rf"([0-9]+)\*{BATCH}")  # how `onnxplain.storage.writer` writes a `Multiple`

_NOT_ONNX = {  # first bytes of files that are mistaken for ONNX models
    b"PK\x03\x04": "a zip archive, perhaps a PyTorch or Keras model; export it to ONNX first",
    b"\x89HDF": "an HDF5 file, perhaps a Keras model; convert it with tf2onnx first",
    b"version https://git-lfs": "a Git LFS pointer, not the model; fetch it with 'git lfs pull'",
    b"\x1f\x8b": "compressed with gzip; unpack it first",
    b"<": "text with markup, perhaps the error page of a download",
}


@dataclass(frozen=True)
class Source:
    """A parsed model.

    Attributes
    ----------
    proto
        The model with stubs in place of its large tensors. It must not be changed.
    weights
        The large tensors by name. Tensors in external files are mapped into memory, not read.
    path
        The file that was read; None if the model was given as bytes or as a ModelProto.
    """

    proto: onnx.ModelProto
    weights: Weights
    path: Path | None

    @property
    def metadata(self) -> dict[str, str]:
        """The model's own metadata properties."""
        return {p.key: p.value for p in self.proto.metadata_props}

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the model and its weights, in hexadecimal digits."""
        return digest(self.proto.SerializeToString(deterministic=True), dict(sorted(self.weights.items())))


def read(model: str | os.PathLike[str] | bytes | onnx.ModelProto) -> Source:
    """Parse a model, and make all checks that need no run of it.

    Parameters
    ----------
    model
        Path of a file, its bytes, or a parsed model.

    Raises
    ------
    ModelError
        The model is not in ONNX format, is truncated, or lacks external data.
    UnsupportedModelError
        Its opset is older than `OLDEST_OPSET` or newer than `NEWEST_OPSET`.
    """
    path: Path | None = None
    file: BufferedIOBase
    if isinstance(model, onnx.ModelProto):
        file, what = BytesIO(model.SerializeToString()), "the ModelProto"
    elif isinstance(model, bytes | bytearray | memoryview):
        file, what = BytesIO(model), "the bytes"
    else:
        path = Path(model)
        what = f"'{path}'"
        try:
            file = path.open("rb")
        except FileNotFoundError:
            raise ModelError(f"there is no file {what}") from None
        except OSError as error:
            raise ModelError(f"cannot read {what}: {error.strerror}") from None
    with file:
        proto, weights = _parse(file if file.seekable() else BytesIO(file.read()), what)
    opset = max((o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), default=NEWEST_OPSET)
    if not OLDEST_OPSET <= opset <= NEWEST_OPSET:
        raise UnsupportedModelError(
            f"{what} uses opset {opset}; supported are {OLDEST_OPSET} to {NEWEST_OPSET}",
            "Convert it with onnx.version_converter.convert_version(model, 21).",
        )
    _load_external(proto, path, weights)
    return Source(proto, weights, path)


def _parse(file: BufferedIOBase, what: str) -> tuple[onnx.ModelProto, dict[str, np.ndarray[Any, Any]]]:
    """Parse a file that error messages call ``what``."""
    start = file.read(32)
    if not start:
        raise ModelError(f"{what} is not an ONNX model: it is empty", "Was it downloaded or copied completely?")
    kind = next((kind for begin, kind in _NOT_ONNX.items() if start.startswith(begin)), None)
    if start[4:8] == b"ORTM":
        kind = "ONNX Runtime's own format; use the .onnx file it was made from"
    if kind is not None:
        raise ModelError(f"{what} is not an ONNX model: it is {kind}")
    try:
        proto, weights = take_out(file)
    except (ValueError, DecodeError) as error:
        size = file.seek(0, os.SEEK_END)
        raise ModelError(
            f"{what} is not an ONNX model, or is cut off: protobuf cannot parse its {size} bytes ({error})",
            "Compare its size or checksum with the original.",
        ) from None
    if not proto.graph.node or not proto.opset_import:
        missing = "nodes" if proto.opset_import else "operator set version"
        raise ModelError(f"{what} is not an ONNX model: it has no {missing}", "Is it a file of another format?")
    return proto, weights


def graphs_of(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """Yield a graph and all of its subgraphs."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type in _HOLD_GRAPHS:
                for body in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                    yield from graphs_of(body)


def nodes_of(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Yield all nodes of a graph and of its subgraphs."""
    for part in graphs_of(graph):
        yield from part.node


def operator_of(node: onnx.NodeProto) -> str:
    """Name a node's operator, as `Node.operator` does: after its domain, unless that is ONNX's own."""
    return node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"


def tensors_of(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Yield all tensors in a graph, in its nodes and in its subgraphs; the graph's own initializers come first."""
    for part in graphs_of(graph):
        yield from part.initializer
    for node in nodes_of(graph):
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t


def _load_external(model: onnx.ModelProto, path: Path | None, weights: dict[str, np.ndarray[Any, Any]]) -> None:
    """Load tensors from external files: large ones of the main graph into ``weights``, others into the model.

    If the model is an explainer that shares weights with other files, these are checked against the digests in its
    note, which is then dropped.
    """
    folder = path.parent if path else Path.cwd()
    files: set[str] = set()
    problems: dict[str, str] = {}
    for position, tensor in enumerate(tensors_of(model.graph)):
        main = position < len(model.graph.initializer)
        if not is_external(tensor) or (main and tensor.name in weights):
            continue
        location = next((e.value for e in tensor.external_data if e.key == "location"), "")
        try:
            array = external_array(tensor, folder)
        except ValueError as error:
            problems[location] = str(error)
            continue
        files.add(location)
        if main and array.nbytes > LARGE_TENSOR:
            weights[tensor.name] = array
            tensor.CopyFrom(stub(tensor.name, tensor.data_type, tensor.dims))
        else:
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(array), tensor.name))
    for note in [p for p in model.metadata_props if p.key == shared_weights.NOTE]:
        problems |= dict.fromkeys(
            shared_weights.changed(note.value, files, folder), "changed since the explainer was written"
        )
        model.metadata_props.remove(note)
    if problems:
        named = ", ".join(f"'{name}' ({why})" for name, why in problems.items())
        raise ModelError(
            f"the model keeps weights in external files that are not usable: {named}",
            f"Put them into '{folder}', next to the model."
            if path
            else "Load the model from its path, next to its external files.",
        )


def read_optimized(path: Path, mapped: bool = True) -> Source:
    """Read a model that ONNX Runtime has saved after its optimisations, with large tensors in a file next to it.

    Parameters
    ----------
    path
        The model's file.
    mapped
        Map the tensors' file into memory; otherwise it is read.
    """
    proto = onnx.load(path, load_external_data=False)
    weights = {}
    for graph in graphs_of(proto.graph):
        _drop_constant_nodes(graph)
        for tensor in filter(is_external, graph.initializer):
            array = external_array(tensor, path.parent, mapped)
            if graph is proto.graph and is_plain(array.dtype):
                weights[tensor.name] = array
            else:  # initializers of bodies stay in the message: several bodies may use the same name
                tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    return Source(proto, weights, path)


def _drop_constant_nodes(graph: onnx.GraphProto) -> None:
    """Drop Constant nodes that ONNX Runtime saved as initializers, too: it refuses to load bodies with both."""
    names = {tensor.name for tensor in graph.initializer}
    for node in [n for n in graph.node if n.op_type == "Constant" and n.output[0] in names]:
        graph.node.remove(node)


def to_graph(proto: onnx.ModelProto, weights: Weights = MappingProxyType({})) -> Graph:
    """Convert a ModelProto to a graph.

    Every attribute gets its default from the operator's schema, so that code that reads nodes need not know defaults.

    Parameters
    ----------
    proto
        A canonical model with inferred shapes.
    weights
        The data of its stubs by name.
    """
    versions = {o.domain: o.version for o in proto.opset_import}

    def load(tensor: onnx.TensorProto) -> np.ndarray[Any, Any]:
        return weights[tensor.name] if is_external(tensor) else onnx.numpy_helper.to_array(tensor)

    return _graph(proto.graph, load, versions)


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
    computed = {name for node in nodes for name in node.outputs} | {v.name for v in inputs}
    values = {v.name: v for v in (*map(_value, graph.value_info), *outputs, *inputs) if v.name in computed}
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
        else:
            value = _plain(value)
        if attribute.name in ("to", "dtype") and isinstance(value, int):
            value = onnx.helper.tensor_dtype_to_np_dtype(value)
        attrs[attribute.name] = value
    outputs = list(proto.output)
    while outputs and not outputs[-1]:
        outputs.pop()
    inputs = list(proto.input)
    while inputs and not inputs[-1] and (proto.op_type, len(inputs)) != ("Loop", 2):  # a Loop has at least two
        inputs.pop()
    each_slice = any(
        p.key == EACH_SLICE for p in proto.metadata_props
    )  # set by this package only: `prepare` drops it in users' models
    return Node(proto.op_type, tuple(inputs), tuple(outputs), attrs, proto.name, proto.domain, each_slice)


def _default_attributes(op: str, domain: str, version: int) -> Iterator[tuple[str, Any]]:
    """Yield names and values of the attributes for which an operator has a default."""
    if not onnx.defs.has(op, version, domain):
        return
    for name, attribute in onnx.defs.get_schema(op, version, domain).attributes.items():
        default = attribute.default_value
        if default.type:
            yield name, _plain(onnx.helper.get_attribute_value(default))


def _plain(value: Any) -> Any:
    """Convert bytes to text, and sequences to lists."""
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return [_plain(v) for v in value] if isinstance(value, Iterable) and not isinstance(value, str) else value


def _value(info: onnx.ValueInfoProto) -> Value:
    tensor = info.type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type) if tensor.elem_type else np.dtype(object)
    return Value(info.name, dtype, shape_of(info))


def shape_of(info: onnx.ValueInfoProto) -> Shape | None:
    """Read the declared shape of a value."""
    tensor = info.type.tensor_type
    if not tensor.HasField("shape"):
        return None
    return tuple(d.dim_value if d.HasField("dim_value") else _named(d.dim_param) for d in tensor.shape.dim)


def _named(size: str) -> Dim:
    """Read a size's name as `onnxplain.storage.writer` writes it; `prepare` renames sizes of users that look so."""
    multiple = _MULTIPLE.fullmatch(size)
    return Multiple(int(multiple[1])) if multiple else size or None
