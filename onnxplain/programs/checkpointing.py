"""Checkpointing: activations that the reverse walk reads are computed again instead of kept.

This takes less memory, and one more forward pass (Griewank and Walther 2000; Chen et al. 2016, "Training deep nets with
sublinear memory cost"). The forward pass is cut into segments. Values that cross a cut are kept; the other values of a
segment are computed again when the reverse walk arrives at it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate

import numpy as np

from onnxplain.graph.emit import Emitter
from onnxplain.graph.ir import Graph, Node
from onnxplain.graph.memory import peak_per_sample, size_per_sample
from onnxplain.graph.var import Var, concat
from onnxplain.ops import OPS, Trait

# Candidates for the bytes of a segment: the whole forward pass, divided by these. The best candidate is taken.
_PARTS = (2, 3, 4, 6, 8, 12, 16, 24)


def recomputed(graph: Graph, seeds: Collection[str], ends: Iterable[str]) -> Graph:
    """Rewrite a program to compute activations again, so that it needs the least memory; itself if nothing needs less.

    Parameters
    ----------
    graph
        Graph of a program.
    seeds
        Names of the inputs on which the whole reverse walk, and nothing of the forward pass, depends.
    ends
        Names of the results of the forward pass, such as the score.
    """
    walk = _Walk(graph, seeds, ends)
    if not walk.forward:
        return graph
    candidates = dict.fromkeys(walk.cuts(sum(walk.sizes) / part) for part in _PARTS)
    return min([graph, *map(walk.written, candidates)], key=peak_per_sample)


class _Walk:
    """The nodes of a program, split into forward pass and reverse walk.

    Attributes
    ----------
    backward
        The nodes that depend on a seed.
    forward
        The nodes of the forward pass that depend on an input, by their distance from the inputs. ONNX Runtime runs them
        before the walk.
    aside
        The other nodes that depend on an input: only the walk reads them (masks, sizes), and ONNX Runtime runs them
        when the walk needs them.
    before
        All nodes that are not in ``backward``: ``forward``, ``aside``, and the nodes that depend on weights alone or
        must not run twice.
    roots
        Name of a value of a node in ``aside`` -> the values of ``forward`` from which it is computed.
    place
        Name of a value -> index in ``forward`` of the node that computes it; for a value of ``aside``, of the last node
        in ``forward`` that it needs.
    sizes
        Bytes per sample that each node in ``forward`` computes, with the values of ``aside`` at its place.
    crossing
        Bytes per sample of earlier values that are read at each place in ``forward`` or later.
    """

    def __init__(self, graph: Graph, seeds: Collection[str], ends: Iterable[str]) -> None:
        self.graph = graph
        inputs = [v.name for v in graph.inputs]
        moving, reached, needed = graph.reachable_from(inputs), graph.reachable_from(seeds), graph.needed_for(ends)
        self.backward = [node for node in graph.nodes if not reached.isdisjoint(node.outputs)]
        self.before = _by_depth(node for node in graph.nodes if reached.isdisjoint(node.outputs))
        again = [node for node in self.before if not moving.isdisjoint(node.outputs) and not _stays(graph, node)]
        self.forward = [node for node in again if not needed.isdisjoint(node.outputs)]
        self.aside = [node for node in again if needed.isdisjoint(node.outputs)]
        self.place = {name: place for place, node in enumerate(self.forward) for name in node.outputs if name}
        self.roots: dict[str, set[str]] = {}
        for node in self.aside:
            roots = {root for name in node.inputs for root in self.roots.get(name, {name} & self.place.keys())}
            self.roots |= dict.fromkeys(filter(None, node.outputs), roots)
        for name, roots in self.roots.items():
            self.place[name] = max((self.place[root] for root in roots), default=0)
        self.sizes, change = [0] * len(self.forward), [0] * (len(self.forward) + 1)
        last = {name: place for place, node in enumerate(self.forward) for name in node.inputs}
        for name, roots in self.roots.items():
            last |= {root: max(last.get(root, 0), self.place[name]) for root in roots}
        for name, place in self.place.items():
            size = size_per_sample(graph.values.get(name))
            self.sizes[place] += size
            if name in last and name not in self.roots:
                change[place + 1] += size
                change[last[name] + 1] -= size
        self.crossing = list(accumulate(change))

    def cuts(self, limit: float) -> tuple[int, ...]:
        """Places at which segments begin: few bytes cross there, and a segment has at most ``limit`` bytes."""
        cuts, start, held = [], 0, [0, *accumulate(self.sizes)]
        for place in range(len(self.forward)):
            if held[place + 1] - held[start] > limit and place > start:
                late = [k for k in range(start + 1, place + 1) if held[k] - held[start] >= limit / 2] or [place]
                start = min(late, key=lambda k: (self.crossing[k], -k))
                cuts.append(start)
        return tuple(cuts)

    def written(self, cuts: Sequence[int]) -> Graph:
        """The graph that computes all segments again but the last, with which the walk begins."""
        emitter = Emitter(self.graph)
        emitter.nodes = list(self.before)
        number = np.searchsorted(cuts, range(len(self.forward)), side="right").tolist()
        segment = {name: number[place] for name, place in self.place.items() if number[place] < len(cuts)}
        kept = {v.name for v in self.graph.outputs} | {name for node in self.graph.nodes for name in node.captured}
        for node in self.before:
            if self.roots.keys().isdisjoint(node.outputs):
                first = min(segment.get(name, len(cuts)) for name in node.outputs if name)
                kept.update(name for name in node.inputs if segment.get(name, first) < first)
        for name, roots in self.roots.items():
            kept.update(root for root in roots if segment.get(root, len(cuts)) < number[self.place[name]])
        lost = segment.keys() - kept
        computed = {name for node in self.backward for name in node.outputs}
        renamed: dict[str, str] = {}
        for node in self.backward:
            arrived = [name for name in node.inputs if name in computed and self.graph.value(name).shape]
            for name in node.inputs:
                if name in lost and name not in renamed and arrived:
                    same = {other for other in lost if segment[other] == segment[name]}
                    wanted = [i for n in self.backward for i in n.inputs if i in same]
                    renamed |= self._again(emitter, wanted, lost, emitter.var(arrived[-1]))
            emitter.nodes.append(replace(node, inputs=tuple(renamed.get(name, name) for name in node.inputs)))
        graph = self.graph.replace(nodes=tuple(emitter.nodes), constants=emitter.constants, values=emitter.values)
        return graph.pruned([v.name for v in self.graph.outputs])

    def _again(self, emitter: Emitter, wanted: Sequence[str], lost: Collection[str], arrived: Var) -> Mapping[str, str]:
        """Write copies of the nodes that compute values, which run after ``arrived``; return their names by value.

        The inputs of the copies pass a Reshape to their own sizes, with zero elements of ``arrived`` appended to the
        sizes. So ONNX Runtime cannot run the copies before ``arrived``, nor merge them with the originals.
        """
        needed, nodes = set(wanted), []
        for node in (*reversed(self.aside), *reversed(self.forward)):
            if not needed.isdisjoint(node.outputs) and not (self.roots.keys() | lost).isdisjoint(node.outputs):
                needed.update(filter(None, node.inputs))
                nodes.append(node)
        own = {name for node in nodes for name in node.outputs if name}
        names = {name: emitter.fresh(f"{name}/again") for name in own}
        emitter.values |= {new: replace(self.graph.values[old], name=new) for old, new in names.items()}
        nothing = emitter.op("Compress", arrived, emitter.const(np.array([False])), known=(0,)).cast(np.int64)
        outside = self.place.keys() | {v.name for v in self.graph.inputs}
        read = dict(names)
        for name in dict.fromkeys(i for node in nodes for i in node.inputs if i not in own):
            if name in outside:
                x = emitter.var(name)
                sizes = concat([nothing, emitter.op("Shape", x, known=(None,))])
                read[name] = emitter.op("Reshape", x, sizes, known=x.shape, allowzero=1).name
        for node in reversed(nodes):
            inputs, outputs = (
                tuple(table.get(n, n) for n in ns) for table, ns in ((read, node.inputs), (names, node.outputs))
            )
            emitter.nodes.append(replace(node, name="", inputs=inputs, outputs=outputs))
        return {name: names[name] for name in wanted}


def _by_depth(nodes: Iterable[Node]) -> list[Node]:
    """Sort nodes by their distance from the inputs, so that the nodes that read a value follow it closely."""
    depth: dict[str, int] = {"": 0}
    levels: dict[int, list[Node]] = {}
    for node in nodes:
        level = 1 + max((depth.get(name, 0) for name in node.reads), default=0)
        depth |= dict.fromkeys(filter(None, node.outputs), level)
        levels.setdefault(level, []).append(node)
    return [node for level in sorted(levels) for node in levels[level]]


def _stays(graph: Graph, node: Node) -> bool:
    """Whether a node must not run twice (bodies, random numbers), or reads or writes a sequence."""
    values = [graph.values.get(name) for name in (*node.reads, *node.outputs)]
    return bool(node.subgraphs) or OPS.has(node, Trait.RANDOM) or any(v is not None and v.is_sequence for v in values)
