"""What explanations cost: onnxplain against forward passes of ONNX Runtime, captum, zennit and torch."""
