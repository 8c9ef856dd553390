"""Pooling over windows and over all positions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from onnxplain.graph.var import Var, concat, where
from onnxplain.ops.index import add_at, count, zeros
from onnxplain.ops.reduce import expand, group_size
from onnxplain.ops.table import Call, Cotangent, Kind, OpTable
from onnxplain.ops.traits import Trait

TABLE = OpTable(Kind.AVG_POOL)


@TABLE.vjp("MaxPool", kind=Kind.MAX_POOL, traits=Trait.SLIDING | Trait.CHANNELS_FIRST | Trait.KEEPS_NON_NEGATIVE)
def max_pool(call: Call, ct: Var, *_: Cotangent) -> list[Var]:
    """To the first maximum of each window."""
    x = call.x
    # Where the forward node gives these indices too, this is that node.
    attrs = {**call.attrs, "storage_order": 0}
    dtypes, shapes = [x.dtype, np.dtype(np.int64)], [call.y.shape] * 2
    indices = call.emitter.ops("MaxPool", x, outputs=2, dtypes=dtypes, shapes=shapes, **attrs)[1]
    flat = add_at(zeros(count(x), ct.dtype, (None,)), indices.reshape([-1]), ct.reshape([-1]), 0)
    return [flat.reshape_like(x)]


@TABLE.vjp("GlobalMaxPool", kind=Kind.MAX_POOL, traits=Trait.KEEPS_NON_NEGATIVE)
def global_max_pool(call: Call, ct: Var) -> list[Var]:
    """To the first maximum."""
    known = (*call.x.shape[:2], None) if call.x.shape else None
    flat = call.x.reshape([0, 0, -1], known=known)
    first = call.op("ArgMax", flat, axis=2, keepdims=1, select_last_index=0)
    blank = zeros(flat.sizes(), ct.dtype, known)
    return [call.op("ScatterElements", blank, first, ct.reshape([0, 0, 1]), axis=2).reshape_like(call.x)]


@TABLE.vjp("MaxUnpool", kind=Kind.MOVEMENT)
def max_unpool(call: Call, ct: Var) -> list[Var]:
    return [call.op("Gather", ct.reshape([-1]), call.need(1), axis=0, known=call.x.shape)]


@TABLE.vjp("AveragePool", traits=Trait.SLIDING | Trait.CHANNELS_FIRST | Trait.KEEPS_NON_NEGATIVE)
def average_pool(call: Call, ct: Var) -> list[Var]:
    windows = PoolingWindows.of(call)
    if not windows.full_count(call):
        ct = ct * windows.count_ratio(call)
    return [windows.spread(call, ct, 1 / np.prod(windows.kernel))]


@TABLE.vjp("GlobalAveragePool", traits=Trait.KEEPS_NON_NEGATIVE)
def global_average_pool(call: Call, ct: Var) -> list[Var]:
    return [expand(ct / group_size(call.x, call.y, list(range(2, call.x.rank))), call.x)]


# Norms are no weighted means, so not AVG_POOL: what an element gets depends on all of its window.
@TABLE.vjp("LpPool", kind=Kind.REDUCTION, traits=Trait.CHANNELS_FIRST)
def lp_pool(call: Call, ct: Var) -> list[Var]:
    return [_norm(call, ct, lambda part: PoolingWindows.of(call).spread(call, part, 1.0))]


@TABLE.vjp("GlobalLpPool", kind=Kind.REDUCTION)
def global_lp_pool(call: Call, ct: Var) -> list[Var]:
    return [_norm(call, ct, lambda part: part)]


def _norm(call: Call, ct: Var, spread: Callable[[Var], Var]) -> Var:
    """Of y = (sum |x|^p)^(1/p): sign(x) |x|^(p-1), times what arrives of y^(1-p) ct; 0 where all of a window is 0."""
    x, y, power = call.x, call.y, call.attrs["p"] - 1
    slope: Var = call.op("Sign", x) * abs(x) ** power
    return slope * spread(ct / where(y > 0, y, 1) ** power)


@dataclass(frozen=True)
class PoolingWindows:
    """Where ONNX Runtime puts the windows of a pooling node.

    Attributes
    ----------
    kernel, strides, dilations
        Per spatial axis.
    before, after
        How far the first and the last window reach out of the input, per spatial axis; negative where they end inside.
    """

    kernel: list[int]
    strides: list[int]
    dilations: list[int]
    before: Var
    after: Var

    @classmethod
    def of(cls, call: Call) -> PoolingWindows:
        """Read a node's attributes."""
        attrs = call.attrs
        kernel = attrs["kernel_shape"]
        strides, dilations = (attrs.get(name) or [1] * len(kernel) for name in ("strides", "dilations"))
        extent = [d * (k - 1) + 1 for k, d in zip(kernel, dilations, strict=True)]
        outside = (call.y.sizes(2) - 1) * call.ints(strides) + call.ints(extent) - call.x.sizes(2)
        if attrs["auto_pad"].startswith("SAME"):
            odd = int(attrs["auto_pad"] == "SAME_LOWER")  # where the odd one of an odd number goes
            before = (call.op("Max", outside, call.ints([0])) + odd) / 2
        else:
            before = call.ints(_pads(call)[: len(kernel)])
        return cls(kernel, strides, dilations, before, outside - before)

    def spread(self, call: Call, ct: Var, weight: float) -> Var:
        """Add ``weight`` times a window's number to each element in it."""
        planes = ct.reshape([-1, 1] + [0] * len(self.kernel))  # a plane per channel: any number of channels will do
        kernel = ct.like(np.full((1, 1, *self.kernel), weight))
        full = call.op("ConvTranspose", planes, kernel, strides=self.strides, dilations=self.dilations)
        # Not by pads of ConvTranspose: where they differ at the two ends, ONNX Runtime leaves CUDA for the CPU.
        return self._widened(full, self.before * -1, self.after * -1).reshape_like(call.x)

    def full_count(self, call: Call) -> bool:
        """Whether AveragePool divides by the number of the kernel's elements in every window."""
        attrs, after = call.attrs, self.after.value
        overhang = attrs["ceil_mode"] and (after is None or bool((after > 0).any()))
        padded = attrs["auto_pad"].startswith("SAME") or any(_pads(call))
        return not overhang and (bool(attrs["count_include_pad"]) or not padded)

    def count_ratio(self, call: Call) -> Var:
        """Kernel size over what the node divides by, per window: its mean of ones over their mean with zeros around."""
        shape = concat([call.ints([1, 1]), call.x.sizes(2)])
        ones = call.op("ConstantOfShape", shape, dtype=call.x.dtype, value=np.ones(1, call.x.dtype))
        padded = self._widened(ones, self.before, self.after)
        window = {"kernel_shape": self.kernel, "strides": self.strides, "dilations": self.dilations}
        return call.op("AveragePool", ones, **call.attrs) / call.op("AveragePool", padded, **window)

    def _widened(self, x: Var, before: Var, after: Var) -> Var:
        none = x.emitter.ints([0, 0])
        widths = concat([none, before, none, after])
        if widths.value is not None and not widths.value.any():
            return x
        return x.emitter.op("Pad", x, widths, mode="constant")


def _pads(call: Call) -> list[int]:
    pads = call.attrs.get("pads") if call.attrs["auto_pad"] == "NOTSET" else None
    return pads or [0] * 2 * len(call.attrs["kernel_shape"])
