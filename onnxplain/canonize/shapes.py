"""Shape inference that includes the states of loops, which onnx leaves without shapes as a loop might change them.

A state is first assumed to keep the shape that it has before the loop. Sizes that the body changes are then dropped,
until nothing changes any more. Constants on which shapes may depend are copied into the bodies that read them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

import onnx

from onnxplain.canonize.prepare import names_of, set_shape
from onnxplain.errors import OptionError
from onnxplain.graph.ir import OPSET, Graph, Shape
from onnxplain.storage.reader import graphs_of, shape_of, to_graph
from onnxplain.storage.tensors import is_external
from onnxplain.storage.writer import to_proto

# Opset 22 differs from 21 in types, and in that pooling ignores windows that start behind the input.
INFERENCE_OPSET = 22

_Loop = tuple[list[onnx.GraphProto], onnx.NodeProto]  # the graphs around a Loop, the outermost first, and the Loop


def inferred(model: onnx.ModelProto) -> onnx.ModelProto:
    """Infer all shapes; those that the bodies of control-flow nodes declare are ignored."""
    declared = onnx.ModelProto()
    declared.CopyFrom(model)
    counts = [len(graph.initializer) for graph in graphs_of(declared.graph)]
    _show(declared.graph, {})
    _forget_bodies(declared.graph)
    loops = list(_loops(declared.graph))
    names = names_of(shape_of(info) for info in declared.graph.input)
    for index in range(len(loops)):  # one at a time, as the body of one may return results of another
        _learn(loops[index], list(_loops(_inferred(declared).graph))[index], names, first=True)
    while True:
        result = _inferred(declared)
        if not sum(_learn(*pair, names, first=False) for pair in zip(loops, _loops(result.graph), strict=True)):
            break
    for graph, count in zip(graphs_of(result.graph), counts, strict=True):
        del graph.initializer[count:]
    return result


def typed(graph: Graph) -> Graph:
    """Add the types and shapes that ONNX infers, and all attributes, to the graph of an expression.

    Raises
    ------
    OptionError
        The graph is not valid ONNX.
    """
    proto = to_proto(graph)
    context = onnx.checker.C.CheckerContext()
    context.ir_version, context.opset_imports = proto.ir_version, {o.domain: o.version for o in proto.opset_import}
    try:
        for node in proto.graph.node:
            onnx.checker.check_node(node, context)
        for info in proto.graph.output:
            info.ClearField("type")  # they are inferred from the operators
        proto = onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise OptionError(f"the expression is not valid ONNX: {' '.join(str(error).split())}") from None
    return to_graph(proto)


def forget_shapes(graph: onnx.GraphProto) -> None:
    """Drop the shapes that a graph and its bodies declare, except those of the graph's inputs and of constants."""
    _forget(graph, [*graph.value_info, *graph.output])
    _forget_bodies(graph)


def _forget_bodies(graph: onnx.GraphProto) -> None:
    for body in list(graphs_of(graph))[1:]:
        _forget(body, [*body.value_info, *body.output, *body.input])


def _forget(graph: onnx.GraphProto, declared: Iterable[onnx.ValueInfoProto]) -> None:
    constants = {t.name for t in graph.initializer}
    for info in declared:
        if info.name not in constants:
            declare(info, None)


def _inferred(model: onnx.ModelProto) -> onnx.ModelProto:
    _set_opset(model, INFERENCE_OPSET)
    result = onnx.shape_inference.infer_shapes(model, data_prop=True)
    _set_opset(result, OPSET)
    return result


def _set_opset(model: onnx.ModelProto, version: int) -> None:
    for entry in model.opset_import:
        if entry.domain in ("", "ai.onnx"):
            entry.version = version


def _show(graph: onnx.GraphProto, around: Mapping[str, onnx.TensorProto]) -> None:
    """Copy small integer constants into the bodies that read them; ``around`` holds those of the outer graphs."""
    read = {name for node in graph.node for name in node.input}
    graph.initializer.extend(tensor for name, tensor in around.items() if name in read)
    integers = (onnx.TensorProto.INT64, onnx.TensorProto.INT32)
    constants = {t.name: t for t in graph.initializer if t.data_type in integers and not is_external(t)}
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _show(attribute.g, {**around, **constants})


def _loops(graph: onnx.GraphProto, around: Sequence[onnx.GraphProto] = ()) -> Iterator[_Loop]:
    """Yield all Loops in a graph and its subgraphs."""
    graphs = [*around, graph]
    for node in graph.node:
        if node.op_type == "Loop":
            yield graphs, node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _loops(attribute.g, graphs)


def _learn(loop: _Loop, seen: _Loop, names: Collection[str], first: bool) -> bool:
    """Declare the shapes of a loop's states, in its body and for its outputs; return whether a shape has changed.

    Parameters
    ----------
    loop
        The loop whose declarations are changed.
    seen
        The same loop after shape inference.
    names
        Names of the inputs' sizes.
    first
        Take the shapes from before the loop; otherwise keep of them what the body leaves unchanged.
    """
    (around, node), (graphs, shown) = loop, seen
    body, seen_body = _body(node), _body(shown)
    for info in body.input[:2]:
        declare(info, ())
    changed = False
    shapes = {name: shape for part in graphs for name, shape in _shapes(part)}
    for k, name in enumerate(node.input[2:]):
        inside, initial = body.input[2 + k], shapes.get(name)
        shape = _common(initial, initial, names)
        if not first:
            shape = _common(_common(shape_of(inside), shape, names), shape_of(seen_body.output[1 + k]), names)
        changed |= shape != shape_of(inside)
        kind = seen_body.input[2 + k].type
        inside.type.CopyFrom(kind)
        declare(inside, shape)
        if k < len(node.output) and node.output[k]:
            declare(_info(around[-1], node.output[k], kind), shape)
    return changed


def _body(node: onnx.NodeProto) -> onnx.GraphProto:
    body: onnx.GraphProto = next(a.g for a in node.attribute if a.name == "body")
    return body


def _shapes(graph: onnx.GraphProto) -> Iterator[tuple[str, Shape | None]]:
    for info in (*graph.input, *graph.value_info, *graph.output):
        yield info.name, shape_of(info)
    for tensor in graph.initializer:
        yield tensor.name, tuple(tensor.dims)


def _common(a: Shape | None, b: Shape | None, names: Collection[str]) -> Shape | None:
    """Keep the sizes on which two shapes agree. Names other than the inputs' change from one inference to the next."""
    if a is None or b is None or len(a) != len(b):
        return None
    return tuple(d if d == e and (isinstance(d, int) or d in names) else None for d, e in zip(a, b, strict=True))


def _info(graph: onnx.GraphProto, name: str, kind: onnx.TypeProto) -> onnx.ValueInfoProto:
    """Find the declaration of a value, or make one."""
    infos: list[onnx.ValueInfoProto] = [v for v in (*graph.output, *graph.value_info) if v.name == name]
    return infos[0] if infos else graph.value_info.add(name=name, type=kind)


def declare(info: onnx.ValueInfoProto, shape: Shape | None) -> None:
    """Declare the shape of a tensor; None: not even its rank is known."""
    if info.type.HasField("tensor_type"):
        info.type.tensor_type.ClearField("shape")
        if shape is not None:
            info.type.tensor_type.shape.SetInParent()
            set_shape(info, shape)
