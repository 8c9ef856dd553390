"""Every method by name, with its documentation: `METHODS`, and `make`, which builds one."""

from onnxplain.methods.method import Method
from onnxplain.methods.papers import Paper
from onnxplain.methods.spec import FAMILIES, Cost, MethodSpec, Option
from onnxplain.methods.table import METHODS, forward_only, make, mixes_samples, moves_slices, options_of

__all__ = [
    "FAMILIES",
    "METHODS",
    "Cost",
    "Method",
    "MethodSpec",
    "Option",
    "Paper",
    "forward_only",
    "make",
    "mixes_samples",
    "moves_slices",
    "options_of",
]
