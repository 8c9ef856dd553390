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
    """The cotangent of each window goes to its first maximum."""
    x = call.x
    # The same as the forward node, and not written again, where that gives its indices.
    attrs = {**call.attrs, "storage_order": 0}
    dtypes, shapes = [x.dtype, np.dtype(np.int64)], [call.y.shape] * 2
    indices = call.emitter.ops("MaxPool", x, outputs=2, dtypes=dtypes, shapes=shapes, **attrs)[1]
    flat = add_at(zeros(count(x), ct.dtype, (None,)), indices.reshape([-1]), ct.reshape([-1]), 0)
    return [flat.reshape_like(x)]


@TABLE.vjp("GlobalMaxPool", kind=Kind.MAX_POOL, traits=Trait.KEEPS_NON_NEGATIVE)
def global_max_pool(call: Call, ct: Var) -> list[Var]:
    """The cotangent of each channel goes to its first maximum."""
    known = (*call.x.shape[:2], None) if call.x.shape else None
    flat = call.x.reshape([0, 0, -1], known=known)
    first = call.op("ArgMax", flat, axis=2, keepdims=1, select_last_index=0)
    blank = zeros(flat.sizes(), ct.dtype, known)
    return [call.op("ScatterElements", blank, first, ct.reshape([0, 0, 1]), axis=2).reshape_like(call.x)]


@TABLE.vjp("MaxUnpool", kind=Kind.MOVEMENT)
def max_unpool(call: Call, ct: Var) -> list[Var]:
    """A Gather at the places that the elements were put in."""
    return [call.op("Gather", ct.reshape([-1]), call.need(1), axis=0, known=call.x.shape)]


@TABLE.vjp("AveragePool", traits=Trait.SLIDING | Trait.CHANNELS_FIRST | Trait.KEEPS_NON_NEGATIVE)
def average_pool(call: Call, ct: Var) -> list[Var]:
    """For y = mean of the n elements of a window: ct / n to each."""
    windows = PoolingWindows.of(call)
    if not windows.full_count(call):
        ct = ct * windows.count_ratio(call)
    return [windows.spread(call, ct, 1 / np.prod(windows.kernel))]


@TABLE.vjp("GlobalAveragePool", traits=Trait.KEEPS_NON_NEGATIVE)
def global_average_pool(call: Call, ct: Var) -> list[Var]:
    """For y = mean of n elements: ct / n to each."""
    return [expand(ct / group_size(call.x, call.y, list(range(2, call.x.rank))), call.x)]


# Not AVG_POOL: in a norm, the factor of an element depends on the whole window.
@TABLE.vjp("LpPool", kind=Kind.REDUCTION, traits=Trait.CHANNELS_FIRST)
def lp_pool(call: Call, ct: Var) -> list[Var]:
    """As of a norm of each window, see `_norm`."""
    return [_norm(call, ct, lambda part: PoolingWindows.of(call).spread(call, part, 1.0))]


@TABLE.vjp("GlobalLpPool", kind=Kind.REDUCTION)
def global_lp_pool(call: Call, ct: Var) -> list[Var]:
    """As of a norm of each channel, see `_norm`."""
    return [_norm(call, ct, lambda part: part)]


def _norm(call: Call, ct: Var, spread: Callable[[Var], Var]) -> Var:
    """For y = (sum of abs(x)^p)^(1/p): sign(x) abs(x)^(p-1) times y^(1-p) ct, spread over windows; 0 where y is 0."""
    x, y, power = call.x, call.y, call.attrs["p"] - 1
    slope: Var = call.op("Sign", x) * abs(x) ** power
    return slope * spread(ct / where(y > 0, y, 1) ** power)


@dataclass(frozen=True)
class PoolingWindows:
    """The windows of a pooling node, where ONNX Runtime puts them.

    Attributes
    ----------
    kernel, strides, dilations
        Per spatial axis.
    before, after
        Elements by which the first and the last window reach beyond the input, per spatial axis; negative where they
        end inside.
    """

    kernel: list[int]
    strides: list[int]
    dilations: list[int]
    before: Var
    after: Var

    @classmethod
    def of(cls, call: Call) -> PoolingWindows:
        """Make the windows of a node."""
        attrs = call.attrs
        kernel = attrs["kernel_shape"]
        strides, dilations = (attrs.get(name) or [1] * len(kernel) for name in ("strides", "dilations"))
        extent = [d * (k - 1) + 1 for k, d in zip(kernel, dilations, strict=True)]
        outside = (call.y.sizes(2) - 1) * call.ints(strides) + call.ints(extent) - call.x.sizes(2)
        if attrs["auto_pad"].startswith("SAME"):
            odd = int(attrs["auto_pad"] == "SAME_LOWER")  # the side that gets one more if the number is odd
            before = (call.op("Max", outside, call.ints([0])) + odd) / 2
        else:
            before = call.ints(_pads(call)[: len(kernel)])
        return cls(kernel, strides, dilations, before, outside - before)

    def spread(self, call: Call, ct: Var, weight: float) -> Var:
        """Add ``weight`` times the number of each window to each element in the window."""
        planes = ct.reshape([-1, 1] + [0] * len(self.kernel))  # one plane per channel, for any number of channels
        kernel = ct.like(np.full((1, 1, *self.kernel), weight))
        full = call.op("ConvTranspose", planes, kernel, strides=self.strides, dilations=self.dilations)
        # Not with the pads of ConvTranspose: if they differ at the two ends, ONNX Runtime runs it on the CPU.
        return self._widened(full, self.before * -1, self.after * -1).reshape_like(call.x)

    def full_count(self, call: Call) -> bool:
        """Whether AveragePool divides by the size of the kernel in every window."""
        attrs, after = call.attrs, self.after.value
        overhang = attrs["ceil_mode"] and (after is None or bool((after > 0).any()))
        padded = attrs["auto_pad"].startswith("SAME") or any(_pads(call))
        return not overhang and (bool(attrs["count_include_pad"]) or not padded)

    def count_ratio(self, call: Call) -> Var:
        """Kernel size over the divisor of each window: the node's mean of ones over their mean with zeros around."""
        shape = concat([call.ints([1, 1]), call.x.sizes(2)])
        ones = call.op("ConstantOfShape", shape, dtype=call.x.dtype, value=np.ones(1, call.x.dtype))
        padded = self._widened(ones, self.before, self.after)
        window = {"kernel_shape": self.kernel, "strides": self.strides, "dilations": self.dilations}
        return call.op("AveragePool", ones, **call.attrs) / call.op("AveragePool", padded, **window)

    def _widened(self, x: Var, before: Var, after: Var) -> Var:
        """Put zeros before and after the spatial axes; negative numbers crop."""
        unpadded = x.emitter.ints([0, 0])
        widths = concat([unpadded, before, unpadded, after])
        if widths.value is not None and not widths.value.any():
            return x
        return x.emitter.op("Pad", x, widths, mode="constant")


def _pads(call: Call) -> list[int]:
    """The pads that count, all of the beginnings first; zeros where ``auto_pad`` sets them."""
    pads = call.attrs.get("pads") if call.attrs["auto_pad"] == "NOTSET" else None
    return pads or [0] * 2 * len(call.attrs["kernel_shape"])
