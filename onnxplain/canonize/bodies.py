"""The bodies of control-flow nodes are put in order.

Requires a graph. Ensures that names are unique in the whole model; that every Scan is a Loop; that large constants are
in the main graph, so that a copy of a body does not copy them; and that a Loop has no state that never changes: its
body reads the initial value from outside.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from onnxplain.graph.emit import Emitter
from onnxplain.graph.ir import Graph, Node, Value
from onnxplain.graph.scan import write_loop
from onnxplain.storage.tensors import LARGE_TENSOR


def tidied(graph: Graph, scans: bool = False) -> Graph:
    """Tidy up the bodies of a graph.

    Parameters
    ----------
    graph
        The graph.
    scans
        Keep Scan nodes. This is needed if ONNX Runtime rewrites the graph once more: it would drop the note on a Loop
        that it was a Scan.
    """
    if not any(node.subgraphs for node in graph.nodes):
        return graph
    main = Emitter(graph.replace(nodes=()))
    main.reserve(Node(n.op, (), n.outputs) for n in graph.nodes)
    _write(graph.nodes, {}, main, main, scans)
    return graph.replace(nodes=tuple(main.nodes), constants=main.constants, values=main.values)


def _write(nodes: Iterable[Node], names: Mapping[str, str], emitter: Emitter, main: Emitter, scans: bool) -> None:
    """Write nodes with their operands and results renamed; large constants of their bodies go to ``main``."""
    for node in nodes:
        inputs, outputs = (tuple(names.get(n, n) for n in part) for part in (node.inputs, node.outputs))
        attrs = {k: _body(v, names, emitter, main, scans) if isinstance(v, Graph) else v for k, v in node.attrs.items()}
        node = replace(node, inputs=inputs, outputs=outputs, attrs=attrs)
        if node.op == "Scan" and not node.domain and not scans:
            write_loop(node, emitter)
        else:
            emitter.nodes.append(node)
    emitter.nodes = [part for node in emitter.nodes for part in _without_constant_states(node)]


def _body(graph: Graph, around: Mapping[str, str], outer: Emitter, main: Emitter, scans: bool) -> Graph:
    """Write a body with names that are unique in the model; ``around`` renames what it reads from outside."""
    defined = [*(v.name for v in graph.inputs), *graph.constants, *graph.producer]
    names = {**around, **{name: outer.fresh(name) for name in defined}}

    def renamed(values: Iterable[Value]) -> list[Value]:
        return [replace(v, name=names.get(v.name, v.name)) for v in values]

    constants = {names[name]: array for name, array in graph.constants.items()}
    large = {name for name, array in constants.items() if array.nbytes > LARGE_TENSOR}
    main.constants.update({name: constants.pop(name) for name in large})
    values = {v.name: v for v in renamed(v for v in graph.values.values() if v.name in defined)}
    inner = Emitter(Graph((), (), (), constants, values), outer)
    _write(graph.nodes, names, inner, main, scans)
    outputs = renamed(graph.outputs)
    inside = {names[name] for name in defined} - large
    for i, output in enumerate(outputs):
        if output.name not in inside:  # ONNX requires that a body computes its outputs
            (copy,) = inner.ops(
                "Identity", inner.var(output.name), outputs=1, dtypes=[output.dtype], shapes=[output.shape]
            )
            outputs[i] = replace(output, name=copy.name)
    inputs = tuple(renamed(graph.inputs))
    return Graph(inputs, tuple(outputs), tuple(inner.nodes), inner.constants, inner.values, graph.name)


def _without_constant_states(node: Node) -> list[Node]:
    """Remove the states of a Loop that never change, and copy their initial to their final values.

    Any other node is returned as it is.
    """
    if node.domain or node.op != "Loop":
        return [node]
    body: Graph = node.attrs["body"]
    copied = {n.outputs[0]: n.inputs[0] for n in body.nodes if n.op == "Identity" and not n.domain}

    def source(name: str) -> str:
        while name in copied:
            name = copied[name]
        return name

    triples = enumerate(zip(node.inputs[2:], body.inputs[2:], body.outputs[1:], strict=False))
    constant = {k: (initial, start.name) for k, (initial, start, end) in triples if source(end.name) == start.name}
    names = {start: initial for initial, start in constant.values()}
    # Nodes of the body read the outer value directly; bodies inside of it read a copy under the old name.
    nodes = [Node("Identity", (initial,), (start,)) for start, initial in names.items()]
    nodes += [replace(n, inputs=tuple(names.get(i, i) for i in n.inputs)) for n in body.nodes]
    body = body.replace(
        inputs=tuple(v for k, v in enumerate(body.inputs, -2) if k not in constant),
        outputs=tuple(v for k, v in enumerate(body.outputs, -1) if k not in constant),
        nodes=tuple(nodes),
    )
    outputs = tuple(o for k, o in enumerate(node.outputs) if k not in constant)
    inputs = tuple(i for k, i in enumerate(node.inputs, -2) if k not in constant)
    finals = [(initial, node.outputs[k]) for k, (initial, _) in constant.items() if k < len(node.outputs)]
    copies = [Node("Identity", (initial,), (final,)) for initial, final in finals if final]
    return [*copies, replace(node, inputs=inputs, outputs=outputs, attrs={**node.attrs, "body": body})]
