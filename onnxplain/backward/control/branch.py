"""If: its cotangents are computed by a second If with the same condition, whose branches walk back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from onnxplain.backward.control.base import Activity, ControlCall, Planner, Walk, WalkPlan, dtype_of, or_zeros
from onnxplain.graph.emit import Emitter
from onnxplain.graph.ir import Graph, Node
from onnxplain.ops.parts import Sums
from onnxplain.ops.table import Call, Cotangent

BRANCHES = ("then_branch", "else_branch")


def active_if(node: Node, active: set[str], activity: Activity) -> set[str]:
    """Return the names of the outputs that depend on ``active`` values in at least one branch."""
    outputs: set[str] = set()
    for name in BRANCHES:
        graph = node.attrs[name]
        inside = activity(graph, active.intersection(graph.captured))
        outputs.update(o for o, inner in zip(node.outputs, graph.outputs, strict=False) if o and inner.name in inside)
    return outputs


@dataclass(frozen=True)
class IfCall(ControlCall):
    """An If on the path, with the emitters that its backward node needs.

    Attributes
    ----------
    branches
        Name of the branch -> its graph, and an emitter that holds it.
    """

    branches: Mapping[str, tuple[Graph, Emitter]]

    @classmethod
    def enter(
        cls, call: Call, needed: set[str], active: set[str], plan: Planner, _: Activity
    ) -> tuple[ControlCall, WalkPlan]:
        """Plan the walk through both branches; ``needed`` has the names of the outputs to start from."""
        branches = {}
        inside = WalkPlan()
        for name in BRANCHES:
            graph = call.attrs[name]
            emitter = Emitter(graph, outer=call.emitter)
            captured = active.intersection(graph.captured)
            pairs = zip(graph.outputs, call.node.outputs, strict=False)
            path = plan(graph, emitter, [v.name for v, o in pairs if o in needed], captured)
            inside.add(replace(path, needed=path.needed & captured))
            branches[name] = (graph, emitter)
        fields = (call.emitter, call.node, call.inputs, call.outputs, call.active)
        return cls(*fields, branches), inside

    @property
    def flows(self) -> Iterator[tuple[str, str]]:
        """Yield (output of a branch, output of the node)."""
        for graph, _ in self.branches.values():
            yield from zip((v.name for v in graph.outputs), self.node.outputs, strict=False)

    def vjp(self, cotangents: Sequence[Cotangent], walk: Walk) -> Sequence[Cotangent]:
        """Write the If whose branches walk back; it returns the cotangents of the captured values."""
        sums = {}
        for name, (graph, emitter) in self.branches.items():
            seeds = Sums()
            for value, ct in zip(graph.outputs, cotangents, strict=False):
                seeds.add(value.name, None if ct is None else emitter.var(ct.name))
            sums[name] = walk(emitter, seeds)
        captured = [n for n in self.node.captured if any(n in of_branch for of_branch in sums.values())]
        if not captured:
            return []
        bodies: dict[str, Any] = {}
        for name, (_, emitter) in self.branches.items():
            results = [or_zeros(sums[name].get(n), emitter.var(n)) for n in captured]
            bodies[name] = emitter.body([], results, name)
        like = [self.emitter.var(n) for n in captured]
        written = self.emitter.ops(
            "If",
            self.x,
            outputs=len(captured),
            dtypes=[dtype_of(x) for x in like],
            shapes=[x.shape for x in like],
            **bodies,
        )
        by_name = dict(zip(captured, written, strict=True))
        return [None, *(by_name.get(n) for n in self.node.captured)]
