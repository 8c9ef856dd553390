"""A graph that was exported for one batch size is rewritten for another.

Shape inference, node by node, shows which axis of a value grows with the batch. Constants that hold the old batch size
are replaced: the target shape of a Reshape such that the distance of samples in memory stays the same, others along the
batch axis.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx

from onnxplain.canonize.shapes import INFERENCE_OPSET
from onnxplain.graph.ir import IR_VERSION, Graph, Node, Value, unused
from onnxplain.ops import OPS, Trait
from onnxplain.storage.tensors import LARGE_TENSOR
from onnxplain.storage.writer import node_proto, opset_of, value_proto

_TARGETS = {"Expand": 1, "Resize": 3}  # index of the input that holds the shape of the output


class StuckError(Exception):
    """The graph cannot be rewritten; the message names the node that prevents it."""


@dataclass(frozen=True)
class _BatchAxis:
    """Place of the batch in a value: an axis whose size is a factor x batch size x ``inner``."""

    axis: int
    inner: int


def retargeted(graph: Graph, old: int, new: int) -> Graph:
    """Rewrite a graph with static shapes, made for batch size ``old``, for batch size ``new``.

    Raises
    ------
    StuckError
        A node prevents it.
    """
    return _Sweep(graph, old, new).run()


class _Sweep:
    def __init__(self, graph: Graph, old: int, new: int) -> None:
        self.graph, self.old, self.new = graph, old, new
        self.constants = dict(graph.constants)
        self.values = dict(graph.values)
        self.places: dict[str, _BatchAxis] = {}
        self.taken = {*graph.constants, *graph.values, *graph.producer}

    def run(self) -> Graph:
        for value in self.graph.inputs:
            if value.shape and value.shape[0] == self.old:
                self._place(value.name, (self.new, *value.shape[1:]), 1)
        nodes = tuple(self._node(n) if not self.places.keys().isdisjoint(n.reads) else n for n in self.graph.nodes)
        inputs, outputs = (
            tuple(self.values.get(v.name, v) for v in values) for values in (self.graph.inputs, self.graph.outputs)
        )
        return self.graph.replace(
            inputs=inputs, outputs=outputs, nodes=nodes, constants=self.constants, values=self.values
        )

    def _node(self, node: Node) -> Node:
        if node.subgraphs:
            raise StuckError(f"{node.label} has a body")
        inner = [self.places[i].inner for i in node.inputs if i in self.places]
        data = self.places.get(node.inputs[0])
        if node.op in ("Reshape", "Flatten") and data is not None:
            place = self._reshaped(node, data)
            inner = [place.inner]
            if node.op == "Reshape":
                node = self._retarget(node, 1, place.axis)
        elif node.op in _TARGETS and data is not None and len(node.inputs) > _TARGETS[node.op]:
            added = len(self._old_shape(node.outputs[0])) - len(self._old_shape(node.inputs[0]))
            node = self._retarget(node, _TARGETS[node.op], data.axis + added)
        elif OPS.has(node, Trait.RECURRENT):
            node = self._repeated(node, 1)
        try:
            shapes = self._inferred(node)
        except StuckError:
            node = self._repeated(node, next(self.places[i].axis for i in node.inputs if i in self.places))
            shapes = self._inferred(node)
        for name, shape in zip(node.outputs, shapes, strict=True):
            if name:
                self._place(name, shape, *inner)
        return node

    def _old_shape(self, name: str) -> tuple[int, ...]:
        shape = self.graph.value(name).shape
        if shape is None or not all(isinstance(d, int) for d in shape):
            raise StuckError(f"the shape of '{name}' is not fixed")
        return tuple(d for d in shape if isinstance(d, int))

    def _place(self, name: str, shape: tuple[Any, ...], *inner: int) -> None:
        """Note the new shape of a value, and the place of the batch in it, if it has one."""
        old = self._old_shape(name)
        grown = [i for i, (a, b) in enumerate(zip(old, shape, strict=True)) if a != b]
        self.values[name] = replace(self.values[name], shape=shape)
        if not grown:
            return
        fitting = [i for i in inner if old[grown[0]] % (self.old * i) == 0]
        if len(grown) > 1 or not fitting or old[grown[0]] * self.new != shape[grown[0]] * self.old:
            raise StuckError(f"'{name}' does not grow with the batch along one axis ({old} becomes {shape})")
        self.places[name] = _BatchAxis(grown[0], fitting[0])

    def _reshaped(self, node: Node, data: _BatchAxis) -> _BatchAxis:
        """Find the axis of a Reshape's result along which the distance of samples in memory is the same as before."""
        before, after = self._old_shape(node.inputs[0]), self._old_shape(node.outputs[0])
        stride = data.inner * math.prod(before[data.axis + 1 :])
        candidates = []
        for axis, size in enumerate(after):
            inner, rest = divmod(stride, math.prod(after[axis + 1 :]) or 1)
            if not rest and inner and size % (self.old * inner) == 0:
                outer = size // (self.old * inner)
                # At batch size 1, several axes may fit: an axis of the batch alone is best, the last (features) worst.
                rank = ((inner, outer) != (1, 1), axis == len(after) - 1, outer > 1, inner, axis)
                candidates.append((rank, _BatchAxis(axis, inner)))
        if not candidates:
            raise StuckError(f"{node.label} mixes the samples")
        return min(candidates, key=lambda candidate: candidate[0])[1]

    def _retarget(self, node: Node, index: int, axis: int) -> Node:
        """Replace the constant that holds the shape of a node's output."""
        shape = list(self._old_shape(node.outputs[0]))
        shape[axis] = shape[axis] * self.new // self.old
        if node.inputs[index] not in self.graph.constants:
            raise StuckError(f"{node.label} computes its shape")
        return self._with_constant(node, index, np.array(shape, np.int64))

    def _repeated(self, node: Node, axis: int) -> Node:
        """Resize constants that hold the same slice for each sample of the old batch."""
        for index, name in enumerate(node.inputs):
            array = self.graph.constants.get(name)
            if array is not None and array.ndim > axis and array.shape[axis] == self.old:
                slice_ = np.take(array, [0], axis)
                if np.array_equal(array, np.repeat(slice_, self.old, axis)):
                    node = self._with_constant(node, index, np.repeat(slice_, self.new, axis))
        return node

    def _with_constant(self, node: Node, index: int, array: np.ndarray[Any, Any]) -> Node:
        """Replace an input of a node by a constant."""
        name = unused(f"{node.outputs[0]}/{node.op}{index}", self.taken)
        self.constants[name] = array
        return replace(node, inputs=(*node.inputs[:index], name, *node.inputs[index + 1 :]))

    def _inferred(self, node: Node) -> Sequence[tuple[int, ...]]:
        """Infer the new shapes of a node's outputs, () for missing ones."""
        inputs = {i: self._value(i) for i in node.inputs if i}
        arrays = {i: self.constants[i] for i in inputs if i in self.constants}
        versions = {node.domain: opset_of(node.domain, {node.op}), "": INFERENCE_OPSET}
        try:
            types = onnx.shape_inference.infer_node_outputs(
                onnx.defs.get_schema(node.op, versions[node.domain], node.domain),
                node_proto(node),
                {i: value_proto(v).type for i, v in inputs.items()},
                {i: onnx.numpy_helper.from_array(a, i) for i, a in arrays.items() if a.nbytes <= LARGE_TENSOR},
                opset_imports=[onnx.helper.make_opsetid(*pair) for pair in versions.items()],
                ir_version=IR_VERSION,
            )
        except (onnx.defs.SchemaError, onnx.shape_inference.InferenceError, KeyError) as error:
            raise StuckError(
                f"{node.label} does not work for another batch size: {str(error).splitlines()[0]}"
            ) from None
        if not all(types[o].tensor_type.HasField("shape") for o in node.outputs if o):
            raise StuckError(f"ONNX infers no shape for {node.label}")
        return [tuple(d.dim_value for d in types[o].tensor_type.shape.dim) if o else () for o in node.outputs]

    def _value(self, name: str) -> Value:
        if name in self.values:
            return self.values[name]
        array = self.constants[name]
        return Value(name, array.dtype, array.shape)
