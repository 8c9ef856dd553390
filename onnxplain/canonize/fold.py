"""Third pass: ONNX Runtime folds, inlines and fuses what only needs standard operators; then shapes are inferred."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import onnx
import onnxruntime as ort

from onnxplain.canonize.opset import without_weights
from onnxplain.errors import ModelError
from onnxplain.ir import Graph, Node
from onnxplain.reader import to_graph
from onnxplain.writer import INLINE_LIMIT


def fold(model: onnx.ModelProto, folder: Path, sizes: Mapping[str, int]) -> Graph:
    """The graph that ONNX Runtime makes of ``model`` before it runs it, at its basic optimisation level.

    Parameters
    ----------
    model
        An opset-21 model.
    folder
        Where its external data lies.
    sizes
        Dimension name -> size; dimensions that are not named here stay free.

    Raises
    ------
    ModelError
        ONNX Runtime does not accept the model.
    """
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 4
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder.resolve()))
    for name, size in sizes.items():
        options.add_free_dimension_override_by_name(name, size)
    with tempfile.TemporaryDirectory(prefix="onnxplain-") as scratch:
        saved = Path(scratch) / "folded.onnx"
        options.optimized_model_filepath = str(saved)
        if model.ByteSize() > INLINE_LIMIT or _has_large_files(model, folder):
            options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "folded.data")
        try:
            ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's exceptions have no common base but Exception
            raise ModelError(f"ONNX Runtime cannot load the model: {str(error).strip()}") from None
        folded = onnx.load(saved)
    return without_identities(with_shapes(folded))


def _has_large_files(model: onnx.ModelProto, folder: Path) -> bool:
    names = {e.value for t in model.graph.initializer for e in t.external_data if e.key == "location"}
    return sum((folder / name).stat().st_size for name in names) > INLINE_LIMIT


def with_shapes(model: onnx.ModelProto) -> Graph:
    """Convert to the IR, with every shape that onnx can infer."""
    for output in model.graph.output:
        output.type.tensor_type.ClearField("shape")
    with without_weights(model) as stripped:
        inferred = onnx.shape_inference.infer_shapes(stripped.model, data_prop=True)
        return to_graph(stripped.restore(inferred), Path())


def without_identities(graph: Graph) -> Graph:
    """Drop Identity and inference-time Dropout nodes whose output is not one of the graph's own."""
    renamed: dict[str, str] = {}
    kept: list[Node] = []
    outputs = {v.name for v in graph.outputs}
    for node in graph.nodes:
        inputs = tuple(renamed.get(i, i) for i in node.inputs)
        idle = node.op == "Identity" or (node.op == "Dropout" and len(node.outputs) == 1 and len(node.inputs) < 3)
        if idle and not node.domain and node.outputs[0] not in outputs:
            renamed[node.outputs[0]] = inputs[0]
        else:
            kept.append(Node(node.op, inputs, node.outputs, node.attrs, node.name, node.domain))
    if any(name in renamed for node in kept for body in node.subgraphs for name in body.captured):
        return graph  # a subgraph reads a dropped name from outside: leave such models as they are
    return graph.replace(nodes=tuple(kept))
