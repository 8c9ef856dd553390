"""What is explained: one element of the output per sample, a weighted sum of some, or whether its labels stay."""

from onnxplain.quantities.derived import explained_value, op
from onnxplain.quantities.indices import Target, resolve, unravel
from onnxplain.quantities.objects import (
    Channel,
    Class,
    Difference,
    Expression,
    LogProbability,
    Neuron,
    Output,
    Probability,
    Quantity,
)
from onnxplain.quantities.selection import PREDICTED, TARGET, Selection, select, target_inputs

__all__ = [
    "PREDICTED",
    "TARGET",
    "Channel",
    "Class",
    "Difference",
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
    "resolve",
    "select",
    "target_inputs",
    "unravel",
]
