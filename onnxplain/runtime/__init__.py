"""ONNX Runtime: sessions, providers, memory, devices. Knows nothing of explanations.

Modules import ONNX Runtime from here, so that the error says what to install if it is missing.
"""

from onnxplain.errors import OnnxplainError

try:
    import onnxruntime as ort
except ImportError:
    raise OnnxplainError(
        "ONNX Runtime is not installed",
        "pip install 'onnxplain[cpu]', or 'onnxplain[gpu]' for NVIDIA GPUs (not both: they clash).",
    ) from None

__all__ = ["ort"]
