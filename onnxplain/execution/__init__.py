"""Execution: runs a program over the points of its method's distribution, and sums up the attributions.

`LOOPS` has one row per distribution: `point`, `references`, `line` and `sampled` run programs that walk back, `masked`
and `windows` run masked copies. All of them use a `Runner`, a program with its sessions. `averaged` runs any of them at
sampled points. `specializer` compiles a model and a method once for each specialization, `kept` stores runners in a
cache folder, `requests` joins requests into batches, and `incremental` makes occlusion faster.
"""

from onnxplain.execution.answer import Answer
from onnxplain.execution.run import LOOPS, Loop, check, run, runs_on_device, traced
from onnxplain.execution.runner import Runner, Setting

__all__ = [
    "LOOPS",
    "Answer",
    "Loop",
    "Runner",
    "Setting",
    "check",
    "run",
    "runs_on_device",
    "traced",
]
