"""A method and a canonical graph become a program: one graph for ONNX Runtime."""
