"""Weights of a few bits, quantized block by block, become floating-point constants of MatMul and Gather."""

from __future__ import annotations

from typing import Any

import numpy as np

from onnxplain.canonize.expansions.site import Expansion, Site, StaysError
from onnxplain.graph.var import Var

Array = np.ndarray[Any, Any]

_NF4 = (  # code of bitsandbytes' NF4 -> value, a quantile of a normal distribution
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635),
    *(-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725),
    *(0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
_FP4 = (
    0.0,
    0.0052083333,
    0.6666667,
    1.0,
    0.33333333,
    0.5,
    0.16666667,
    0.25,
)  # code of its FP4 -> value; code + 8 -> the negative value


def unpacked(array: Array, bits: int) -> Array:
    """Unpack the bytes of the last axis, which hold several numbers each, the first one in the lowest bits."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    parts = (array[..., None] >> shifts) & np.uint8(2**bits - 1)
    return parts.reshape(*array.shape[:-1], -1)


def _constant(var: Var | None) -> Array | None:
    """Value of a constant; the node is kept if the input is no constant."""
    if var is None:
        return None
    if var.value is None:
        raise StaysError
    return var.value


def _matmul_n_bits(site: Site) -> Var:
    """MatMulNBits: A ((q - zero) * scale)^T, where q has N rows of K numbers, in blocks with one scale each."""
    bits, k, n = site.get("bits", 4), site.get("K"), site.get("N")
    site.refuse(site.input(4), site.get("weight_prepacked"))
    packed, scales, zeros = (_constant(site.input(i)) for i in (1, 2, 3))
    assert packed is not None
    assert scales is not None
    scales = scales.reshape(n, -1, 1).astype(np.float32)
    blocks = scales.shape[1]
    if zeros is None:
        zeros = np.full((n, blocks), 2 ** (bits - 1), np.float32)
    elif zeros.dtype == np.uint8:
        zeros = unpacked(zeros.reshape(n, -1), bits)[:, :blocks]
    levels = unpacked(packed.reshape(n, blocks, -1), bits).astype(np.float32)
    weights = ((levels - zeros.reshape(n, blocks, 1)) * scales).reshape(n, -1)[:, :k]
    y = site.op("MatMul", site.need(0), site.emitter.const(np.ascontiguousarray(weights.T), "weights"))
    bias = site.input(5)
    return y if bias is None else y + bias


def _matmul_bnb4(site: Site) -> Var:
    """MatMulBnb4: A W^T, where W is stored as codes, two per byte, the high bits first, in blocks with a scale."""
    n, k, block = site.get("N"), site.get("K"), site.get("block_size")
    site.refuse(site.get("transB", 1) != 1)
    packed, scales = _constant(site.input(1)), _constant(site.input(2))
    assert packed is not None
    assert scales is not None
    positive = np.array(_FP4, np.float32)
    table = np.array(_NF4, np.float32) if site.get("quant_type") else np.concatenate([positive, -positive])
    codes = np.stack([packed.ravel() >> 4, packed.ravel() & 15], axis=-1).ravel()[: n * k]
    weights = (table[codes] * np.repeat(scales.ravel(), block)[: n * k]).reshape(n, k)
    return site.op("MatMul", site.need(0), site.emitter.const(np.ascontiguousarray(weights.T), "weights"))


def _gather(site: Site) -> Var:
    """GatherBlockQuantized: Gather from (q - zero) * scale, quantized in blocks along one axis."""
    data, scales, zeros = (_constant(site.input(i)) for i in (0, 2, 3))
    assert data is not None
    assert scales is not None
    bits, axis = site.get("bits", 4), site.get("quantize_axis", 1)
    middle = 0
    if data.dtype == np.uint8:  # packed along the last axis
        middle = 2 ** (bits - 1)
        data = unpacked(data, bits) if bits < 8 else data
        zeros = unpacked(zeros, bits) if zeros is not None and bits < 8 else zeros
    size = data.shape[axis]

    def wide(array: Array) -> Array:
        return np.repeat(array.astype(np.float32), site.get("block_size", 128), axis).take(range(size), axis)

    shift = np.float32(middle) if zeros is None else wide(zeros.take(range(scales.shape[axis]), axis))
    table = (data.astype(np.float32) - shift) * wide(scales)
    gathered = site.emitter.const(table, "table")
    return site.op("Gather", gathered, site.need(1), dtype=np.float32, axis=site.get("gather_axis", 0))


TABLE: dict[str, Expansion] = {
    "GatherBlockQuantized": _gather,
    "MatMulBnb4": _matmul_bnb4,
    "MatMulNBits": _matmul_n_bits,
}
