"""Normalisation by statistics, and softmax. Statistics of half-precision tensors are computed in float32."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxplain.errors import UnsupportedOperatorError
from onnxplain.graph.ir import Node
from onnxplain.graph.var import Var, where
from onnxplain.ops.reduce import expand, group_size
from onnxplain.ops.table import Call, Cotangent, Kind, OpTable
from onnxplain.ops.traits import Trait

TABLE = OpTable(Kind.NORMALIZATION)
FROZEN = "frozen"  # attribute that LRP adds to a node: the divisor counts as constant


def wide(x: Var) -> Var:
    """Cast floats shorter than float32 to float32."""
    return x.cast(np.float32) if x.dtype.itemsize < 4 else x


def mean(x: Var, axes: Sequence[int]) -> Var:
    """Mean over axes, which stay, with size 1."""
    assert x.shape is not None
    known = tuple(1 if i in axes else d for i, d in enumerate(x.shape))
    return x.emitter.op("ReduceMean", x, x.emitter.ints(axes), known=known, keepdims=1)


def inverse_root(x: Var) -> Var:
    """Write 1 / sqrt(x)."""
    return 1 / x.emitter.op("Sqrt", x)


def statistics(x: Var, axes: Sequence[int], epsilon: float) -> tuple[Var, Var]:
    """The centered x (x minus its mean over ``axes``), and the inverse of its standard deviation."""
    centered = x - mean(x, axes)
    return centered, inverse_root(mean(centered * centered, axes) + epsilon)


def standardization_vjp(call: Call, ct: Var, centered: Var, inverse: Var, axes: Sequence[int]) -> Var:
    """VJP of z = centered * inverse by x: inverse times (ct - mean(ct) - z mean(ct z))."""
    by_centered = ct - mean(ct, axes)
    if not call.attrs.get(FROZEN):
        by_centered = by_centered - centered * (inverse * inverse * mean(ct * centered, axes))
    return by_centered * inverse


def column(parameter: Var, x: Var) -> Var:
    """Reshape a vector with one number per channel (axis 1) of x, so that it broadcasts to x."""
    return parameter.reshape([-1, *[1] * (x.rank - 2)])


def fit(call: Call, *cotangents: Cotangent) -> Sequence[Cotangent]:
    """Cast each cotangent to the dtype of its input."""
    pairs = zip(cotangents, call.inputs, strict=False)
    return [None if ct is None or i is None else ct.cast(i.dtype) for ct, i in pairs]


@TABLE.vjp("BatchNormalization", kind=Kind.AFFINE, traits=Trait.ALONG_CHANNELS | Trait.CHANNELS_FIRST | Trait.AFFINE)
def batch_normalization(call: Call, ct: Var, *running: Cotangent) -> Sequence[Cotangent]:
    """For y = (x - average) factor + bias, factor = scale / sqrt(variance + epsilon): ct factor to x."""
    if call.attrs["training_mode"]:
        raise UnsupportedOperatorError(
            f"{call.node.label} is in training mode: its output depends on the other samples of the batch",
            "Export the model in inference mode.",
        )
    scale, _, average, variance = (wide(i) for i in call.inputs[1:] if i is not None)
    inverse = inverse_root(variance + call.attrs["epsilon"])
    factor = scale * inverse
    by_x = ct * column(factor, call.x).cast(ct.dtype)
    if not any(call.active[1:]):
        return [by_x]
    axes = [a for a in range(call.x.rank) if a != 1]
    total = wide(ct).sum(axes)
    spread = (wide(ct) * (wide(call.x) - column(average, call.x))).sum(axes)
    by_variance = spread * factor * inverse * inverse * -0.5
    return fit(call, by_x, spread * inverse, total, -total * factor, by_variance)


@TABLE.vjp("LayerNormalization", broadcast=True, traits=Trait.STANDARDIZES)
def layer_normalization(
    call: Call, ct: Cotangent, to_mean: Cotangent = None, to_inverse: Cotangent = None
) -> Sequence[Cotangent]:
    """Of y = z scale + bias, z the standardized x; mean and inverse standard deviation may be outputs, too."""
    x, scale = wide(call.x), wide(call.need(1))
    axes = range(call.attrs["axis"] % x.rank, x.rank)
    if len(call.outputs) == 3 and all(o is not None for o in call.outputs):
        average, inverse = (o.cast(x.dtype) for o in call.outputs[1:] if o is not None)
        centered = x - average
    else:
        centered, inverse = statistics(x, axes, call.attrs["epsilon"])
    count = group_size(x, inverse, axes)
    parts = []
    by_scale = None
    if ct is not None:
        ct = wide(ct)
        parts.append(standardization_vjp(call, ct * scale, centered, inverse, axes))
        by_scale = ct * (centered * inverse) if call.active[1] else None
    if to_mean is not None:
        parts.append(expand(to_mean / count, x))
    if to_inverse is not None:
        parts.append(centered * (-to_inverse * inverse * inverse * inverse / count))
    return fit(call, sum(parts[1:], parts[0]), by_scale, ct)


@TABLE.vjp("GroupNormalization", "InstanceNormalization", traits=Trait.CHANNELS_FIRST | Trait.STANDARDIZES)
def channel_normalization(call: Call, ct: Var) -> Sequence[Cotangent]:
    """Of y = z scale + bias, z standardized over each group of channels, or, for instances, over each channel."""
    x, scale = wide(call.x), wide(call.need(1))
    assert x.shape is not None
    groups = call.attrs.get("num_groups", 0)  # 0 tells Reshape to keep the number of channels
    known = (x.shape[0], groups or x.shape[1], None)
    centered, inverse = statistics(x.reshape([0, groups, -1], known), [2], call.attrs["epsilon"])
    ct = wide(ct)
    scaled = (ct * column(scale, x)).reshape([0, groups, -1], known)
    by_x = standardization_vjp(call, scaled, centered, inverse, [2]).reshape_like(x)
    if not any(call.active[1:]):
        return fit(call, by_x)
    axes = [a for a in range(x.rank) if a != 1]
    return fit(call, by_x, (ct * (centered * inverse).reshape_like(x)).sum(axes), ct.sum(axes))


@TABLE.vjp("MeanVarianceNormalization", traits=Trait.STANDARDIZES)
def mean_variance_normalization(call: Call, ct: Var) -> Sequence[Cotangent]:
    """As `standardization_vjp`."""
    x = wide(call.x)
    axes = [a % x.rank for a in call.attrs["axes"]]
    centered, inverse = statistics(x, axes, 1e-18)  # the operator adds 1e-9 to the standard deviation
    return fit(call, standardization_vjp(call, wide(ct), centered, inverse, axes))


@TABLE.vjp("LRN", traits=Trait.ALONG_CHANNELS | Trait.CHANNELS_FIRST)
def local_response_normalization(call: Call, ct: Var) -> Sequence[Cotangent]:
    """For y = x d^-beta, d = bias + rate (sum of x^2 over ``size`` neighbouring channels) and rate = alpha / size.

    ct d^-beta - 2 rate beta x (sum of ct y / d over the channels whose d depends on x).
    """
    size, beta = call.attrs["size"], call.attrs["beta"]
    rate = call.attrs["alpha"] / size
    x, y, ct = wide(call.x), wide(call.y), wide(ct)
    before = (size - 1) // 2
    d = neighbours(x * x, before, size) * rate + call.attrs["bias"]
    power = call.op("Exp", call.op("Log", d) * -beta)  # Pow with a fractional exponent is slow
    if call.attrs.get(FROZEN):
        return fit(call, ct * power)
    reach = neighbours(ct * y / d, size - 1 - before, size)  # channels whose neighbourhood x is in
    return fit(call, ct * power - x * reach * (2 * rate * beta))


def neighbours(x: Var, before: int, size: int) -> Var:
    """Sum over ``size`` neighbouring channels, of which the first is ``before`` channels ahead."""
    emitter = x.emitter
    channels = emitter.ints([1])
    padded = emitter.op("Pad", x, emitter.ints([before, size - 1 - before]), None, channels, mode="constant")
    ends = [k - size + 1 or np.iinfo(np.int64).max for k in range(size)]
    parts = [
        emitter.op("Slice", padded, emitter.ints([k]), emitter.ints([end]), channels, known=x.shape)
        for k, end in enumerate(ends)
    ]
    return sum(parts[1:], parts[0])


@TABLE.vjp("LpNormalization", traits=Trait.ALONG_AXIS)
def lp_normalization(call: Call, ct: Var) -> Sequence[Cotangent]:
    """For y = x / norm: (ct - y (sum of ct y)) / norm, with sign(x) for the first y if p = 1; 0 where norm is 0."""
    x, y, p, axis = call.x, call.y, call.attrs["p"], call.attrs["axis"]
    assert x.shape is not None
    known = tuple(1 if i == axis % x.rank else d for i, d in enumerate(x.shape))
    norm = call.op(f"ReduceL{p}", x, call.ints([axis]), known=known, keepdims=1)
    if not call.attrs.get(FROZEN):
        ct = ct - (y if p == 2 else call.op("Sign", x)) * (ct * y).sum([axis], keepdims=True)
    return [ct * where(norm > 0, 1 / norm, 0)]


@TABLE.vjp("Softmax", kind=Kind.SOFTMAX, traits=Trait.ALONG_AXIS | Trait.NON_NEGATIVE)
def softmax(call: Call, ct: Var) -> Sequence[Cotangent]:
    """For y = softmax(x): y (ct - sum of ct y)."""
    y = without_masked_rows(call)
    return [y * (ct - (ct * y).sum([call.attrs["axis"]], keepdims=True))]


def without_masked_rows(call: Call) -> Var:
    """The y without NaN, if the model has it: Where(row, 0, y), since rows that are masked entirely are NaN in y."""
    emitter, y = call.emitter, call.y
    name, users = y.name, users_of(call, y.name)
    if [node.op for node in users] == ["Cast"]:
        name = users[0].outputs[0]
        users = users_of(call, name)
    tests = [node.outputs[0] for node in users if node.op == "IsNaN"]
    guards = [node for node in users if node.op == "Where" and node.inputs.count(name) == 1]
    if len(guards) != 1 or len(users) > 1 + len(tests):
        return y
    (row, *choices), result = map(emitter.var, guards[0].inputs), emitter.var(guards[0].outputs[0])
    axis = y.rank - call.attrs["axis"] % y.rank  # from the end
    by_row = row.shape is not None and (row.rank < axis or row.shape[-axis] == 1)
    zeros = any(c.value is not None and not c.value.any() for c in choices)
    return result.cast(y.dtype) if zeros and (by_row or row.name in tests) else y


def users_of(call: Call, name: str) -> list[Node]:
    """Nodes written so far that read a value."""
    return [node for node in call.emitter.nodes if name in node.inputs]


@TABLE.vjp("LogSoftmax", kind=Kind.SOFTMAX, traits=Trait.ALONG_AXIS)
def log_softmax(call: Call, ct: Var) -> Sequence[Cotangent]:
    """For y = log softmax(x): ct - exp(y) (sum of ct)."""
    return [ct - call.op("Exp", call.y) * ct.sum([call.attrs["axis"]], keepdims=True)]
