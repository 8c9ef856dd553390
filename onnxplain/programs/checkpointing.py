"""Less memory for one more forward pass: activations that the reverse walk reads are computed again, not kept.

Also known as checkpointing (Griewank and Walther 2000; Chen et al. 2016, "Training deep nets with sublinear memory
cost"): the forward pass is cut into segments, what crosses a cut is kept, and the rest of a segment is computed again
when the reverse walk arrives at it.
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

# What one segment may hold, as a part of what the whole forward pass computes; the best one is taken.
_PARTS = (2, 3, 4, 6, 8, 12, 16, 24)


def recomputed(graph: Graph, seeds: Collection[str], ends: Iterable[str]) -> Graph:
    """The graph that needs the least memory among those that compute activations again; itself, if none needs less.

    Parameters
    ----------
    graph
        A program.
    seeds
        The inputs that all of its reverse walk, and nothing of its forward pass, depends on.
    ends
        What the forward pass is there for, but for the walk: the score, for one.
    """
    walk = _Walk(graph, seeds, ends)
    if not walk.forward:
        return graph
    candidates = dict.fromkeys(walk.cuts(sum(walk.sizes) / part) for part in _PARTS)
    return min([graph, *map(walk.written, candidates)], key=peak_per_sample)


class _Walk:
    """A program, taken apart.

    Attributes
    ----------
    backward
        The nodes that depend on a seed.
    forward
        The nodes of the forward pass that depend on an input, by their distance from the inputs. ONNX Runtime runs them
        before the walk.
    aside
        The other nodes that depend on an input: the walk alone asks for them (masks, sizes), and ONNX Runtime runs them
        only then.
    before
        All nodes that are not in ``backward``: these, and those that depend on weights alone or must not run twice.
    roots
        Name of a value of a node aside -> the values of ``forward`` that it is made of.
    place
        Name of a value -> place in ``forward`` of the node that computes it, or, for one aside, of the last node there
        that it needs.
    sizes
        By place: bytes that are computed there.
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
        self.crossing = list(accumulate(change))  # by place: bytes from before that are read there or behind

    def cuts(self, limit: float) -> tuple[int, ...]:
        """Places that segments begin at: little crosses there, and at most ``limit`` bytes lie between two."""
        cuts, start, held = [], 0, [0, *accumulate(self.sizes)]
        for place in range(len(self.forward)):
            if held[place + 1] - held[start] > limit and place > start:
                late = [k for k in range(start + 1, place + 1) if held[k] - held[start] >= limit / 2] or [place]
                start = min(late, key=lambda k: (self.crossing[k], -k))
                cuts.append(start)
        return tuple(cuts)

    def written(self, cuts: Sequence[int]) -> Graph:
        """The graph that computes the segments between the cuts again; not the last, which the walk begins with."""
        emitter = Emitter(self.graph)
        emitter.nodes = list(self.before)
        number = np.searchsorted(cuts, range(len(self.forward)), side="right").tolist()
        segment = {name: number[place] for name, place in self.place.items() if number[place] < len(cuts)}
        kept = {v.name for v in self.graph.outputs} | {name for node in self.graph.nodes for name in node.captured}
        for node in self.before:
            if self.roots.keys().isdisjoint(node.outputs):
                here = min(segment.get(name, len(cuts)) for name in node.outputs if name)
                kept.update(name for name in node.inputs if segment.get(name, here) < here)
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
        """Compute values once more, as soon as ``arrived`` is there; their names -> those of the copies.

        What the copies read goes through a Reshape to its own sizes, to which no number at all of ``arrived`` is
        appended: so ONNX Runtime neither runs them before nor takes them for the originals.
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
    """The nodes by their distance from the inputs: what hangs on a value stands next to it."""
    depth: dict[str, int] = {"": 0}
    levels: dict[int, list[Node]] = {}
    for node in nodes:
        level = 1 + max((depth.get(name, 0) for name in node.reads), default=0)
        depth |= dict.fromkeys(filter(None, node.outputs), level)
        levels.setdefault(level, []).append(node)
    return [node for level in sorted(levels) for node in levels[level]]


def _stays(graph: Graph, node: Node) -> bool:
    """Whether a node is not to run twice, or works on what is no tensor."""
    values = [graph.values.get(name) for name in (*node.reads, *node.outputs)]
    return bool(node.subgraphs) or OPS.has(node, Trait.RANDOM) or any(v is not None and v.is_sequence for v in values)
