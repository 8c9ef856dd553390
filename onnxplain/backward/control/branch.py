"""If: its cotangents come from an If on the same condition."""

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
    """Names of the outputs that depend on ``active`` values in one of the branches."""
    found: set[str] = set()
    for name in BRANCHES:
        graph = node.attrs[name]
        inside = activity(graph, active.intersection(graph.captured))
        found.update(o for o, inner in zip(node.outputs, graph.outputs, strict=False) if o and inner.name in inside)
    return found


@dataclass(frozen=True)
class IfCall(ControlCall):
    """Attributes: ``branches``: the two graphs by name, each with an emitter that holds it."""

    branches: Mapping[str, tuple[Graph, Emitter]]

    @classmethod
    def enter(
        cls, call: Call, needed: set[str], active: set[str], plan: Planner, _: Activity
    ) -> tuple[ControlCall, WalkPlan]:
        """Plan the walk through the branches; ``needed`` are the names to start from."""
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
        """From the outputs of the branches to those of the node."""
        for graph, _ in self.branches.values():
            yield from zip((v.name for v in graph.outputs), self.node.outputs, strict=False)

    def vjp(self, cotangents: Sequence[Cotangent], walk: Walk) -> Sequence[Cotangent]:
        """Write the If whose branches walk back."""
        arrived = {}
        for name, (graph, emitter) in self.branches.items():
            seeds = Sums()
            for value, ct in zip(graph.outputs, cotangents, strict=False):
                seeds.add(value.name, None if ct is None else emitter.var(ct.name))
            arrived[name] = walk(emitter, seeds)
        captured = [n for n in self.node.captured if any(n in a for a in arrived.values())]
        if not captured:
            return []
        bodies: dict[str, Any] = {}
        for name, (_, emitter) in self.branches.items():
            found = [or_zeros(arrived[name].get(n), emitter.var(n)) for n in captured]
            bodies[name] = emitter.body([], found, name)
        like = [self.emitter.var(n) for n in captured]
        written = self.emitter.ops(
            "If",
            self.x,
            outputs=len(captured),
            dtypes=[dtype_of(x) for x in like],
            shapes=[x.shape for x in like],
            **bodies,
        )
        results = dict(zip(captured, written, strict=True))
        return [None, *(results.get(n) for n in self.node.captured)]
