"""Large tensors travel outside of protobuf messages, which copy whatever they hold: stubs stand for them there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx

LARGE = 1024  # bytes from which on a tensor is taken out

_STUB = "taken-out"


def take_out(model: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, np.ndarray[Any, Any]]]:
    """Separate a model from the large tensors of its main graph, those of Constant nodes included.

    Returns
    -------
    model, weights
        A small copy with stubs (name, type and shape, with the data marked as external), and the data by name.
        ``model`` itself is emptied of it.
    """
    weights: dict[str, np.ndarray[Any, Any]] = {}

    def taken(tensor: onnx.TensorProto, name: str) -> bool:
        if is_external(tensor) or tensor.ByteSize() <= LARGE:
            return False
        array = onnx.numpy_helper.to_array(tensor)
        if not is_plain(array.dtype):
            return False
        weights[name] = array
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
    light = onnx.ModelProto()
    light.CopyFrom(model)  # a message keeps the memory of what was in it
    return light, weights


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
