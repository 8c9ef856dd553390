"""Benchmark of explanations: onnxplain against forward passes of ONNX Runtime, captum, zennit and torch."""
