"""Expansions: how operators beyond ONNX's own are written as standard operators."""
