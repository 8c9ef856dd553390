"""Resize: a linear map y = M x along one axis after the other. So the cotangent is multiplied by each M, transposed.

M is the operator itself applied to an identity matrix. So the gradient is that of ONNX Runtime's computation, which
differs from ONNX's specification for linear and cubic interpolation with align_corners when sizes shrink. Where sizes
are known, ONNX Runtime constant-folds M.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from onnxplain.graph.var import Var, concat
from onnxplain.ops.index import zeros
from onnxplain.ops.table import Call, Kind, OpTable

NEAREST: dict[str, Callable[[Any], Any]] = {
    "floor": np.floor,
    "ceil": np.ceil,
    "round_prefer_floor": lambda x: np.ceil(x - 0.5),
    "round_prefer_ceil": lambda x: np.floor(x + 0.5),
}


def resize_kind(call: Call) -> Kind:
    """MOVEMENT for nearest neighbours, which are copies; AVG_POOL for interpolation."""
    return Kind.MOVEMENT if call.attrs["mode"] == "nearest" else Kind.AVG_POOL


TABLE = OpTable(resize_kind)


@TABLE.vjp("Resize")
def resize(call: Call, ct: Var) -> list[Var]:
    """An AveragePool times its size for copies, otherwise M^T ct along one axis after the other."""
    repeats = _repeats(call)
    if repeats is not None:
        mean = call.op("AveragePool", ct, known=call.x.shape, kernel_shape=repeats, strides=repeats)
        return [mean * float(np.prod(repeats))]
    for place, axis in sorted(enumerate(_axes(call)), key=lambda pair: -pair[1]):
        if not _keeps(call, place, axis):
            ct = _contract(ct, axis, _matrix(call, place), call.x)
    return [ct]


def _given(call: Call, index: int) -> Var | None:
    """An optional input; None also for an empty constant, which in older opsets stands for a missing one."""
    value = call.input(index)
    return None if value is None or (value.value is not None and not value.value.size) else value


def _axes(call: Call) -> list[int]:
    """The resized axes, not negative."""
    rank = call.x.rank
    return [a % rank for a in call.attrs.get("axes") or range(rank)]


def _scale(call: Call, place: int, axis: int) -> float | None:
    """The scale of one axis; None if unknown."""
    scales = _given(call, 2)
    if scales is not None:
        return None if scales.value is None else float(scales.value[place])
    assert call.x.shape is not None
    before, after = call.x.shape[axis], None if call.y.shape is None else call.y.shape[axis]
    if isinstance(before, int) and isinstance(after, int):
        return after / before
    return 1.0 if before is not None and before == after else None


def _keeps(call: Call, place: int, axis: int) -> bool:
    """Whether the operator surely changes nothing along an axis."""
    if call.attrs["coordinate_transformation_mode"] == "tf_crop_and_resize":
        roi = _given(call, 1)
        if roi is None or roi.value is None or tuple(roi.value[[place, place + len(_axes(call))]]) != (0, 1):
            return False
    return _scale(call, place, axis) == 1 and not _shared_scale(call)


def _shared_scale(call: Call) -> bool:
    """Whether ``keep_aspect_ratio_policy`` gives all axes one scale; tf_crop_and_resize ignores it."""
    attrs = call.attrs
    stretched = _given(call, 3) is None or attrs["keep_aspect_ratio_policy"] == "stretch"
    return not stretched and attrs["coordinate_transformation_mode"] != "tf_crop_and_resize"


def _repeats(call: Call) -> list[int] | None:
    """Times that each element is repeated along each spatial axis; None if the operator does not just repeat."""
    mode = call.attrs["coordinate_transformation_mode"]
    if call.attrs["mode"] != "nearest" or _shared_scale(call) or mode in ("align_corners", "tf_crop_and_resize"):
        return None
    factors: list[float | None] = [1.0] * call.x.rank
    for place, axis in enumerate(_axes(call)):
        factors[axis] = _scale(call, place, axis)
    repeats = [int(f) for f in factors if f and f.is_integer()]
    if len(repeats) < len(factors) or not 3 <= len(repeats) <= 5 or repeats[:2] != [1, 1] or max(repeats) == 1:
        return None
    for count in repeats[2:]:
        shift = 0 if mode == "asymmetric" else 0.5
        sources = NEAREST[call.attrs["nearest_mode"]]((np.arange(count) + shift) / count - shift)
        if sources.any():
            return None
    return repeats[2:]


def _matrix(call: Call, place: int) -> Var:
    """M transposed (in x out) for the axis at ``place`` of the attribute axes: the operator on an identity matrix."""
    axes = _axes(call)
    size = call.x.size(axes[place])
    identity = call.op("EyeLike", zeros(concat([size, size]), np.float32), k=0)
    if not _shared_scale(call):
        return _again(call, identity, [place], [1], call.y.sizes(axes[place], axes[place] + 1))
    # The scale depends on the sizes of all axes. Along the other axes all numbers are equal, so one is kept.
    one, count = call.ints([1]), len(axes)
    column = identity.reshape(concat([size, one, *(size if p == place else one for p in range(count))]))
    full = call.op("Expand", column, concat([size, one, *(call.x.size(a) for a in axes)]))
    resized = _again(call, full, list(range(count)), list(range(2, count + 2)), _given(call, 3))
    others = [p + 2 for p in range(count) if p != place]
    starts, ends = call.ints([0] * len(others)), call.ints([1] * len(others))
    return call.op("Slice", resized, starts, ends, call.ints(others)).reshape([0, -1])


def _again(call: Call, x: Var, places: list[int], axes: list[int], sizes: Var | None) -> Var:
    """Apply the operator to axes of x as it is applied at ``places``; a crop that reaches outside reads zeros there."""
    roi, scales = _given(call, 1), _given(call, 2)
    cropped = call.attrs["coordinate_transformation_mode"] == "tf_crop_and_resize"
    ends = [p + len(_axes(call)) for p in places]
    return call.op(
        "Resize",
        x,
        _pick(roi, [*places, *ends]) if cropped else None,
        _pick(scales, places),
        sizes if scales is None else None,
        **{**call.attrs, "axes": axes, "extrapolation_value": 0.0},
    )


def _pick(vector: Var | None, places: list[int]) -> Var | None:
    """The numbers of a vector at ``places``."""
    if vector is None:
        return None
    if vector.value is None:
        return vector.emitter.op("Gather", vector, vector.emitter.ints(places), axis=0)
    return vector.emitter.const(vector.value[places])


def _contract(ct: Var, axis: int, matrix: Var, x: Var) -> Var:
    """Multiply ct by ``matrix`` (in x out) along an axis, which gets its size in x."""
    matrix, rank = matrix.cast(ct.dtype), x.rank
    known = ct.shape and x.shape and (*ct.shape[:axis], x.shape[axis], *ct.shape[axis + 1 :])
    if axis == rank - 1:
        return ct.emitter.op("MatMul", ct, matrix.transpose([1, 0]), known=known)
    if axis == rank - 2:
        return ct.emitter.op("MatMul", matrix, ct, known=known)
    rows = ct.reshape([0] * (axis + 1) + [-1])
    sizes = concat([ct.sizes(0, axis), x.size(axis), ct.sizes(axis + 1)])
    return ct.emitter.op("MatMul", matrix, rows).reshape(sizes, known=known)
