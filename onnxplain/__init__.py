"""Explanations for any deployed ONNX model, without its source, on ONNX Runtime.

>>> import onnxplain as ox
>>> result = ox.explain("model.onnx", x, "integrated_gradients", target=281)  # doctest: +SKIP
>>> result.save("cat.png", image=photo)  # doctest: +SKIP
"""

from onnxplain.api import (
    Explainer,
    explain,
)
from onnxplain.composites.composite import (
    COMPOSITES,
    Composite,
    Row,
)
from onnxplain.concepts import (
    Influence,
    influence,
)
from onnxplain.errors import (
    BusyError,
    InputError,
    ModelError,
    NoRuleError,
    OnnxplainError,
    OptionError,
    OutputError,
    ProviderError,
    RunError,
    TargetError,
    TensorError,
    UnsupportedModelError,
    UnsupportedOperatorError,
)
from onnxplain.methods.table import METHODS
from onnxplain.model import (
    Model,
    load,
)
from onnxplain.ops.table import Kind
from onnxplain.questions.quantities import (
    Channel,
    Class,
    Difference,
    Expression,
    LogProbability,
    Neuron,
    Output,
    Probability,
    Quantity,
    op,
)
from onnxplain.result import Attribution
from onnxplain.serving import Batcher

__version__ = "0.1.0"

__all__ = [
    "COMPOSITES",
    "METHODS",
    "Attribution",
    "Batcher",
    "BusyError",
    "Channel",
    "Class",
    "Composite",
    "Difference",
    "Explainer",
    "Expression",
    "Influence",
    "InputError",
    "Kind",
    "LogProbability",
    "Model",
    "ModelError",
    "Neuron",
    "NoRuleError",
    "OnnxplainError",
    "OptionError",
    "Output",
    "OutputError",
    "Probability",
    "ProviderError",
    "Quantity",
    "Row",
    "RunError",
    "TargetError",
    "TensorError",
    "UnsupportedModelError",
    "UnsupportedOperatorError",
    "explain",
    "influence",
    "load",
    "op",
]
