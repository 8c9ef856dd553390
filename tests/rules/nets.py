"""Small ONNX models from text."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.parser


def model(text: str, **weights: np.ndarray[Any, Any]) -> onnx.ModelProto:
    """A model of opset 17: ``text`` in ONNX's textual syntax, float weights by name."""
    graph = onnx.parser.parse_graph(text)
    for name, array in weights.items():
        array = np.asarray(array)
        array = array.astype(np.float32) if array.dtype.kind == "f" else array
        graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model
