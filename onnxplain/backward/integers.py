"""Integer inputs (tokens, bytes, categories): the floats that stand for them, and attributions back at the integers.

Integers have no gradient. They are followed through operators that move them or calculate with them up to the first
floats: a row of an embedding table, a one-hot vector, or the number itself. These floats are explained. Their
attributions then go back to the integers along the same nodes, which is linear: through movements as any cotangent,
through arithmetic unchanged, and through lookups summed to one number per integer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from onnxplain.backward.walk import backward
from onnxplain.graph.emit import Emitter
from onnxplain.graph.ir import Graph, Node, Value
from onnxplain.graph.var import Var
from onnxplain.ops import OPS, Trait
from onnxplain.ops.index import zeros
from onnxplain.rules.base import Gradient

# A lookup can yield booleans (a comparison); these go through logical operators as numbers through arithmetic.
_AFTER_LOOKUP = Trait.ON_INTEGERS | Trait.ON_BOOLEANS | Trait.LOOKS_UP


@dataclass(frozen=True)
class FirstFloats:
    """The first floating-point tensors computed from an integer input.

    Attributes
    ----------
    looked_up
        Names of the tensors that a lookup lies before: embeddings, one-hot vectors.
    converted
        Names of the tensors that hold the numbers themselves, converted to floats.
    nodes
        The nodes from the input to these tensors, in graph order.
    """

    looked_up: tuple[str, ...]
    converted: tuple[str, ...]
    nodes: tuple[Node, ...]


def is_continuous(graph: Graph, value: Value) -> bool:
    """Whether an input is continuous, so that it has a gradient.

    A float input that the model only casts to integers or compares is not: Keras declares inputs of integers as floats.
    """
    users = graph.users.get(value.name, [])
    casts = [n for n in users if n.op == "Cast" and graph.value(n.outputs[0]).dtype.kind in "iu"]
    return value.is_float and not (casts and all(n in casts or OPS.stops_gradients(n) for n in users))


def first_floats(graph: Graph, name: str) -> FirstFloats:
    """Find the first floating-point tensors computed from an integer input."""
    carried = {name: False}  # name of a value that carries the integers -> whether a lookup lies before it
    floats: dict[str, bool] = {}
    nodes = []
    for node in graph.nodes:
        read = [i for i in node.inputs if i in carried]
        if not read:
            continue
        after = any(carried[i] for i in read) or _looks_up(graph, node, carried)
        if not (_is_moved(node) or OPS.has(node, _AFTER_LOOKUP if after else Trait.ON_INTEGERS)):
            continue
        nodes.append(node)
        for output in filter(None, node.outputs):
            (floats if graph.value(output).is_float else carried)[output] = after
    looked_up = tuple(n for n, lookup in floats.items() if lookup)
    return FirstFloats(looked_up, tuple(n for n, lookup in floats.items() if not lookup), tuple(nodes))


def back_to_input(graph: Graph, emitter: Emitter, name: str, attributions: Mapping[str, Var]) -> Var:
    """Write the attribution of an integer input from those of its first floats: one number per integer.

    Parameters
    ----------
    graph
        The forward graph.
    emitter
        The emitter that holds it.
    name
        The integer input.
    attributions
        Name of a first float -> its attribution, of its shape.
    """
    x, dtype = emitter.var(name), next(iter(attributions.values())).dtype
    with emitter.within(f"{name}/elements"):
        before = len(emitter.nodes)
        start = zeros(x.sizes(), dtype, x.shape)
        (image,) = emitter.ops("Identity", start, outputs=1, names=[emitter.fresh("Identity")], shapes=[x.shape])
        images = {name: image}
        for node in first_floats(graph, name).nodes:
            results = _image(emitter, node, images, dtype)
            images.update({o: r for o, r in zip(node.outputs, results, strict=False) if o})
        path = Graph((), (), tuple(emitter.nodes[before:]), emitter.constants, emitter.values)
        seeds = {images[tensor].name: ct for tensor, ct in attributions.items()}
        back = backward(path, emitter, seeds, [image.name], lambda calls: [Gradient()] * len(calls))
    attribution = back[image.name]
    return start if attribution is None else attribution


def _is_moved(node: Node) -> bool:
    return OPS.has(node, Trait.MOVES) or node.operator in ("Concat", "Pad")


def _looks_up(graph: Graph, node: Node, carried: Mapping[str, bool]) -> bool:
    if not OPS.has(node, Trait.LOOKS_UP):
        return False
    place = int(node.op in ("Gather", "GatherElements"))  # of the integers: behind a table, or in front
    others = [i for k, i in enumerate(node.inputs) if i not in carried or k != place]
    if node.op == "Equal":  # comparison with all of several values makes a one-hot vector; with one of them, a mask
        operands = [graph.value(i).shape or () for i in node.inputs if i in carried]
        result = graph.value(node.outputs[0]).shape or ()
        return len(operands) == 1 and operands[0][-1:] == (1,) and result[-1:] != (1,)
    return node.inputs[place] in carried and carried.keys().isdisjoint(others)


def _image(emitter: Emitter, node: Node, images: Mapping[str, Var], dtype: object) -> tuple[Var, ...]:
    """Write a node on the way to the first floats as a linear map of floats.

    The values of the result do not matter: only its backward nodes are used.
    """
    outputs = [emitter.var(o) for o in node.outputs if o]
    shapes = [o.shape for o in outputs]
    moved = _is_moved(node) and (node.op != "Gather" or node.inputs[0] in images)
    if moved:
        operands = [
            None if not i or (node.op == "Pad" and k == 2) else images[i] if i in images else emitter.var(i)
            for k, i in enumerate(node.inputs)
        ]
        if node.op == "Concat":
            operands = [
                v if v is None or i in images else zeros(v.sizes(), dtype, v.shape)
                for i, v in zip(node.inputs, operands, strict=True)
            ]
        dtypes = [dtype] * len(outputs)
        return emitter.ops(node.op, *operands, outputs=len(outputs), dtypes=dtypes, shapes=shapes, **node.attrs)
    (y,) = outputs
    total: Var | None = None
    for name in dict.fromkeys(i for i in node.inputs if i in images):
        x = _spread(emitter, node, images[name], y)
        total = x if total is None else total + x
    assert total is not None
    return (total,)


def _spread(emitter: Emitter, node: Node, x: Var, y: Var) -> Var:
    """Expand one number per integer to the shape of y: along the axes of what was looked up, or by broadcasting."""
    if node.op == "Gather":
        table = emitter.var(node.inputs[0]).rank
        axis = node.attrs["axis"] % table
        x = _unsqueezed(x, range(x.rank, x.rank + table - 1 - axis))
    elif node.op in ("OneHot", "OneHotEncoder"):
        x = _unsqueezed(x, [node.attrs.get("axis", -1) % y.rank])
    return emitter.op("Expand", x, y.sizes(), known=y.shape)


def _unsqueezed(x: Var, axes: Sequence[int]) -> Var:
    known = list(x.shape or ())
    for axis in axes:
        known.insert(axis, 1)
    return x.emitter.op("Unsqueeze", x, x.emitter.ints(axes), known=tuple(known)) if axes else x
