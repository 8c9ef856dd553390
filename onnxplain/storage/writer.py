"""Writing: a `Graph` becomes a ModelProto, and a ModelProto becomes a file, which appears complete or not at all."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO

import numpy as np
import onnx

from onnxplain.graph.ir import EACH_SLICE, IR_VERSION, OPSET, Graph, Multiple, Node, Value
from onnxplain.storage.atomic import PathLike, replacing
from onnxplain.storage.digests import bytes_of
from onnxplain.storage.shared_weights import NOTE, WeightLocation, note_of
from onnxplain.storage.tensors import LARGE_TENSOR, is_plain

INLINE_LIMIT = 1_800_000_000  # bytes of weights: a message holds at most 2 GiB, and nodes and names need space, too

_ALIGNMENT = 64  # bytes: tensors start at multiples of it in files of external data, for vector instructions


def to_proto(graph: Graph, metadata: Mapping[str, str] | None = None) -> onnx.ModelProto:
    """Convert a graph to a ModelProto of opset `onnxplain.graph.ir.OPSET`."""
    domains, ops = sorted({n.domain for n in graph.all_nodes} - {""}), {n.op for n in graph.all_nodes}
    imports = [onnx.helper.make_opsetid("", OPSET), *(onnx.helper.make_opsetid(d, opset_of(d, ops)) for d in domains)]
    model = onnx.helper.make_model(_graph(graph), opset_imports=imports, ir_version=IR_VERSION)
    model.producer_name = "onnxplain"
    for key, value in (metadata or {}).items():
        model.metadata_props.add(key=key, value=value)
    return model


def size_of(graph: Graph) -> int:
    """Bytes of all constants of a graph."""
    return sum(array.nbytes for array in graph.constants.values())


def opset_of(domain: str, ops: Collection[str]) -> int:
    """The version to import of a domain other than ONNX's own, for a model with these operators."""
    if domain != "ai.onnx.ml":
        return 1
    return 5 if "TreeEnsemble" in ops else 4  # version 5 deprecates the older operators for trees


def save(
    graph: Graph,
    path: PathLike,
    metadata: Mapping[str, str] | None = None,
    inline: int = INLINE_LIMIT,
    shared: Mapping[str, WeightLocation] = MappingProxyType({}),
) -> None:
    """Write a graph as an .onnx file. The file appears complete or not at all.

    Parameters
    ----------
    graph
        The graph to write.
    path
        The file.
    metadata
        Properties to store in the file.
    inline
        If the weights have more bytes than this, large ones go to ``NAME.data`` next to the file. ONNX Runtime loads
        such a model twice as fast, as it maps the data into memory.
    shared
        Name of a constant -> its location in a file that exists. Such constants are not written again, and the file
        gets a note of the digests of those files.

    Raises
    ------
    OutputError
        The file cannot be written.
    """
    path = Path(path)
    graph, whole = graph.replace(constants={k: v for k, v in graph.constants.items() if k not in shared}), graph
    external_data = size_of(graph) > inline
    large = {
        k: v for k, v in graph.constants.items() if external_data and v.nbytes > LARGE_TENSOR and is_plain(v.dtype)
    }
    model = to_proto(graph.replace(constants={k: v for k, v in graph.constants.items() if k not in large}), metadata)
    if shared:
        model.metadata_props.add(key=NOTE, value=note_of(shared, path.parent))
    model.graph.initializer.extend(_reference(k, whole.constants[k], place) for k, place in shared.items())
    with ExitStack() as places:
        file = places.enter_context(replacing(path))
        if large:
            location = f"{path.name}.data"
            with places.enter_context(replacing(path.with_name(location))).open("wb") as out:
                model.graph.initializer.extend(external(out, k, v, location) for k, v in large.items())
        file.write_bytes(model.SerializeToString())


def external(out: BinaryIO, name: str, array: np.ndarray[Any, Any], location: str) -> onnx.TensorProto:
    """Append a tensor's data to a file, aligned so that ONNX Runtime can map it into memory; return its reference."""
    out.write(b"\0" * (-out.tell() % _ALIGNMENT))
    place = WeightLocation(location, out.tell())
    out.write(bytes_of(array).data)
    return _reference(name, array, place)


def _reference(name: str, array: np.ndarray[Any, Any], place: WeightLocation) -> onnx.TensorProto:
    tensor = onnx.TensorProto(name=name, dims=array.shape, data_location=onnx.TensorProto.EXTERNAL)
    tensor.data_type = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
    for key, value in {**place._asdict(), "length": array.nbytes}.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def _graph(graph: Graph) -> onnx.GraphProto:
    """Convert a graph, with the shapes of inner values.

    ONNX Runtime keeps tensors in its blocked layouts only through nodes whose operands it knows to have equal shapes.
    """
    ends = {v.name for v in (*graph.inputs, *graph.outputs)}
    inner = [graph.values[o] for n in graph.nodes for o in n.outputs if o in graph.values and o not in ends]
    return onnx.helper.make_graph(
        [node_proto(n) for n in graph.nodes],
        graph.name,
        [value_proto(v) for v in graph.inputs],
        [value_proto(v) for v in graph.outputs],
        [onnx.numpy_helper.from_array(np.asarray(a), k) for k, a in graph.constants.items()],
        value_info=[value_proto(v) for v in inner if v.shape is not None and not v.is_sequence],
    )


def node_proto(node: Node) -> onnx.NodeProto:
    """Convert one node."""
    attrs = {k: _attribute(v) for k, v in node.attrs.items() if not (isinstance(v, list) and not v)}
    proto = onnx.helper.make_node(node.op, node.inputs, node.outputs, node.name, domain=node.domain, **attrs)
    if node.each_slice:
        proto.metadata_props.add(key=EACH_SLICE)
    return proto


def _attribute(value: Any) -> Any:
    if isinstance(value, Graph):
        return _graph(value)
    if isinstance(value, np.dtype):
        return onnx.helper.np_dtype_to_tensor_dtype(value)
    if isinstance(value, np.ndarray):
        return onnx.numpy_helper.from_array(value)
    return value


def value_proto(value: Value) -> onnx.ValueInfoProto:
    """Convert the declaration of one value; sequences get no type, which ONNX Runtime then infers."""
    if value.is_sequence:
        return onnx.ValueInfoProto(name=value.name)
    return onnx.helper.make_tensor_value_info(
        value.name,
        onnx.helper.np_dtype_to_tensor_dtype(value.dtype),
        None if value.shape is None else [str(d) if isinstance(d, Multiple) else d for d in value.shape],
    )
