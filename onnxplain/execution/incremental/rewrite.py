"""`incremental`: writes a graph that computes the score behind one window from the kept maps of the sample."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxplain.execution.incremental.plan import PatchPlan, planned
from onnxplain.execution.incremental.regions import Array, common, lengths, whole
from onnxplain.execution.incremental.steps import PatchStep, spatial
from onnxplain.graph.emit import Emitter
from onnxplain.graph.ir import Graph, Node, Shape, Value
from onnxplain.graph.var import Var, concat

INDEX, FILL = "window", "fill"


@dataclass(frozen=True, eq=False)
class Incremental:
    """The two graphs of incremental occlusion.

    Attributes
    ----------
    keep
        Inputs: the model's. Outputs: the maps of the sample that ``score`` reads, under the names of its inputs.
    score
        Inputs: the outputs of ``keep``; the number of a window; the explained tensor at the baseline; and those of the
        model's inputs that it reads. Output: the score.
    index, fill
        Names of the inputs of ``score`` for the number of a window, and for the tensor at the baseline.
    share
        Estimated work for one window, as a share of that of a forward pass.
    """

    keep: Graph
    score: Graph
    index: str
    fill: str
    share: float


def incremental(graph: Graph, name: str, output: str, bounds: Array, reach: float | None = None) -> Incremental | None:
    """Write the graphs; None if they would not be much faster than a forward pass for each window.

    Parameters
    ----------
    graph
        Computes the score from the explained tensor.
    name
        The explained tensor, an input of the graph; the batch is in front, and all other sizes are known.
    output
        The score.
    bounds
        The windows, as bounds in the explained tensor (see `regions`); they span all axes but batch and channels.
    reach
        None: exact. A number up to 1: see `regions.Reach`.
    """
    graph = graph.pruned([output])
    plan = planned(graph, name, bounds, reach)
    return _Writer(graph, name, plan).write(output) if plan else None


class _Writer:
    """Writes the graphs of a plan.

    Attributes
    ----------
    keeper, emitter
        Write the graph that keeps maps, and the one that computes the score.
    patches
        Name of a tensor -> its patch.
    grown
        Name of a tensor, regions and fill -> its patch grown to these regions.
    kept
        Name of an output of the graph that keeps maps -> that output.
    inputs
        Name of a tensor in the graph that keeps maps -> the input of the other graph that stands for it.
    columns
        Numbers that differ from window to window, as bytes and as an array -> the input that holds those of one window.
    """

    def __init__(self, graph: Graph, name: str, plan: PatchPlan) -> None:
        self.graph, self.name, self.plan = graph, name, plan
        self.windows, self.axes = plan.bounds[name].shape[:2]
        self.channels_last = [0, *range(2, 2 + self.axes), 1]
        self.channels_first = [0, 1 + self.axes, *range(1, 1 + self.axes)]
        self.keeper = Emitter(graph)
        self.emitter = Emitter(graph.replace(nodes=(), outputs=(), values={}))
        self.emitter.reserve([*graph.nodes, Node("Identity", (), tuple(v.name for v in graph.inputs))])
        self.patches: dict[str, Var] = {}
        self.grown: dict[tuple[str, bytes, float], Var] = {}
        self.kept: dict[str, Var] = {}
        self.inputs: dict[str, Var] = {}
        self.columns: dict[bytes, tuple[Array, Var]] = {}

    def write(self, output: str) -> Incremental:
        """Write both graphs."""
        graph, emitter = self.graph, self.emitter
        value = graph.value(self.name)
        index, fill = emitter.input(INDEX, np.int64, ()), emitter.input(FILL, value.dtype, value.shape)
        window = self.plan.bounds[self.name]
        self.patches[self.name] = self.cut(fill, window[..., 0], window[..., 1])
        for step in self.plan.steps:
            self.step(step)
        tail = graph.cut([*self.plan.frontier, *self.unchanged()])
        given = {v.name: self.full(v.name) for v in tail.inputs if v.name in tail.needed_for([output])}
        (score,) = emitter.inline(tail, given, [output])
        self.look_up(index)
        written = emitter.graph([index, fill, *self.inputs.values()], {emitter.fresh(output): score})
        keep = self.keeper.graph([self.keeper.var(v.name) for v in graph.inputs], self.kept)
        return Incremental(keep, written, index.name, fill.name, self.plan.share)

    def unchanged(self) -> list[str]:
        """Tensors that do not depend on the window, but are read by nodes that do."""
        reached = self.graph.reachable_from([self.name])
        read = [i for node in self.graph.nodes if not reached.isdisjoint(node.reads) for i in node.reads]
        computed = [i for i in dict.fromkeys(read) if i in self.graph.producer and i not in reached]
        return [i for i in computed if not self.graph.value(i).is_sequence]

    def step(self, step: PatchStep) -> None:
        """Write a node that runs on patches."""
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
        """An input of such a node: a patch grown to its regions, these regions of a map, or what broadcasts to them."""
        if name in self.patches:
            return self.grow(name, step.region, step.fill)
        whole = self.full(name)
        if name in step.maps and set((whole.shape or ())[2:]) != {1}:
            return self.cut(whole, step.region[..., 0], step.region[..., 1])
        return whole

    def full(self, name: str) -> Var:
        """The whole of a tensor; of a patch, the whole map with the patch in it."""
        if name in self.patches:
            sizes = spatial(self.graph, name, self.axes)
            assert sizes is not None
            return self.grow(name, whole(sizes, self.windows), 0.0)
        if name in self.graph.constants:
            return self.emitter.var(name)
        return self.keep(name, self.keeper.var(name))

    def keep(self, name: str, var: Var) -> Var:
        """An input for a tensor that the other graph keeps, or for an input of the model."""
        if var.name not in self.inputs:
            of_model = any(v.name == var.name for v in self.graph.inputs)
            own_name = var.name if of_model else self.emitter.fresh(f"kept/{name}")
            self.emitter.values[own_name] = Value(own_name, var.dtype, var.shape)
            self.inputs[var.name] = self.emitter.var(own_name)
            if not of_model:
                self.kept[own_name] = var
        return self.inputs[var.name]

    def grow(self, name: str, region: Array, fill: float) -> Var:
        """The patch grown, or moved, to other regions, with values around it from the map of the sample."""
        patch, bounds = self.patches[name], self.plan.bounds[name]
        if np.array_equal(bounds, region):
            return patch
        key = (name, region.tobytes(), fill)
        if key not in self.grown:
            self.grown[key] = self.assembled(name, patch, bounds, region, fill)
        return self.grown[key]

    def assembled(self, name: str, patch: Var, bounds: Array, region: Array, fill: float) -> Var:
        """Join the patch with strips around it; channels are last, so that each copy is contiguous in memory."""
        around, offset = self.padded(name, region, fill)
        inner = common(bounds, region)
        patch = patch.transpose(self.channels_last)
        if not np.array_equal(inner, bounds):
            starts = inner[..., 0] - bounds[..., 0]
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
        """The map of the sample, padded as far as the regions reach beyond it, and the padding before each axis."""
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
        """Regions of a map whose spatial axes begin with the axis ``first``."""
        axes = self.emitter.ints(range(first, first + self.axes))
        shape = x.shape or ()
        known = (*shape[:first], *[None] * self.axes, *shape[first + self.axes :])
        return self.emitter.op("Slice", x, self.numbers(starts), self.numbers(ends), axes, known=known)

    def numbers(self, rows: Array) -> Var:
        """Numbers of one window, int64, shape (A,), from those of all windows, shape (K, A)."""
        rows = np.ascontiguousarray(rows, np.int64)
        if (rows == rows[0]).all():
            return self.emitter.const(rows[0])
        key = rows.tobytes()
        if key not in self.columns:
            self.columns[key] = rows, self.emitter.input("numbers", np.int64, (self.axes,))
        return self.columns[key][1]

    def look_up(self, index: Var) -> None:
        """Write, in front of all nodes, those that look up the numbers of the window ``index``."""
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
        """Known sizes of a patch: those of batch and channels."""
        return (*(self.graph.value(name).shape or ())[:2], *[None] * self.axes)
