"""What is explained: one element of the output per sample, a weighted sum of some, or whether its labels stay."""

from onnxplain.quantities.indices import Target, resolve, unravel
from onnxplain.quantities.objects import (
    Channel,
    Class,
    Difference,
    Neuron,
    Output,
    Probability,
    Quantity,
    explained_value,
)
from onnxplain.quantities.selection import PREDICTED, TARGET, Selection, select, target_inputs

__all__ = [
    "PREDICTED",
    "TARGET",
    "Channel",
    "Class",
    "Difference",
    "Neuron",
    "Output",
    "Probability",
    "Quantity",
    "Selection",
    "Target",
    "explained_value",
    "resolve",
    "select",
    "target_inputs",
    "unravel",
]
