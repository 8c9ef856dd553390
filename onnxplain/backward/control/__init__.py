"""Control flow: the reverse walk through the bodies of If and Loop.

A control-flow node has no rule; the nodes in its bodies have. Its cotangents are computed by a second node of the same
kind, whose bodies contain the backward nodes and recompute the forward values that were not saved. Both nodes are in
the same graph, and neither is inside the other, so the two may use the same names in their bodies.
"""

from __future__ import annotations

from onnxplain.backward.control.base import Activity, ControlCall, WalkPlan
from onnxplain.backward.control.branch import IfCall, active_if
from onnxplain.backward.control.loop import LoopCall, active_loop
from onnxplain.backward.control.scans import as_scans
from onnxplain.graph.ir import Node

CONTROL = {"If": IfCall.enter, "Loop": LoopCall.enter}
_ACTIVE = {"If": active_if, "Loop": active_loop}


def active_outputs(node: Node, active: set[str], activity: Activity) -> set[str]:
    """Return the names of the outputs of a control-flow node that depend on the ``active`` values around it."""
    return _ACTIVE[node.op](node, active, activity)


__all__ = ["CONTROL", "ControlCall", "WalkPlan", "active_outputs", "as_scans"]
