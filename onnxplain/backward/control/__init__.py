"""Control flow: how the reverse walk enters the bodies of If and Loop, and what it leaves there.

A control-flow node has no rule; the nodes in its bodies have theirs. Its cotangents come from a node of the same kind
whose bodies walk back, and calculate forward once more what nobody has kept for them. The two are siblings, so both may
use the names in the bodies.
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
    """Names of the outputs of a control-flow node that depend on the ``active`` values around it."""
    return _ACTIVE[node.op](node, active, activity)


__all__ = ["CONTROL", "ControlCall", "WalkPlan", "active_outputs", "as_scans"]
