"""One table of everything known about ONNX operators: `OPS` (operator -> kind and VJP) and `ZERO_GRADIENT`."""

from __future__ import annotations

from onnxplain.ops import activation, elementwise, index, linear, norm, pool, recurrent, reduce, resize, shape
from onnxplain.ops.nograd import ZERO_GRADIENT
from onnxplain.ops.table import Call, Kind, OpRow, OpTable, merge

OPS: dict[str, OpRow] = merge(
    activation.TABLE,
    elementwise.TABLE,
    index.TABLE,
    linear.TABLE,
    norm.TABLE,
    pool.TABLE,
    recurrent.TABLE,
    reduce.TABLE,
    resize.TABLE,
    shape.TABLE,
)

__all__ = ["OPS", "ZERO_GRADIENT", "Call", "Kind", "OpRow", "OpTable"]
