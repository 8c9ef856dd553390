"""Explainers of occlusion, as a loop over the windows."""

from __future__ import annotations

import numpy as np

from onnxplain.distributions.perturbation import Windows
from onnxplain.distributions.perturbation.features import default_parts
from onnxplain.errors import UnsupportedModelError
from onnxplain.export.specification import Specification, finished
from onnxplain.graph.emit import Emitter
from onnxplain.graph.ir import Graph, is_float
from onnxplain.graph.var import Var, concat, where
from onnxplain.ops.index import zeros
from onnxplain.programs.inside import Inside, baseline_of


def write_windows(spec: Specification, windows: Windows) -> Graph:
    """Mean loss of score over the windows that cover an element."""
    inside = spec.inside()
    return finished(inside, {name: _occluded(inside, name, windows) for name in spec.program.question.tensors})


def _occluded(inside: Inside, name: str, windows: Windows) -> Var:
    emitter = inside.emitter
    x = emitter.var(name)
    if x.shape is None:
        raise UnsupportedModelError(f"the model does not say how many axes its input has: {x}")
    axes = windows.axes(tuple(d if isinstance(d, int) else 0 for d in x.shape))
    baseline = baseline_of(x, windows.baseline)
    one = emitter.const(np.array(1))
    sizes = [_scalar(x.size(axis)) for axis in axes]
    window, stride = windows.per_axis(len(axes))
    extents = [
        emitter.op("Max", one, size / default_parts(len(axes))) if w is None else emitter.op("Min", one.like(w), size)
        for w, size in zip(window, sizes, strict=True)
    ]
    strides = [
        emitter.op("Max", one, extent / 2) if s is None else emitter.op("Min", one.like(s), extent)
        for s, extent in zip(stride, extents, strict=True)
    ]
    counts = [(size - w + s - 1) / s + 1 for size, w, s in zip(sizes, extents, strides, strict=True)]
    total = one
    for count in counts:
        total = total * count
    column = [-1] + [1] * (x.rank - 1)

    def step(body: Emitter, index: Var, sums: list[Var]) -> list[Var]:
        mask, rest = body.const(np.array(True)), index
        for axis, size, extent, stride, count in reversed(
            list(zip(axes, sizes, extents, strides, counts, strict=True))
        ):
            count, start = body.var(count.name), body.var(stride.name)
            start = (rest - rest / count * count) * start
            rest = rest / count
            places = body.op("Range", body.const(np.array(0)), body.var(size.name), body.const(np.array(1)))
            within = (places >= start) & (places < start + body.var(extent.name))
            mask = mask & within.reshape([-1] + [1] * (x.rank - 1 - axis))
        hidden = where(mask, body.var(baseline.name), body.var(x.name))
        (score,) = inside(body, {name: hidden}, [inside.program.names.score])
        covered = mask.cast(dtype)
        loss = (body.var(inside.selection.score.name) - score).cast(dtype).reshape(column)
        return [sums[0] + loss * covered, sums[1] + covered]

    dtype = x.dtype if is_float(x.dtype) else np.dtype(np.float32)
    losses = zeros(x.sizes(), dtype, x.shape)
    one_sample = concat([emitter.ints([1]), x.sizes(1)])
    covering = zeros(one_sample, dtype, (1, *x.shape[1:]))
    loss, covered = inside.loop(total, [losses, covering], step)
    return loss / covered


def _scalar(size: Var) -> Var:
    return size.emitter.op("Squeeze", size, size.emitter.ints([0]), known=())
