"""What the columns of a model's scores are called."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import onnx

from onnxplain.canonize.expansions.ml import Names, class_names
from onnxplain.graph.ir import Graph
from onnxplain.ops import OPS, Trait
from onnxplain.storage.reader import operator_of
from onnxplain.storage.tensors import is_external

_Nodes = Mapping[str, onnx.NodeProto]  # by the names of their outputs


def labels_of(model: onnx.ModelProto, graph: Graph) -> dict[str, Names]:
    """Name the columns of a model's outputs; ``graph`` is its canonical one.

    A ZipMap names those of its input, a classifier those of its scores. The names among which the model chooses when it
    gives out a label are those of all its scores that have as many columns.
    """
    nodes = {name: node for node in model.graph.node for name in node.output}
    constants = {t.name: t for t in model.graph.initializer if not is_external(t)}
    chosen = {names for v in graph.outputs if not v.is_float and (names := _of_label(v.name, nodes, constants))}
    found = {}
    for value in graph.outputs:
        width = value.shape[1] if value.shape is not None and len(value.shape) == 2 else None
        own = _of_scores(value.name, nodes)
        names = next((n for n in chosen if len(chosen) == 1 and len(n) == width), ()) if own is None else own
        if value.is_float and names and (width == len(names) or not isinstance(width, int)):
            found[value.name] = names
    return found


def _origin(name: str, nodes: _Nodes) -> tuple[str, onnx.NodeProto]:
    """Where the columns of a tensor come from: a tensor, and the node that computes it."""
    while name in nodes and _keeps_columns(nodes[name]):
        name = nodes[name].input[0]
    return name, nodes.get(name, onnx.NodeProto())


def _keeps_columns(node: onnx.NodeProto) -> bool:
    """Whether a node leaves the columns of its input in their order."""
    traits = Trait.PASSES | Trait.RESHAPES
    return node.op_type in ("Normalizer", "Softmax") or operator_of(node) in OPS.having(traits)


def _of_scores(name: str, nodes: _Nodes) -> Names | None:
    """The names that a ZipMap or a classifier gives; () if the columns are no classes, None if none is there."""
    name, node = _origin(name, nodes)
    if node.op_type != "ZipMap" and (operator_of(node) not in OPS.having(Trait.CLASSIFIES) or name != node.output[1]):
        return None
    attrs = _attributes(node)
    names = class_names(attrs)
    by_pairs = sum(attrs.get("vectors_per_class", ())) and not attrs.get("prob_a") and len(names) > 2
    return () if by_pairs else names


def _of_label(name: str, nodes: _Nodes, constants: Mapping[str, onnx.TensorProto]) -> Names:
    """The names among which an output chooses."""
    name, node = _origin(name, nodes)
    if operator_of(node) in OPS.having(Trait.CLASSIFIES):
        return class_names(_attributes(node))
    if node.op_type not in ("ArrayFeatureExtractor", "Gather") or _origin(node.input[1], nodes)[1].op_type != "ArgMax":
        return ()
    return _listed(node.input[0], nodes, constants)


def _listed(name: str, nodes: _Nodes, constants: Mapping[str, onnx.TensorProto]) -> Names:
    """The strings or integers in a constant of one axis."""
    node = nodes.get(name)
    if node is not None and node.op_type != "Constant":
        return ()
    value = constants.get(name) if node is None else onnx.helper.get_attribute_value(node.attribute[0])
    if isinstance(value, onnx.TensorProto):
        value = onnx.numpy_helper.to_array(value).tolist() if len(value.dims) == 1 else None
    items = [v.decode() if isinstance(v, bytes) else v for v in value] if isinstance(value, Iterable) else []
    return tuple(items) if all(isinstance(v, str | int) for v in items) else ()


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
