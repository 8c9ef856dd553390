"""The graph of a model as frozen values, and the emitter that writes more of it."""

from __future__ import annotations

from onnxplain.graph.axes import BatchAxes, batch_axis
from onnxplain.graph.emit import Emitter
from onnxplain.graph.ir import BATCH, IR_VERSION, OPSET, Dim, Graph, Multiple, Node, Shape, Value, is_float
from onnxplain.graph.var import Var, concat, where

__all__ = [
    "BATCH",
    "IR_VERSION",
    "OPSET",
    "BatchAxes",
    "Dim",
    "Emitter",
    "Graph",
    "Multiple",
    "Node",
    "Shape",
    "Value",
    "Var",
    "batch_axis",
    "concat",
    "is_float",
    "where",
]
