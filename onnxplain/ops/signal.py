"""Fourier transforms: real-linear maps whose adjoint is the conjugate transform.

A complex number is a pair along the last axis. With F[k, n] = exp(-2 pi i k n / L), the cotangent of x in y = F x is
the conjugate transpose of F times that of y: a DFT in the other direction, times L.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from onnxplain.errors import UnsupportedOperatorError
from onnxplain.graph.var import Var, concat
from onnxplain.ops.index import add_at, counter, ranked, zeros
from onnxplain.ops.table import Call, Cotangent, Kind, OpTable
from onnxplain.ops.traits import Trait


def window_kind(call: Call) -> Kind:
    """AVG_POOL, a sum with fixed weights; PRODUCT if the window is active, too."""
    return Kind.PRODUCT if any(call.active[2:3]) else Kind.AVG_POOL


TABLE = OpTable(Kind.AVG_POOL)


@TABLE.vjp("DFT")
def dft(call: Call, ct: Var) -> list[Var]:
    """The transform in the other direction, times L; pairs in a one-sided spectrum count twice."""
    x, inverse, onesided = call.x, call.attrs["inverse"], call.attrs["onesided"]
    axis, rank, ct = _axis(call), (None,) * x.rank, ranked(ct, x.rank)
    length = ct.sizes(axis, axis + 1)
    if onesided and inverse:
        # y[n] = sum over k of c[k] Re(x[k] exp(2 pi i k n / L)) / L, c[k] = 2 where k and -k differ, else 1.
        half = call.op("DFT", ct, None, call.emitter.const(np.int64(axis)), known=rank, inverse=0, onesided=1)
        k = counter(length / 2 + 1)
        alone = k.equal(0) | (k * 2).equal(length)
        pairs = (2 - alone.cast(ct.dtype)) / length.cast(ct.dtype)
        back = half * pairs.reshape([-1] + [1] * (x.rank - axis - 1))
    else:
        if onesided:
            dft_length = call.input(1)
            length = x.size(axis) if dft_length is None else dft_length.reshape([1]).cast(np.int64)
            ct = _fit(ct, {axis: length})
        back = call.op("DFT", ct, None, call.emitter.const(np.int64(axis)), known=rank, inverse=1 - inverse, onesided=0)
        size = length.cast(ct.dtype)
        back = back / size if inverse else back * size
    # Zeros where x was cut off, no cotangent for padding, and no imaginary part for a real x.
    return [call.emitter.refine(_fit(back, {axis: x.size(axis), x.rank - 1: x.size(-1)}), x.shape)]


def _axis(call: Call) -> int:
    """The axis of the transform, not negative."""
    axis = call.input(2)
    if axis is None:
        return call.x.rank - 2
    if axis.value is None:
        raise UnsupportedOperatorError(f"{call.node.label} gets its axis at run time: no gradient is known for that")
    return int(axis.value.item()) % call.x.rank


def _fit(x: Var, sizes: dict[int, Var]) -> Var:
    """Cut or pad axes at their ends to the given sizes, axis -> size."""
    ends = [sizes[axis] - x.size(axis) if axis in sizes else x.emitter.ints([0]) for axis in range(x.rank)]
    widths = concat([x.emitter.ints([0] * x.rank), *ends])
    if widths.value is not None and not widths.value.any():
        return x
    return x.emitter.op("Pad", x, widths, mode="constant", known=(None,) * x.rank)


@TABLE.vjp("STFT", kind=window_kind, traits=Trait.READS | Trait.CONTRACTS)
def stft(call: Call, ct: Var) -> Sequence[Cotangent]:
    """The adjoint of each frame's transform, a matrix product, then the sum of the frames where they overlap.

    Shapes: B signals of T samples, F frames of L samples, K frequencies; C is 1 for real signals, 2 for complex ones.
    """
    x, step, window, length = call.x, call.need(1), call.input(2), call.input(3)
    ct = ranked(ct, 4)
    size = x.size(1) if length is None else length.reshape([1]).cast(np.int64)
    size = size if window is None else window.size(0)
    frames = call.op("MatMul", ct.reshape([0, 0, -1]), _spectrum(x, ct.size(2), size))
    frames = frames.reshape(concat([ct.sizes(0, 2), size, call.ints([-1])]), known=(None,) * 4)  # B F L C
    starts = counter(ct.size(1)) * step.reshape([1]).cast(np.int64)
    index = starts.reshape([-1, 1]) + counter(size)  # F L: position in the signal of each sample of a frame
    to_x = to_window = None
    if call.active[0]:
        samples = frames if window is None else frames * window.reshape([-1, 1])
        flat = samples.reshape(concat([ct.size(0), call.ints([-1]), x.size(2)]), known=(None,) * 3)
        where = call.op("Expand", index.reshape([-1, 1]), flat.sizes())
        to_x = add_at(zeros(x.sizes(), ct.dtype, x.shape), where, flat, 1)
    if window is not None and call.active[2]:
        read = call.op("Gather", x, index, axis=1, known=(None,) * 4)
        to_window = (frames * read).sum([0, 1, 3])
    return [to_x, None, to_window]


def _spectrum(x: Var, frequencies: Var, size: Var) -> Var:
    """Matrix of shape 2 K x L C that maps the cotangent of a spectrum to that of its frame."""
    emitter, one = x.emitter, x.emitter.ints([1])
    turns = emitter.op("Mod", counter(frequencies).reshape([-1, 1]) * counter(size), size, fmod=0)
    angle = turns.cast(x.dtype) * (2 * math.pi) / size.cast(x.dtype)
    angle = angle.reshape(concat([frequencies, one, size, one]), known=(None, 1, None, 1))
    cos, sin = emitter.op("Cos", angle), emitter.op("Sin", angle)
    matrix = concat([cos, -sin], axis=1)
    if x.shape is None or x.shape[2] != 1:
        matrix = concat([matrix, concat([sin, cos], axis=1)], axis=3)
        matrix = emitter.op("Slice", matrix, emitter.ints([0]), x.size(2), emitter.ints([3]))
    return matrix.reshape(concat([frequencies * 2, emitter.ints([-1])]), known=(None, None))
