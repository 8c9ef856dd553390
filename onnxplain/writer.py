"""Protobuf out: a `Graph` becomes a ModelProto, and a ModelProto becomes a file, all of it or nothing."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnxplain.errors import OutputError
from onnxplain.ir import IR_VERSION, OPSET, Graph, Node, Value

INLINE_LIMIT = 1_800_000_000  # bytes of weights; protobuf stops at 2 GiB, the rest is for everything else


def to_proto(graph: Graph, metadata: Mapping[str, str] | None = None) -> onnx.ModelProto:
    """Convert a graph to a ModelProto of opset `onnxplain.ir.OPSET`.

    Tensors larger than protobuf can hold get a reference to external data, which `save` writes.
    """
    domains = sorted({n.domain for n in _all_nodes(graph)} - {""})
    imports = [onnx.helper.make_opsetid("", OPSET), *(onnx.helper.make_opsetid(d, 1) for d in domains)]
    model = onnx.helper.make_model(_graph(graph), opset_imports=imports, ir_version=IR_VERSION)
    model.producer_name = "onnxplain"
    for key, value in (metadata or {}).items():
        model.metadata_props.add(key=key, value=value)
    return model


def size_of(graph: Graph) -> int:
    """Bytes of all constants."""
    return sum(array.nbytes for array in graph.constants.values())


def save(graph: Graph, path: str | os.PathLike[str], metadata: Mapping[str, str] | None = None) -> None:
    """Write a graph as an .onnx file; weights beyond protobuf's limit go to ``NAME.data`` next to it.

    The file appears complete or not at all.

    Raises
    ------
    OutputError
        The place cannot be written.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise OutputError(f"cannot write '{path}': there is no folder '{path.parent}'")
    temporary: list[Path] = []
    try:
        large = size_of(graph) > INLINE_LIMIT
        if large:
            data = _temporary(path.with_name(path.name + ".data"), temporary)
            graph, stubs = _externalized(graph, data, path.name + ".data")
        model = to_proto(graph, metadata)
        if large:
            model.graph.initializer.extend(stubs)
        file = _temporary(path, temporary)
        file.write_bytes(model.SerializeToString())
        if large:
            os.replace(data, path.with_name(path.name + ".data"))
        os.replace(file, path)
    except OSError as error:
        raise OutputError(f"cannot write '{path}': {error.strerror or error}") from None
    finally:
        for leftover in temporary:
            leftover.unlink(missing_ok=True)


def _temporary(path: Path, made: list[Path]) -> Path:
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    os.chmod(name, 0o666 & ~_umask())
    made.append(Path(name))
    return made[-1]


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _externalized(graph: Graph, file: Path, location: str) -> tuple[Graph, list[onnx.TensorProto]]:
    small = {k: v for k, v in graph.constants.items() if v.nbytes < 1024}
    stubs = []
    with open(file, "wb") as data:
        for name, array in graph.constants.items():
            if name in small:
                continue
            tensor = onnx.TensorProto(name=name, dims=array.shape, data_location=onnx.TensorProto.EXTERNAL)
            tensor.data_type = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
            data.write(b"\0" * (-data.tell() % 64))
            entries = {"location": location, "offset": data.tell(), "length": array.nbytes}
            for key, value in entries.items():
                tensor.external_data.add(key=key, value=str(value))
            np.ascontiguousarray(array).tofile(data)
            stubs.append(tensor)
    return graph.replace(constants=small), stubs


def _all_nodes(graph: Graph) -> list[Node]:
    return [n for node in graph.nodes for n in (node, *(m for body in node.subgraphs for m in _all_nodes(body)))]


def _graph(graph: Graph) -> onnx.GraphProto:
    return onnx.helper.make_graph(
        [_node(n) for n in graph.nodes],
        graph.name,
        [_value(v) for v in graph.inputs],
        [_value(v) for v in graph.outputs],
        [onnx.numpy_helper.from_array(np.ascontiguousarray(a), name=k) if a.ndim else onnx.numpy_helper.from_array(a, name=k) for k, a in graph.constants.items()],
    )


def _node(node: Node) -> onnx.NodeProto:
    attrs = {k: _attribute(v) for k, v in node.attrs.items() if not (isinstance(v, list) and not v)}
    return onnx.helper.make_node(node.op, node.inputs, node.outputs, node.name, domain=node.domain, **attrs)


def _attribute(value: Any) -> Any:
    if isinstance(value, Graph):
        return _graph(value)
    if isinstance(value, np.dtype):
        return onnx.helper.np_dtype_to_tensor_dtype(value)
    if isinstance(value, np.ndarray):
        return onnx.numpy_helper.from_array(value)
    return value


def _value(value: Value) -> onnx.ValueInfoProto:
    return onnx.helper.make_tensor_value_info(
        value.name, onnx.helper.np_dtype_to_tensor_dtype(value.dtype), value.shape
    )
