"""The reverse walk from the explained output back to the explained tensors; `onnxplain.backward.walk` explains it."""

from onnxplain.backward.control import CONTROL, ControlCall, as_scans
from onnxplain.backward.integers import FirstFloats, back_to_input, first_floats, is_continuous
from onnxplain.backward.recurrent import as_loops
from onnxplain.backward.walk import Assign, Step, Watch, active_values, backward, plan, walked

__all__ = [
    "CONTROL",
    "Assign",
    "ControlCall",
    "FirstFloats",
    "Step",
    "Watch",
    "active_values",
    "as_loops",
    "as_scans",
    "back_to_input",
    "backward",
    "first_floats",
    "is_continuous",
    "plan",
    "walked",
]
