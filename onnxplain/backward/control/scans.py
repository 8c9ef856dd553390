"""Loops over the slices of tensors, rewritten as Scan, which ONNX Runtime runs faster.

ONNX Runtime reads the slices of a Scan in place and writes its outputs directly into the result; a Loop gathers each
slice into a copy and concatenates the outputs at the end.
"""

from __future__ import annotations

from dataclasses import replace

from onnxplain.backward.control.trips import Trips
from onnxplain.graph.emit import Emitter
from onnxplain.graph.ir import Graph, Node, Value


def as_scans(graph: Graph, outer: Emitter | None = None) -> Graph:
    """Rewrite a graph's Loops as Scans where both compute the same; unread outputs are dropped."""
    if not any(node.op == "Loop" for node in graph.all_nodes):
        return graph
    emitter = Emitter(graph, outer)
    read = {name for node in graph.nodes for name in node.reads} | {v.name for v in graph.outputs}
    nodes = []
    for node in graph.nodes:
        attrs = {k: as_scans(v, emitter) if isinstance(v, Graph) else v for k, v in node.attrs.items()}
        changed = replace(node, attrs=attrs)
        nodes.append(_scan(_shorter(changed, read), emitter) if node.op == "Loop" else changed)
    return graph.replace(nodes=tuple(nodes)).pruned([v.name for v in graph.outputs])


def _shorter(node: Node, read: set[str]) -> Node:
    """Drop the scan outputs of a Loop that are not in ``read``."""
    body: Graph = node.attrs["body"]
    states = len(body.inputs) - 1  # with the condition
    pairs = list(zip(node.outputs[states - 1 :], body.outputs[states:], strict=True))
    kept = [pair for pair in pairs if pair[0] in read]
    outputs = (*body.outputs[:states], *(value for _, value in kept))
    body = body.pruned([v.name for v in outputs])
    return replace(
        node,
        outputs=(*node.outputs[: states - 1], *(name for name, _ in kept)),
        attrs={**node.attrs, "body": body.replace(outputs=outputs)},
    )


def _scan(node: Node, emitter: Emitter) -> Node:
    """Return the Scan that computes the same as a Loop, or the Loop itself if there is none.

    The Loop must run at least once, read its trip number only to gather slices, one per trip, of captured tensors, and
    neither stop early nor change the shape of a state.
    """
    body: Graph = node.attrs["body"]
    trips = Trips.of(emitter, node)
    index, on, *starts = body.inputs
    go, *ends = body.outputs
    readers = [n for n in body.nodes if index.name in n.reads]
    slices = [n for n in readers if n.op == "Gather" and n.inputs[1] == index.name and n.inputs[0] in body.captured]
    if trips is None or not slices or len(slices) < len(readers) or _changing(starts, ends):
        return node
    sources = [emitter.var(n.inputs[0]) for n in slices]
    axes = [n.attrs["axis"] % source.rank for n, source in zip(slices, sources, strict=True)]
    if not all(trips.match(*pair) for pair in zip(sources, axes, strict=True)):
        return node
    dropped = {go.name, *(n.outputs[0] for n in slices)}
    nodes = tuple(n for n in body.nodes if dropped.isdisjoint(n.outputs))
    copied = not dropped.isdisjoint(v.name for v in ends)  # a Scan's body must compute its outputs itself
    if copied or any(on.name in n.reads or go.name in n.reads for n in nodes):
        return node
    scanned = body.replace(
        inputs=(*starts, *(body.value(n.outputs[0]) for n in slices)), outputs=tuple(ends), nodes=nodes
    )
    attrs = {"body": scanned, "num_scan_inputs": len(slices), "scan_input_axes": axes}
    return Node("Scan", (*node.inputs[2:], *(s.name for s in sources)), node.outputs, attrs, node.name)


def _changing(starts: list[Value], ends: list[Value]) -> bool:
    """Whether a state can change its shape from trip to trip."""
    pairs = zip(starts, ends, strict=False)
    return any(a.shape is None or a.shape != b.shape or None in a.shape for a, b in pairs)
