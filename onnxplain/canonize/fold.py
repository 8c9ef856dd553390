"""Constants are folded: ONNX Runtime rewrites the model as it would before running it.

Requires opset 21. Ensures that constants and shape arithmetic are folded, with the semantics of ONNX Runtime, and that
nodes are fused where the result is a standard operator. `shaped` then infers shapes and converts the model to a graph.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx

from onnxplain.canonize.prepare import forget_output_shapes, set_shape
from onnxplain.canonize.shapes import inferred
from onnxplain.errors import ModelError, UnsupportedOperatorError
from onnxplain.graph.ir import Graph, Node, Value
from onnxplain.ops import OPS, Trait
from onnxplain.runtime import ort
from onnxplain.runtime.options import Level, save_rewritten, session_options
from onnxplain.runtime.providers import CPU
from onnxplain.runtime.trial import ort_value
from onnxplain.storage.reader import Weights, graphs_of, nodes_of, operator_of, read_optimized, shape_of, to_graph
from onnxplain.storage.tensors import LARGE_TENSOR, is_plain, stub
from onnxplain.storage.writer import to_proto

_STANDARD = {"", "ai.onnx", "ai.onnx.ml"}
_LOSSY = ["FuseReluClip"]  # optimizers left out: it merges Relu into Clip, and rules for rectifiers need the Relu


@dataclass(frozen=True)
class StubbedModel:
    """A model with stubs for its large tensors, and those tensors.

    Attributes
    ----------
    proto
        The model, whose large initializers are stubs.
    weights
        The large initializers by name.
    """

    proto: onnx.ModelProto
    weights: Weights


def light(graph: Graph) -> StubbedModel:
    """Convert a graph to protobuf; the inverse of `shaped`."""
    large = {n: a for n, a in graph.constants.items() if a.nbytes > LARGE_TENSOR and is_plain(a.dtype)}
    proto = to_proto(graph.replace(constants={n: a for n, a in graph.constants.items() if n not in large}))
    for name, array in large.items():
        proto.graph.initializer.append(stub(name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), array.shape))
    return StubbedModel(proto, large)


def fold(model: StubbedModel, hidden: Collection[str]) -> StubbedModel:
    """Let ONNX Runtime rewrite a model at its basic optimisation level, as it would before running it.

    Parameters
    ----------
    model
        An opset-21 model.
    hidden
        Names of weights that ONNX Runtime sees as inputs, which saves copies of them.

    Raises
    ------
    ModelError
        ONNX Runtime does not accept the model.
    """
    used = _used(model.proto.graph)  # ONNX Runtime drops unused weights first, and then refuses data for them
    shown = {k: v for k, v in model.weights.items() if k in used and k not in hidden}
    with tempfile.TemporaryDirectory(prefix="onnxplain-") as scratch:
        options, path = session_options(Level.ORT_ENABLE_BASIC), Path(scratch) / "folded.onnx"
        save_rewritten(options, path)
        options.intra_op_num_threads = 1  # no pool of threads: nothing will be run
        options.add_session_config_entry("session.disable_prepacking", "1")
        options.add_session_config_entry("session.disable_quant_qdq", "1")  # folds DequantizeLinear of weights, too
        options.add_external_initializers(list(shown), [ort_value(a) for a in shown.values()])
        try:
            ort.InferenceSession(hide(model, hidden).SerializeToString(), options, [CPU], disabled_optimizers=_LOSSY)
        except Exception as error:  # ONNX Runtime's exceptions have no common base but Exception
            raise _failure(model.proto.graph, str(error).strip().splitlines()[0]) from None
        folded = read_optimized(path, mapped=False)
    names = _rename_made(folded.proto.graph, _defined(model.proto.graph))
    weights = {k: v for k, v in model.weights.items() if k in hidden}
    weights |= {names.get(k, k): v for k, v in folded.weights.items()}
    return StubbedModel(_show(folded.proto, weights), weights)


def _defined(graph: onnx.GraphProto) -> set[str]:
    """Names of all values that a graph itself defines, without its subgraphs."""
    named = {name for node in graph.node for name in node.output}
    return named.union(t.name for t in graph.initializer).union(i.name for i in graph.input)


def _rename_made(graph: onnx.GraphProto, known: Collection[str]) -> dict[str, str]:
    """Rename constants that ONNX Runtime has added: in another run it would add the same names again, and fail."""
    taken = _defined(graph) | set(known)
    names: dict[str, str] = {}
    for tensor in graph.initializer:
        if tensor.name not in known:
            names[tensor.name] = next(n for k in itertools.count() if (n := f"folded_{k}") not in taken)
            taken.add(names[tensor.name])
            tensor.name = names[tensor.name]
    for part in graphs_of(graph):
        inner = set() if part is graph else _defined(part)
        for node in part.node:
            for place, name in enumerate(node.input):
                node.input[place] = name if name in inner else names.get(name, name)
    return names


def _failure(graph: onnx.GraphProto, why: str) -> ModelError:
    """Make the error, with all nodes that may be unknown to ONNX Runtime, which names only the first."""
    hint = "Does it run on the CPU, with onnxruntime.InferenceSession(model)?"
    foreign = [n for n in nodes_of(graph) if n.domain not in _STANDARD]
    if not foreign:
        return ModelError(f"ONNX Runtime cannot load the model: {why}", hint)
    names = ", ".join(f"{n.domain}.{n.op_type} '{n.name or n.output[0]}'" for n in foreign)
    what = f"ONNX Runtime cannot load the model; {len(foreign)} of its nodes are no standard operators: {names}"
    return UnsupportedOperatorError(f"{what} ({why})", hint)


def hide(model: StubbedModel, hidden: Collection[str]) -> onnx.ModelProto:
    """Turn the hidden weights into inputs, and drop unused weights."""
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    del proto.graph.initializer[:]
    used = _used(model.proto.graph)
    for tensor in model.proto.graph.initializer:
        if tensor.name in hidden:
            info = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            proto.graph.input.append(info)
        elif tensor.name in used:
            proto.graph.initializer.append(tensor)
    return proto


def _used(graph: onnx.GraphProto) -> set[str]:
    """Names that a graph and its subgraphs read, or have as outputs."""
    parts = list(graphs_of(graph))
    read = {name for part in parts for node in part.node for name in node.input}
    return read.union(output.name for part in parts for output in part.output)


def _show(proto: onnx.ModelProto, weights: Weights) -> onnx.ModelProto:
    """Turn inputs that are weights back into stubs."""
    inputs = list(proto.graph.input)
    del proto.graph.input[:]
    for info in inputs:
        if info.name in weights:
            tensor = info.type.tensor_type
            dims = [d.dim_value for d in tensor.shape.dim]
            proto.graph.initializer.append(stub(info.name, tensor.elem_type, dims))
        else:
            proto.graph.input.append(info)
    return proto


def unfoldable(model: StubbedModel) -> set[str]:
    """Find weights that folding cannot change, so that ONNX Runtime need not see them.

    These are weights of layers whose output is not scaled or shifted by constants.
    """
    graph = model.proto.graph
    layers, affine = OPS.having(Trait.LAYER), OPS.having(Trait.AFFINE)
    looked_through = OPS.having(Trait.RESHAPES) | {"Transpose", "Identity"}
    users: dict[str, list[onnx.NodeProto]] = {}
    constants = {t.name for t in graph.initializer}
    captured: set[str] = set()
    for node in graph.node:
        if constants.issuperset(filter(None, node.input)):
            constants.update(node.output)
        captured.update(_captured(node))
        for name in node.input:
            users.setdefault(name, []).append(node)

    def fused(node: onnx.NodeProto, layer: str) -> bool:
        operator = operator_of(node)
        if operator == "BatchNormalization":
            return True
        if operator in affine:
            return layer.startswith("Conv") and not constants.isdisjoint(node.input)
        return operator in looked_through and any(fused(user, layer) for user in users.get(node.output[0], ()))

    def plain(node: onnx.NodeProto, name: str) -> bool:
        operator = operator_of(node)
        if operator != "Gather" and operator not in layers:
            return False
        at = int(operator in layers)  # of the weight; the other one of the first two inputs is data, or indices
        return (
            [i for i, n in enumerate(node.input) if n == name] == [at]
            and node.input[1 - at] not in constants
            and not any(fused(user, node.op_type) for user in users.get(node.output[0], ()))
        )

    return {n for n in model.weights if n in users and n not in captured and all(plain(u, n) for u in users[n])}


def _captured(node: onnx.NodeProto) -> set[str]:
    """Names that the subgraphs of a node read."""
    bodies = [a.g for a in node.attribute if a.HasField("g")] + [g for a in node.attribute for g in a.graphs]
    parts = [part for body in bodies for part in graphs_of(body)]
    return {i for part in parts for n in part.node for i in n.input} | {o.name for part in parts for o in part.output}


def with_sizes(model: StubbedModel, sizes: Mapping[str, int]) -> StubbedModel:
    """Fix the sizes of some free dimensions, by name."""
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    del proto.graph.value_info[:]
    for info in proto.graph.input:
        shape = shape_of(info)
        if shape is not None:
            set_shape(info, tuple(sizes.get(d, d) if isinstance(d, str) else d for d in shape))
    forget_output_shapes(proto.graph)
    return StubbedModel(proto, model.weights)


def shaped(model: StubbedModel) -> Graph:
    """Convert a model to a graph, with every shape that onnx can infer."""
    forget_output_shapes(model.proto.graph)
    graph = without_identities(to_graph(inferred(model.proto), model.weights))
    unknown = {o: Value(o, np.dtype(np.float32), None) for n in graph.nodes for o in n.outputs if o}  # for onnx
    return graph.replace(values=unknown | dict(graph.values)).pruned([v.name for v in graph.outputs])


def without_identities(graph: Graph) -> Graph:
    """Drop the nodes that pass on their input: Identity, Dropout at inference, Cast to the same dtype."""
    outputs = {v.name for v in graph.outputs}
    renamed: dict[str, str] = {}

    def final(name: str) -> str:
        while name in renamed:
            name = renamed[name]
        return name

    kept: list[Node] = []
    for node in graph.nodes:
        if _passes_on(graph, node):
            source, target = final(node.inputs[0]), node.outputs[0]
            if target not in outputs:
                renamed[target] = source
                continue
            if source in graph.producer and source not in outputs:
                renamed[source] = target
                continue
        kept.append(node)
    if any(name in renamed for node in graph.nodes for body in node.subgraphs for name in body.captured):
        return graph  # a subgraph reads a dropped name from outside
    nodes = (replace(n, inputs=tuple(map(final, n.inputs)), outputs=tuple(map(final, n.outputs))) for n in kept)
    return graph.replace(nodes=tuple(nodes), values={k: v for k, v in graph.values.items() if k not in renamed})


def _passes_on(graph: Graph, node: Node) -> bool:
    """Whether the output of a node is its input."""
    if node.op == "Cast":
        (source,) = node.inputs
        known = source in graph.values or source in graph.constants  # onnx knows not all types in other domains
        return known and bool(graph.value(source).dtype == node.attrs["to"])
    passes = node.op == "Identity" or (node.op == "Dropout" and len(node.outputs) == 1 and len(node.inputs) < 3)
    return passes and not node.domain
