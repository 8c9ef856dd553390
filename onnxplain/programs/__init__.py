"""Programs: a method and a canonical graph, written as one graph for ONNX Runtime."""
