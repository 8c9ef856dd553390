"""Half precision becomes single precision everywhere in a model; exported explainers keep the model's own types.

ONNX Runtime's CPU provider computes float16 in float32 anyway (with casts around every node) and bfloat16 not at all;
gradients underflow in both; and the weights of a layer must be constants, not casts of constants.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx

from onnxplain.storage.reader import graphs_of, nodes_of, tensors_of
from onnxplain.storage.tensors import is_external, stub

_HALVES: dict[int, str] = {onnx.TensorProto.FLOAT16: "float16", onnx.TensorProto.BFLOAT16: "bfloat16"}
_TYPE_ATTRIBUTES = {"to", "dtype", "output_dtype", "output_datatype", "softmax_precision"}


def widen(graph: onnx.GraphProto, weights: dict[str, np.ndarray[Any, Any]], changes: list[str]) -> None:
    """Replace half precision by float32, in place, in tensors, declarations, and attributes that are types."""
    halves: set[int] = set()

    def single(elem_type: int) -> int:
        halves.update({elem_type} & _HALVES.keys())
        return onnx.TensorProto.FLOAT if elem_type in _HALVES else elem_type

    for name, array in weights.items():
        if array.dtype.itemsize == 2 and onnx.helper.np_dtype_to_tensor_dtype(array.dtype) in _HALVES:
            weights[name] = array.astype(np.float32)
    for tensor in tensors_of(graph):
        if tensor.data_type in _HALVES:
            if is_external(tensor):
                wide = stub(tensor.name, onnx.TensorProto.FLOAT, tensor.dims)
            else:
                wide = onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor).astype(np.float32), tensor.name)
            single(tensor.data_type)
            tensor.CopyFrom(wide)
    for body in graphs_of(graph):
        for info in (*body.input, *body.output):
            if info.type.HasField("tensor_type"):
                info.type.tensor_type.elem_type = single(info.type.tensor_type.elem_type)
    for node in nodes_of(graph):
        for attribute in node.attribute:
            if attribute.name in _TYPE_ATTRIBUTES and attribute.type == onnx.AttributeProto.INT:
                attribute.i = single(attribute.i)
    if halves:
        changes.append(f"{' and '.join(sorted(_HALVES[m] for m in halves))} is computed in float32")
