"""Newer operators that ONNX does not define by functions, as functions of opset 21."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import onnx

from onnxplain.graph.ir import OPSET


def defines(op: str) -> bool:
    """Whether this module defines an operator."""
    return op in _DEFINITIONS


def definition(node: onnx.NodeProto, rank: int) -> onnx.FunctionProto:
    """Write the function that computes a node.

    Parameters
    ----------
    node
        The node, with all attributes.
    rank
        Number of axes of the first input.
    """
    attrs = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    text = _DEFINITIONS[node.op_type](attrs, rank, len(node.input))
    return onnx.parser.parse_function(f'<domain: "", opset_import: ["": {OPSET}]> {node.op_type} {text}')


def _cum_prod(attrs: Mapping[str, Any], rank: int, inputs: int) -> str:
    """Element i is a product over all j: of element j if j counts for i, else of 1."""
    counts = ("GreaterOrEqual", "Greater", "LessOrEqual", "Less")[attrs["exclusive"] + 2 * attrs["reverse"]]
    return f"""(x, axis) => (y) {{
        rank = Constant <value_ints = [{rank}]> ()
        one = Constant <value_ints = [1]> ()
        whole = Cast <to = {onnx.TensorProto.INT64}> (axis)
        flat = Reshape (whole, one)
        shifted = Add (flat, rank)
        i_axis = Mod (shifted, rank)
        j_axis = Add (i_axis, one)
        shape = Shape (x)
        size = Gather (shape, i_axis)
        stop = Squeeze (size)
        start = Constant <value_int = 0> ()
        step = Constant <value_int = 1> ()
        j = Range (start, stop, step)
        i = Unsqueeze (j, one)
        counted = {counts} (i, j)
        behind = Sub (rank, j_axis)
        ones = Expand (one, behind)
        sizes = Concat <axis = 0> (size, size, ones)
        mask = Reshape (counted, sizes)
        pairs = Unsqueeze (x, i_axis)
        unit = CastLike (step, x)
        factors = Where (mask, pairs, unit)
        y = ReduceProd <keepdims = 0> (factors, j_axis)
    }}"""


def _tensor_scatter(attrs: Mapping[str, Any], rank: int, inputs: int) -> str:
    """The update of each sample is written from the sample's own start along the axis."""
    axis = attrs["axis"] % rank
    shift = f"""
        samples = Constant <value_ints = {[-1] + [1] * (rank - 1)}> ()
        first = Reshape (start, samples)
        place = Add (step, first)"""
    wrap = f"""
        room = Shape <start = {axis}, end = {axis + 1}> (past)
        wrapped = Mod (place, room)"""
    circular = attrs["mode"] == b"circular"
    return f"""({"past, update, start" if inputs > 2 else "past, update"}) => (present) {{
        zero = Constant <value_int = 0> ()
        one = Constant <value_int = 1> ()
        sizes = Shape <start = {axis}, end = {axis + 1}> (update)
        size = Squeeze (sizes)
        steps = Range (zero, size, one)
        column = Constant <value_ints = {[-1] + [1] * (rank - axis - 1)}> ()
        step = Reshape (steps, column)
        {shift if inputs > 2 else "place = Identity (step)"}
        {wrap if circular else "wrapped = Identity (place)"}
        shape = Shape (update)
        index = Expand (wrapped, shape)
        present = ScatterElements <axis = {axis}> (past, index, update)
    }}"""


_DEFINITIONS: dict[str, Callable[[Mapping[str, Any], int, int], str]] = {
    "CumProd": _cum_prod,
    "TensorScatter": _tensor_scatter,
}
