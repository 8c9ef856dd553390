"""Estimates of memory: the bytes that a graph takes for each sample, and those of copied weights."""

from __future__ import annotations

from collections.abc import Collection

from onnxplain.graph.ir import Graph, Value, rows_per_sample


def size_per_sample(value: Value | None) -> int:
    """Bytes of one sample's part of a value; unknown sizes count as 1."""
    if value is None or value.shape is None:
        return 0
    size = value.dtype.itemsize
    for dim in value.shape:
        size *= dim if isinstance(dim, int) else rows_per_sample(dim) or 1
    return size


def peak_per_sample(graph: Graph) -> int:
    """Estimate the peak memory of one sample's activations, in bytes.

    Nodes are taken to run in their order, and a value to be freed after the last node that reads it. Values that depend
    on weights only do not count.
    """
    inputs = [v.name for v in graph.inputs]
    moving = graph.reachable_from(inputs).difference(inputs)
    last = {name: place for place, node in enumerate(graph.nodes) for name in (*node.outputs, *node.reads)}
    last |= dict.fromkeys((v.name for v in graph.outputs), len(graph.nodes))
    sizes = {name: size_per_sample(graph.values.get(name)) for name in moving}
    held, most, freed = 0, 0, [0] * (len(graph.nodes) + 1)
    for name, size in sizes.items():
        freed[last[name]] += size
    for place, node in enumerate(graph.nodes):
        held += sum(sizes[name] for name in node.outputs if name in sizes)
        most = max(most, held)
        held -= freed[place]
    return most


def copied_weights(graph: Graph, layers: Collection[str]) -> int:
    """Bytes of the copies of weights that ONNX Runtime makes for its CPU kernels, in their layout: one per node.

    ``layers``: the operators with such kernels.
    """
    moving = graph.reachable_from(v.name for v in graph.inputs)
    read = [name for node in graph.nodes if node.operator in layers for name in node.reads if name not in moving]
    return sum(size_per_sample(graph.value(name)) for name in read)
