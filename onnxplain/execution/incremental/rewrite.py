"""Writes a graph that computes the score behind one window from the maps of the sample."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxplain.execution.incremental.plan import PatchPlan, chosen
from onnxplain.execution.incremental.regions import Array, common, lengths, whole
from onnxplain.execution.incremental.steps import PatchStep, spatial
from onnxplain.graph.emit import Emitter
from onnxplain.graph.ir import Graph, Node, Shape, Value
from onnxplain.graph.var import Var, concat

INDEX, FILL = "window", "fill"


@dataclass(frozen=True, eq=False)
class Incremental:
    """The two graphs.

    Attributes
    ----------
    keep
        Inputs: the model's. Outputs: what ``score`` needs of the sample, of the same names as there.
    score
        Inputs: what ``keep`` gives; `index`, the number of a window, and `fill`, the explained tensor at the baseline;
        others of the model's inputs. Output: the score.
    index, fill
        Names of those inputs.
    share
        Estimate of the work for one window; that of a forward pass is 1.
    """

    keep: Graph
    score: Graph
    index: str
    fill: str
    share: float


def incremental(graph: Graph, name: str, output: str, bounds: Array, reach: float | None = None) -> Incremental | None:
    """Write them; None where that would not be much faster than a forward pass per window.

    Parameters
    ----------
    graph
        Computes ``output`` from its input ``name``, whose sizes are known but for the batch, which is in front.
    bounds
        The windows, see `regions`; they span all axes but batch and channels.
    reach
        None: exact. A number up to 1: see `regions.Reach`.
    """
    graph = graph.pruned([output])
    choice = chosen(graph, name, bounds, reach)
    return _Writer(graph, name, choice).write(output) if choice else None


class _Writer:
    def __init__(self, graph: Graph, name: str, choice: PatchPlan) -> None:
        self.graph, self.name, self.choice = graph, name, choice
        self.windows, self.axes = choice.bounds[name].shape[:2]
        self.channels_last = [0, *range(2, 2 + self.axes), 1]
        self.channels_first = [0, 1 + self.axes, *range(1, 1 + self.axes)]
        self.keeper = Emitter(graph)
        self.emitter = Emitter(graph.replace(nodes=(), outputs=(), values={}))
        self.emitter.reserve([*graph.nodes, Node("Identity", (), tuple(v.name for v in graph.inputs))])
        self.patches: dict[str, Var] = {}
        self.grown: dict[tuple[str, bytes, float], Var] = {}
        self.kept: dict[str, Var] = {}  # by name, in the graph that keeps
        self.inputs: dict[str, Var] = {}  # by what they stand for
        self.columns: dict[bytes, tuple[Array, Var]] = {}  # numbers that differ from window to window

    def write(self, output: str) -> Incremental:
        graph, emitter = self.graph, self.emitter
        value = graph.value(self.name)
        index, fill = emitter.input(INDEX, np.int64, ()), emitter.input(FILL, value.dtype, value.shape)
        window = self.choice.bounds[self.name]
        self.patches[self.name] = self.cut(fill, window[..., 0], window[..., 1])
        for step in self.choice.steps:
            self.step(step)
        tail = graph.cut([*self.choice.frontier, *self.unchanged()])
        given = {v.name: self.full(v.name) for v in tail.inputs if v.name in tail.needed_for([output])}
        (score,) = emitter.inline(tail, given, [output])
        self.look_up(index)
        written = emitter.graph([index, fill, *self.inputs.values()], {emitter.fresh(output): score})
        keep = self.keeper.graph([self.keeper.var(v.name) for v in graph.inputs], self.kept)
        return Incremental(keep, written, index.name, fill.name, self.choice.share)

    def unchanged(self) -> list[str]:
        """What is computed from other inputs only, and read together with what depends on the window."""
        reached = self.graph.reachable_from([self.name])
        read = [i for node in self.graph.nodes if not reached.isdisjoint(node.reads) for i in node.reads]
        made = [i for i in dict.fromkeys(read) if i in self.graph.producer and i not in reached]
        return [i for i in made if not self.graph.value(i).is_sequence]

    def step(self, step: PatchStep) -> None:
        node = step.node
        operands = [None if not i else self.operand(i, step) for i in node.inputs]
        shapes = [self.shape(o) for o in node.outputs]
        dtypes = [self.graph.value(o).dtype for o in node.outputs]
        attrs = {**node.attrs, **step.attrs}
        results = self.emitter.ops(node.op, *operands, outputs=len(node.outputs), dtypes=dtypes, shapes=shapes, **attrs)
        if step.scale is not None:
            scale = self.emitter.const(step.scale.astype(dtypes[0])[None, None])
            results = (results[0] * self.cut(scale, step.bounds[..., 0], step.bounds[..., 1]),)
        self.patches |= zip(node.outputs, results, strict=True)

    def operand(self, name: str, step: PatchStep) -> Var:
        if name in self.patches:
            return self.grow(name, step.region, step.fill)
        whole = self.full(name)
        if name in step.maps and set((whole.shape or ())[2:]) != {1}:
            return self.cut(whole, step.region[..., 0], step.region[..., 1])
        return whole

    def full(self, name: str) -> Var:
        """All of a tensor."""
        if name in self.patches:
            sizes = spatial(self.graph, name, self.axes)
            assert sizes is not None
            return self.grow(name, whole(sizes, self.windows), 0.0)
        if name in self.graph.constants:
            return self.emitter.var(name)
        return self.keep(name, self.keeper.var(name))

    def keep(self, name: str, var: Var) -> Var:
        """What is kept of the sample, as an input."""
        if var.name not in self.inputs:
            given = any(v.name == var.name for v in self.graph.inputs)
            called = var.name if given else self.emitter.fresh(f"kept/{name}")
            self.emitter.values[called] = Value(called, var.dtype, var.shape)
            self.inputs[var.name] = read = self.emitter.var(called)
            if not given:
                self.kept[read.name] = var
        return self.inputs[var.name]

    def grow(self, name: str, region: Array, fill: float) -> Var:
        """The patch in a larger region, or in another one: what is around it comes from the map of the sample."""
        patch, own = self.patches[name], self.choice.bounds[name]
        if np.array_equal(own, region):
            return patch
        key = (name, region.tobytes(), fill)
        if key not in self.grown:
            self.grown[key] = self.assembled(name, patch, own, region, fill)
        return self.grown[key]

    def assembled(self, name: str, patch: Var, own: Array, region: Array, fill: float) -> Var:
        """Join the patch with strips around it; channels last, so that what is copied lies side by side."""
        around, offset = self.padded(name, region, fill)
        inner = common(own, region)
        patch = patch.transpose(self.channels_last)
        if not np.array_equal(inner, own):
            starts = inner[..., 0] - own[..., 0]
            patch = self.cut(patch, starts, starts + lengths(inner), 1)
        for axis in reversed(range(self.axes)):
            starts, ends = (np.concatenate([inner[:, : axis + 1, s], region[:, axis + 1 :, s]], 1) for s in (0, 1))
            pieces = []
            for low, high in ((region[:, axis, 0], inner[:, axis, 0]), (inner[:, axis, 1], region[:, axis, 1])):
                starts[:, axis], ends[:, axis] = low, high
                some = bool((high > low).any())
                pieces.append(self.cut(around, starts + offset, ends + offset, 1) if some else None)
            before, after = pieces
            patch = concat([p for p in (before, patch, after) if p is not None], axis=1 + axis)
            patch = self.emitter.refine(patch, patch.shape and (patch.shape[0], *[None] * self.axes, patch.shape[-1]))
        return patch.transpose(self.channels_first)

    def padded(self, name: str, region: Array, fill: float) -> tuple[Var, Array]:
        """The map of the sample with as much around it as regions need, and where in it the map begins."""
        keeper, value = self.keeper, self.keeper.var(name)
        sizes = spatial(self.graph, name, self.axes)
        before = np.maximum(0, -region[..., 0].min(axis=0))
        after = np.maximum(0, region[..., 1].max(axis=0) - np.array(sizes))
        if before.any() or after.any():
            pads = keeper.ints([0, 0, *before.tolist(), 0, 0, *after.tolist()])
            known = (*(value.shape or ())[:2], *(np.array(sizes) + before + after).tolist())
            value = keeper.op("Pad", value, pads, value.like(fill), known=known, mode="constant")
        return self.keep(name, value.transpose(self.channels_last)), before

    def cut(self, x: Var, starts: Array, ends: Array, first: int = 2) -> Var:
        """A region of a map whose spatial axes begin with ``first``."""
        axes = self.emitter.ints(range(first, first + self.axes))
        shape = x.shape or ()
        known = (*shape[:first], *[None] * self.axes, *shape[first + self.axes :])
        return self.emitter.op("Slice", x, self.numbers(starts), self.numbers(ends), axes, known=known)

    def numbers(self, rows: Array) -> Var:
        """The row of a window, of numbers in shape (K, A)."""
        rows = np.ascontiguousarray(rows, np.int64)
        if (rows == rows[0]).all():
            return self.emitter.const(rows[0])
        key = rows.tobytes()
        if key not in self.columns:
            self.columns[key] = rows, self.emitter.input("numbers", np.int64, (self.axes,))
        return self.columns[key][1]

    def look_up(self, index: Var) -> None:
        """Put in front what the numbers of all windows come from."""
        if not self.columns:
            return
        table = self.emitter.const(np.concatenate([rows for rows, _ in self.columns.values()], axis=1))
        row = self.emitter.input("row", np.int64, (None,))
        names = tuple(var.name for _, var in self.columns.values())
        self.emitter.nodes[:0] = [
            Node("Gather", (table.name, index.name), (row.name,), {"axis": 0}),
            Node("Split", (row.name,), names, {"axis": 0, "num_outputs": len(names)}),
        ]

    def shape(self, name: str) -> Shape:
        """What is known of a patch's shape."""
        return (*(self.graph.value(name).shape or ())[:2], *[None] * self.axes)
