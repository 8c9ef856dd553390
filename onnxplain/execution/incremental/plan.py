"""`PatchPlan`: the nodes that run on patches, up to where whole maps take no more work, by an estimate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxplain.execution.incremental.regions import Array, Reach, area
from onnxplain.execution.incremental.steps import PatchStep, spatial, step_of
from onnxplain.graph.ir import Graph, Node

# Work is counted in multiplications. These are as measured with ONNX Runtime on a CPU.
MOVE_WORK = 5  # work of reading or writing one element
NODE_WORK = 300_000  # work of running one node, besides that on elements
MAX_SHARE = 0.9  # of the work of a forward pass: a plan that takes more is not worth a second session


@dataclass(frozen=True, eq=False)
class PatchPlan:
    """The nodes that run on patches.

    Attributes
    ----------
    steps
        How each of them runs, in the order of the graph.
    bounds
        Name of each tensor that can be a patch -> its regions.
    frontier
        Names of the patches that other nodes read as whole maps.
    share
        Estimated work for one window, as a share of that of a forward pass.
    """

    steps: Sequence[PatchStep]
    bounds: Mapping[str, Array]
    frontier: tuple[str, ...]
    share: float


def planned(graph: Graph, name: str, bounds: Array, reach: float | None) -> PatchPlan | None:
    """Find the nodes to run on patches: of the nodes that can, the first ones, as many as take the least work.

    None if that work is more than `MAX_SHARE` of a forward pass.
    """
    axes = bounds.shape[1]
    sizes = spatial(graph, name, axes)
    if sizes is None:
        return None
    limit = Reach(reach, bounds.mean(axis=-1) / sizes) if reach else None
    reached = graph.reachable_from([name])
    nodes = [node for node in graph.nodes if not reached.isdisjoint(node.reads)]
    patched, steps = {name: bounds}, {}
    for place, node in enumerate(nodes):
        if all(i in patched for i in node.reads if i in reached) and (step := step_of(graph, node, patched, limit)):
            steps[place] = step
            patched |= {output: step.bounds for output in node.outputs if output}
    plain = np.array([_work(graph, node, 1.0) for node in nodes])
    forward = sum(_work(graph, node, 1.0) for node in graph.nodes)
    saved = np.zeros(len(nodes))
    for place, step in steps.items():
        saved[place] = plain[place] - _step_work(graph, step, patched, axes)
    # `totals[k]` is the work if those of the first k nodes that can run on patches do.
    totals = plain.sum() - np.concatenate([[0.0], np.cumsum(saved)])
    made = {name: -1} | {o: place for place, step in steps.items() for o in step.node.outputs}
    lasts = {tensor: _last_read(nodes, steps, tensor) for tensor in made}
    for tensor, place in made.items():
        totals[place + 1 : lasts[tensor] + 1] += _assembly_work(graph, tensor, axes)
    count = int(totals.argmin())
    share = float(totals[count]) / forward
    if share > MAX_SHARE:
        return None
    frontier = tuple(tensor for tensor, place in made.items() if place < count <= lasts[tensor])
    return PatchPlan([step for place, step in steps.items() if place < count], patched, frontier, share)


def _last_read(nodes: Sequence[Node], steps: Mapping[int, PatchStep], tensor: str) -> int:
    """Position of the last node that reads a tensor; after all nodes if some node reads the whole map in any case."""
    readers = [place for place, node in enumerate(nodes) if tensor in node.reads]
    return len(nodes) if any(place not in steps for place in readers) else max(readers, default=-1)


def _elements(graph: Graph, name: str) -> float:
    """Number of elements of a tensor, for one sample."""
    shape = graph.value(name).shape or ()
    return float(np.prod([d for d in shape if isinstance(d, int)]))


def _work(graph: Graph, node: Node, share: float) -> float:
    """Work of a node on a share of the elements of its maps."""
    outputs = sum(_elements(graph, o) for o in node.outputs if o in graph.values)
    terms = 0.0
    if node.op == "Conv":
        terms = float(np.prod([d for d in (graph.value(node.inputs[1]).shape or ())[1:] if isinstance(d, int)]))
    elif node.op in ("Gemm", "MatMul"):
        inner = (graph.value(node.inputs[0]).shape or (1,))[-1]
        terms = float(inner) if isinstance(inner, int) else 1.0
    return share * outputs * (terms + MOVE_WORK) + NODE_WORK


def _step_work(graph: Graph, step: PatchStep, patched: Mapping[str, Array], axes: int) -> float:
    """Work of a node on patches, with that of growing the patches that it reads."""
    sizes = spatial(graph, step.node.outputs[0], axes)
    work = _work(graph, step.node, area(step.bounds) / np.prod(sizes or ()))
    for name in step.maps:
        if name in patched and not np.array_equal(patched[name], step.region):
            size = (graph.value(name).shape or (0, 1))[1]
            channels = size if isinstance(size, int) else 1
            work += 2 * MOVE_WORK * area(step.region) * channels + (1 + 3 * axes) * NODE_WORK
    return float(work)


def _assembly_work(graph: Graph, tensor: str, axes: int) -> float:
    """Work of writing a patch into the whole map."""
    return 2 * MOVE_WORK * _elements(graph, tensor) + (1 + 3 * axes) * NODE_WORK
