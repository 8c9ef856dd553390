"""Targets and quantities: one element of the output per sample, a weighted sum of elements, or agreeing labels."""

from onnxplain.questions.quantities.derived import explained_value, op
from onnxplain.questions.quantities.indices import Target, unravel
from onnxplain.questions.quantities.objects import (
    Channel,
    Class,
    Difference,
    ExplainedTensor,
    Expression,
    LogProbability,
    Neuron,
    Output,
    Probability,
    Quantity,
    resolved,
)
from onnxplain.questions.quantities.selection import PREDICTED, TARGET, Selection, select, target_inputs

__all__ = [
    "PREDICTED",
    "TARGET",
    "Channel",
    "Class",
    "Difference",
    "ExplainedTensor",
    "Expression",
    "LogProbability",
    "Neuron",
    "Output",
    "Probability",
    "Quantity",
    "Selection",
    "Target",
    "explained_value",
    "op",
    "resolved",
    "select",
    "target_inputs",
    "unravel",
]
