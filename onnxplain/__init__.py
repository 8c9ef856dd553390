"""Explain any deployed ONNX model: which parts of an input contributed to its prediction, and with which sign.

>>> import onnxplain as ox
>>> result = ox.explain("model.onnx", x, "integrated_gradients", target=281)  # doctest: +SKIP
>>> result.save("cat.png", image=photo)  # doctest: +SKIP
"""

from typing import TYPE_CHECKING, Any

from onnxplain import rules
from onnxplain.api import (
    Explainer,
    explain,
)
from onnxplain.composites import (
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
from onnxplain.imaging.preprocessing import Preprocessing, find_note
from onnxplain.methods import METHODS
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

if TYPE_CHECKING:
    from onnxplain.imaging.images import preprocess, read_image

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
    "Preprocessing",
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
    "find_note",
    "influence",
    "load",
    "op",
    "preprocess",
    "read_image",
    "rules",
]

_PHOTOS = ("preprocess", "read_image")  # they need OpenCV, which takes 0.1 s to import, so they are imported when used


def __getattr__(name: str) -> Any:
    if name in _PHOTOS:
        from onnxplain.imaging import images

        return getattr(images, name)
    raise AttributeError(f"module 'onnxplain' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *_PHOTOS})
