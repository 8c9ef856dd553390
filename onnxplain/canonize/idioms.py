"""Softmax and Sigmoid become single nodes where an exporter has written them in several.

Requires a folded graph with unique names. Ensures that the graph shows every Softmax and Sigmoid as one node: a score
is the value before a final one, and rules treat each of them as a whole.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from onnxplain.graph.ir import Graph, Node
from onnxplain.ops import OPS, Trait


def recognized(graph: Graph) -> Graph:
    """Write Softmax and Sigmoid where a graph computes them in several nodes, which stay if other nodes use them."""
    written = {node.outputs[0]: new for node in graph.nodes for idiom in _IDIOMS if (new := idiom(graph, node))}
    if not written:
        return graph
    nodes = tuple(written.get(node.outputs[0], node) for node in graph.nodes)
    return graph.replace(nodes=nodes).pruned([v.name for v in graph.outputs])


def _softmax(graph: Graph, node: Node) -> Node | None:
    """Recognize exp(x - c) / sum(exp(x - c)); c is constant along the axis, so it cancels."""
    exp = _made_by(graph, node.inputs[0], "Exp") if node.op == "Div" else None
    if exp is None:
        return None
    total = graph.producer.get(node.inputs[1])
    while total is not None and (total.op in ("Expand", "Identity") or OPS.has(total, Trait.RESHAPES)):
        total = graph.producer.get(total.inputs[0])
    if total is None or total.op != "ReduceSum" or total.inputs[0] != exp.outputs[0] or len(total.inputs) != 2:
        return None
    shape, axes = graph.value(exp.outputs[0]).shape, graph.constants.get(total.inputs[1])
    if shape is None or axes is None or axes.size != 1:
        return None
    axis = int(axes.flat[0]) % len(shape)
    if graph.value(node.inputs[1]).shape != (*shape[:axis], 1, *shape[axis + 1 :]):
        return None
    x = exp.inputs[0]
    shifted = _made_by(graph, x, "Sub")
    if shifted is not None and graph.value(shifted.inputs[0]).shape == shape:
        shift = graph.value(shifted.inputs[1]).shape
        if shift is not None and ((1,) * len(shape) + shift)[-len(shape) :][axis] == 1:
            x = shifted.inputs[0]
    return replace(node, op="Softmax", inputs=(x,), attrs={"axis": axis})


def _flattened_softmax(graph: Graph, node: Node) -> Node | None:
    """Recognize a Softmax over the last axis in the form of opset 11: of a matrix, with all other axes flattened."""
    softmax = _made_by(graph, node.inputs[0], "Softmax") if node.op == "Reshape" else None
    flat = _made_by(graph, softmax.inputs[0], "Flatten") if softmax else None
    if softmax is None or flat is None or softmax.attrs["axis"] % 2 != 1:
        return None
    (x,) = flat.inputs
    shape = graph.value(x).shape
    same = graph.value(node.outputs[0]).shape == shape and len(graph.users[softmax.outputs[0]]) == 1
    if shape is None or not same or flat.attrs["axis"] % len(shape) != len(shape) - 1:
        return None
    return replace(node, op="Softmax", inputs=(x,), attrs={"axis": len(shape) - 1})


def _sigmoid(graph: Graph, node: Node) -> Node | None:
    """Recognize 1 / (1 + exp(-x))."""
    if node.op == "Reciprocal":
        below = node.inputs[0]
    elif node.op == "Div" and _is_one(graph, node.inputs[0]):
        below = node.inputs[1]
    else:
        return None
    total = _made_by(graph, below, "Add")
    for one, other in (total.inputs, reversed(total.inputs)) if total else ():
        exp = _made_by(graph, other, "Exp")
        negated = _made_by(graph, exp.inputs[0], "Neg") if exp else None
        if negated and _is_one(graph, one) and graph.value(negated.inputs[0]).shape == graph.value(below).shape:
            return replace(node, op="Sigmoid", inputs=negated.inputs, attrs={})
    return None


def _made_by(graph: Graph, name: str, op: str) -> Node | None:
    """The node that computes a value, if it has this operator."""
    node = graph.producer.get(name)
    return node if node is not None and not node.domain and node.op == op else None


def _is_one(graph: Graph, name: str) -> bool:
    """Whether a value is a constant with the single element 1."""
    array = graph.constants.get(name)
    return array is not None and array.size == 1 and float(array.flat[0]) == 1


_IDIOMS: tuple[Callable[[Graph, Node], Node | None], ...] = (_softmax, _flattened_softmax, _sigmoid)
