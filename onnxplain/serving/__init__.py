"""Serving: one explainer for many concurrent callers."""

from onnxplain.serving.batcher import Batcher

__all__ = ["Batcher"]
