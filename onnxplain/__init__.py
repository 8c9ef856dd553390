"""Explanations for any deployed ONNX model."""
