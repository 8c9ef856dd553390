"""One table of everything known about ONNX operators: `OPS` (operator -> kind and VJP) and `ZERO_GRADIENT`."""

from __future__ import annotations

from onnxplain.ops import (
    activation,
    elementwise,
    geometry,
    index,
    linear,
    norm,
    pool,
    quantize,
    reduce,
    region,
    resize,
    shape,
    signal,
)
from onnxplain.ops.nograd import ZERO_GRADIENT
from onnxplain.ops.table import Call, Kind, OpRow, OpTable, merge

OPS: dict[str, OpRow] = merge(
    activation.TABLE,
    elementwise.TABLE,
    geometry.TABLE,
    index.TABLE,
    linear.TABLE,
    norm.TABLE,
    pool.TABLE,
    quantize.TABLE,
    reduce.TABLE,
    region.TABLE,
    resize.TABLE,
    shape.TABLE,
    signal.TABLE,
)

__all__ = ["OPS", "ZERO_GRADIENT", "Call", "Kind", "OpRow", "OpTable"]
