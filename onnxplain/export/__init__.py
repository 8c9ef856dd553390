"""Stand-alone explainers as .onnx files."""
