"""Elementwise nonlinear functions of one input: cotangent of y -> cotangent of x."""

from __future__ import annotations

from onnxplain.ops.table import Kind, OpTable

TABLE = OpTable(Kind.ACTIVATION)

TABLE.unary(
    Relu=lambda ct, x, y: ct.mask(y > 0),  # from the output: the runtime can keep Conv and Relu fused
    Sigmoid=lambda ct, x, y: ct * y * (1 - y),
    Tanh=lambda ct, x, y: ct * (1 - y * y),
    Exp=lambda ct, x, y: ct * y,
)
