"""ONNX Runtime: sessions, providers, memory, devices. Knows nothing of explanations.

Every module that needs ONNX Runtime imports it from here, so that a missing one is an error that says what to install.
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
