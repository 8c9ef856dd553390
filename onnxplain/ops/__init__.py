"""One table of everything known about ONNX operators, `OPS`: operator -> kind, VJP and traits."""

from __future__ import annotations

from onnxplain.ops import (
    activation,
    elementwise,
    geometry,
    index,
    linear,
    nograd,
    norm,
    opaque,
    pool,
    quantize,
    reduce,
    region,
    resize,
    shape,
    signal,
)
from onnxplain.ops.table import Call, Kind, OpRow, OpTable, merge
from onnxplain.ops.traits import Trait

OPS: OpTable = merge(
    activation.TABLE,
    elementwise.TABLE,
    geometry.TABLE,
    index.TABLE,
    linear.TABLE,
    nograd.TABLE,
    norm.TABLE,
    opaque.TABLE,
    pool.TABLE,
    quantize.TABLE,
    reduce.TABLE,
    region.TABLE,
    resize.TABLE,
    shape.TABLE,
    signal.TABLE,
)

__all__ = ["OPS", "Call", "Kind", "OpRow", "OpTable", "Trait"]
