"""Names of classes: of the columns of a model's scores."""

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
    """Name the columns of a model's outputs.

    A ZipMap names the columns of its input, and a classifier those of its scores. If another output of the model is a
    label, the names among which it chooses are those of every output with as many columns.

    Parameters
    ----------
    model
        The model as it was read.
    graph
        Its canonical graph.

    Returns
    -------
    dict of str to tuple of str or int
        Name of an output -> names of its columns.
    """
    nodes = {name: node for node in model.graph.node for name in node.output}
    constants = {t.name: t for t in model.graph.initializer if not is_external(t)}
    chosen = {names for v in graph.outputs if not v.is_float and (names := _of_label(v.name, nodes, constants))}
    labels = {}
    for value in graph.outputs:
        width = value.shape[1] if value.shape is not None and len(value.shape) == 2 else None
        named = _of_scores(value.name, nodes)
        names = next((n for n in chosen if len(chosen) == 1 and len(n) == width), ()) if named is None else named
        if value.is_float and names and (width == len(names) or not isinstance(width, int)):
            labels[value.name] = names
    return labels


def _origin(name: str, nodes: _Nodes) -> tuple[str, onnx.NodeProto]:
    """Follow the columns of a tensor back to where they arise: a tensor, and the node that computes it."""
    while name in nodes and _keeps_columns(nodes[name]):
        name = nodes[name].input[0]
    return name, nodes.get(name, onnx.NodeProto())


def _keeps_columns(node: onnx.NodeProto) -> bool:
    """Whether the columns of a node's output are those of its input, in the same order."""
    traits = Trait.PASSES | Trait.RESHAPES
    return node.op_type in ("Normalizer", "Softmax") or operator_of(node) in OPS.having(traits)


def _of_scores(name: str, nodes: _Nodes) -> Names | None:
    """The names that a ZipMap or a classifier gives; () if the columns are no classes, None without such a node."""
    name, node = _origin(name, nodes)
    if node.op_type != "ZipMap" and (operator_of(node) not in OPS.having(Trait.CLASSIFIES) or name != node.output[1]):
        return None
    attrs = _attributes(node)
    names = class_names(attrs)
    by_pairs = sum(attrs.get("vectors_per_class", ())) and not attrs.get("prob_a") and len(names) > 2
    return () if by_pairs else names


def _of_label(name: str, nodes: _Nodes, constants: Mapping[str, onnx.TensorProto]) -> Names:
    """The names among which an output that is a label chooses."""
    name, node = _origin(name, nodes)
    if operator_of(node) in OPS.having(Trait.CLASSIFIES):
        return class_names(_attributes(node))
    if node.op_type not in ("ArrayFeatureExtractor", "Gather") or _origin(node.input[1], nodes)[1].op_type != "ArgMax":
        return ()
    return _listed(node.input[0], nodes, constants)


def _listed(name: str, nodes: _Nodes, constants: Mapping[str, onnx.TensorProto]) -> Names:
    """The strings or integers in a constant with one axis."""
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
