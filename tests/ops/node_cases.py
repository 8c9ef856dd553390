"""ONNX's node tests, one operator each, with which an operator's traits can be tried at other inputs."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx.backend.test.loader import load_model_tests
from onnx.reference import ReferenceEvaluator

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class NodeCase:
    """A model of one node and the inputs that ONNX tests it at, None where an optional one is missing."""

    model: onnx.ModelProto
    inputs: tuple[Array | None, ...]

    @property
    def node(self) -> onnx.NodeProto:
        """The only node."""
        return self.model.graph.node[0]

    @property
    def attrs(self) -> dict[str, Any]:
        """The attributes that are given."""
        return {a.name: onnx.helper.get_attribute_value(a) for a in self.node.attribute}

    def run(self, inputs: Sequence[Array | None], **attrs: Any) -> list[Any]:
        """Calculate the outputs at inputs of any shape; ``attrs`` replace attributes."""
        present = [name for name, value in zip(self.node.input, inputs, strict=True) if value is not None]
        node = onnx.helper.make_node(
            self.node.op_type, list(self.node.input), list(self.node.output), domain=self.node.domain
        )
        node.attribute.extend(a for a in self.node.attribute if a.name not in attrs)
        node.attribute.extend(onnx.helper.make_attribute(name, value) for name, value in attrs.items())
        values = [value for value in inputs if value is not None]
        dtypes = [onnx.helper.np_dtype_to_tensor_dtype(value.dtype) for value in values]
        typed = [
            onnx.helper.make_tensor_value_info(name, dtype, value.shape)
            for name, dtype, value in zip(present, dtypes, values, strict=True)
        ]
        results = [onnx.helper.make_empty_tensor_value_info(name) for name in node.output if name]
        model = onnx.helper.make_model(
            onnx.helper.make_graph([node], "node", typed, results), opset_imports=self.model.opset_import
        )
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            return list(ReferenceEvaluator(model).run(None, dict(zip(present, values, strict=True))))


@functools.cache
def node_cases() -> dict[str, list[NodeCase]]:
    """Operator -> its tests whose inputs are tensors of numbers or booleans."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some of the tests overflow on purpose
        tests = load_model_tests(kind="node")
    cases: dict[str, list[NodeCase]] = {}
    for test in tests:
        graph = test.model.graph
        if len(graph.node) > 1 or "_expanded" in test.name or graph.initializer:
            continue
        values = dict(zip((v.name for v in graph.input), map(_as_array, test.data_sets[0][0]), strict=True))
        node = graph.node[0]
        if any(a.HasField("g") for a in node.attribute) or any(v is None for v in values.values()):
            continue
        operator = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
        inputs = tuple(values[name] if name else None for name in node.input)
        cases.setdefault(operator, []).append(NodeCase(test.model, inputs))
    return cases


def _as_array(value: Any) -> Array | None:
    """The array that a test's data set holds; None where that is no tensor, or one of strings or of short floats."""
    array = onnx.numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else value
    known = isinstance(array, np.ndarray) and array.dtype.kind in "fiub" and array.dtype.name in np.sctypeDict
    return array if known else None
