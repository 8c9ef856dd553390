"""Scan written as a Loop, whose trips read the scanned inputs slice by slice."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from onnxplain.graph.emit import Emitter
from onnxplain.graph.ir import Graph, Node, Value
from onnxplain.graph.var import Var


def write_loop(node: Node, emitter: Emitter) -> None:
    """Write a Scan node as a Loop: each trip gathers one slice per scanned input, by the number of the trip."""
    body: Graph = node.attrs["body"]
    states = len(node.inputs) - node.attrs["num_scan_inputs"]
    sources, reads = [], []
    index, on, go = (
        Value(emitter.fresh(n), np.dtype(t), ()) for n, t in (("index", np.int64), ("on", bool), ("go", bool))
    )
    for name, value, (axis, back) in zip(
        node.inputs[states:], body.inputs[states:], _order(node, "input"), strict=True
    ):
        x = emitter.var(name)
        sources.append(_reversed(x, axis) if back else x)
        reads.append(Node("Gather", (sources[-1].name, index.name), (value.name,), {"axis": axis % x.rank}))
    count = sources[0].size(reads[0].attrs["axis"]).reshape([])
    ends = [replace(end, shape=start.shape) for start, end in zip(body.inputs[:states], body.outputs, strict=False)]
    loop = body.replace(
        inputs=(index, on, *body.inputs[:states]),
        outputs=(go, *ends, *body.outputs[states:]),
        nodes=(*reads, Node("Identity", (on.name,), (go.name,)), *body.nodes),
        values={**body.values, **{v.name: v for v in (index, on, go, *ends)}},
    )
    outputs, later = list(node.outputs), []
    for k, (value, (axis, back)) in enumerate(zip(body.outputs[states:], _order(node, "output"), strict=True), states):
        if (axis or back) and k < len(outputs) and outputs[k]:
            stack = emitter.input(f"{outputs[k]}/stack", value.dtype, value.shape and (None, *value.shape))
            later.append((stack, axis, back, outputs[k]))
            outputs[k] = stack.name
    inputs = (count.name, "", *node.inputs[:states])
    emitter.nodes.append(Node("Loop", inputs, tuple(outputs), {"body": loop}, node.name, each_slice=True))
    for stack, axis, back, name in later:
        stack = _reversed(stack, 0) if back else stack
        rest = list(range(1, stack.rank))
        at = axis % stack.rank
        result = stack.transpose([*rest[:at], 0, *rest[at:]])
        emitter.ops(
            "Identity", result, outputs=1, names=[name], dtypes=[result.dtype], shapes=[emitter.var(name).shape]
        )


def _order(node: Node, what: str) -> list[tuple[int, int]]:
    """Axis and direction (1: backwards) of each scanned input or output; ``what``: "input" or "output"."""
    body: Graph = node.attrs["body"]
    scanned = node.attrs["num_scan_inputs"]
    count = scanned if what == "input" else len(body.outputs) - (len(node.inputs) - scanned)
    axes, directions = (node.attrs.get(f"scan_{what}_{kind}") or [0] * count for kind in ("axes", "directions"))
    return list(zip(axes, directions, strict=True))


def _reversed(x: Var, axis: int) -> Var:
    """Reverse an axis."""
    first, last, step = (x.emitter.ints([i]) for i in (-1, np.iinfo(np.int64).min, -1))
    return x.emitter.op("Slice", x, first, last, x.emitter.ints([axis]), step, known=x.shape)
