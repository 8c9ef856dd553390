"""Explanations for any deployed ONNX model, without its source, on ONNX Runtime.

>>> import onnxplain as ox
>>> result = ox.explain("model.onnx", x, "integrated_gradients", target=281)  # doctest: +SKIP
>>> result.save("cat.png", image=photo)  # doctest: +SKIP
"""

from onnxplain.runtime import providers as _providers

_providers.onnxruntime()  # says which extra to install where ONNX Runtime is missing

from onnxplain.api import Explainer, explain  # noqa: E402 - after the check above
from onnxplain.composites import COMPOSITES, Composite, Row  # noqa: E402
from onnxplain.errors import (  # noqa: E402
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
    UnsupportedModelError,
    UnsupportedOperatorError,
)
from onnxplain.influences import Influence, influence  # noqa: E402
from onnxplain.methods import METHODS  # noqa: E402
from onnxplain.model import Model, load  # noqa: E402
from onnxplain.ops.table import Kind  # noqa: E402
from onnxplain.quantities import (  # noqa: E402
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
from onnxplain.result import Attribution  # noqa: E402
from onnxplain.serving import Batcher  # noqa: E402

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
    "UnsupportedModelError",
    "UnsupportedOperatorError",
    "explain",
    "influence",
    "load",
    "op",
]
