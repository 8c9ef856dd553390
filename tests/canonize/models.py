"""Tiny models in ONNX's text syntax, and the check that a canonical graph computes the same as its model."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnxruntime as ort

from onnxplain.canonize import Canonical, canonize
from onnxplain.graph.ir import Graph
from onnxplain.storage.reader import read
from tests.reference import relative_error, run_ort

Array = np.ndarray[Any, Any]


def model(text: str, opset: int = 17, ir: int = 8, functions: str = "", **weights: Array) -> onnx.ModelProto:
    """Parse ``(inputs) => (outputs) { nodes }``; ``weights`` become initializers."""
    imports = f'"" : {opset}' + (', "local" : 1' if functions else "")
    proto = onnx.parser.parse_model(f"<ir_version: {ir}, opset_import: [{imports}]> g {text} {functions}")
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(a, k) for k, a in weights.items())
    return proto


def normal(*shape: int, seed: int = 0, dtype: Any = np.float32) -> Array:
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def run_original(proto: onnx.ModelProto, feeds: dict[str, Array]) -> list[Array]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    return ort.InferenceSession(proto.SerializeToString(), options, ["CPUExecutionProvider"]).run(None, feeds)


def check(canonical: Canonical, proto: onnx.ModelProto, feeds: dict[str, Array], tolerance: float = 1e-6) -> None:
    """Assert that the graph gives what ONNX Runtime makes of the model as it is."""
    results = run_ort(canonical.graph, feeds)
    assert list(results) == [o.name for o in proto.graph.output]
    for result, expected in zip(results.values(), run_original(proto, feeds), strict=True):
        assert result.shape == expected.shape
        assert relative_error(result, expected) <= tolerance


def canonical(proto: onnx.ModelProto, **sizes: int) -> Canonical:
    return canonize(read(proto), sizes)


def ops(graph: Graph) -> list[str]:
    return [node.op for node in graph.nodes]


def shapes(graph: Graph) -> set[Any]:
    """All dimensions that occur in the graph that are not plain numbers."""
    return {
        d for v in graph.values.values() for d in (v.shape if v.shape is not None else [None]) if not isinstance(d, int)
    }
