"""`Selection`: one element of an output, a weighted sum of elements, or agreeing labels, written into the graph."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np

from onnxplain.graph.ir import Dim, is_float, unused
from onnxplain.graph.var import Var
from onnxplain.graph.var import where as choose
from onnxplain.ops.index import zeros

TARGET = "target"
PREDICTED = -1  # the target that stands for the class with the highest score


@dataclass(frozen=True)
class Selection:
    """The explained part of an output, in the graph.

    Attributes
    ----------
    target
        The target, with the predicted class in place of `PREDICTED`: positions in the flattened output, int64 of shape
        (N,), or (N, K) for weighted sums; or labels.
    score
        Value of the target, shape (N,).
    chosen
        True at the chosen element, or the weight of each element, in the shape of ``scores``; None for labels.
    scores
        The explained output, with the batch axis in front.
    axis
        The place of the batch axis in the output.
    """

    target: Var
    score: Var
    chosen: Var | None
    scores: Var
    axis: int | None

    def unit_seed(self) -> Var:
        """Derivative of the score by the output: 1 at the element, or the weights."""
        assert self.chosen is not None
        return self._back(self.chosen.cast(self.scores.dtype))

    def value_seed(self) -> Var:
        """Seed of relevance propagation: the output at the chosen element, or times the weights; 0 elsewhere."""
        assert self.chosen is not None
        if is_float(self.chosen.dtype):
            return self._back(self.chosen * self.scores)
        return self._back(choose(self.chosen, self.scores, 0.0))

    def _back(self, seed: Var) -> Var:
        # Floats: ONNX Runtime 1.31.1 crashes on a bool that is transposed, cast and multiplied.
        return seed.transpose(np.argsort(_to_front(seed, self.axis)).tolist()) if self.axis else seed


def target_inputs(output: Var, axis: int | None, weighted: bool = False) -> tuple[Var, ...]:
    """Add the inputs that choose the target.

    For one element: its position, int64 of shape (N,). For a weighted sum: positions and weights, both of shape (N, K).
    For labels: the labels with which they are compared.
    """
    emitter, each = output.emitter, _batch(output, axis)
    if not is_float(output.dtype):
        shape = output.shape and (output.shape[0], *[None] * (output.rank - 1))
        return (emitter.input(TARGET, output.dtype, shape),)
    if not weighted:
        return (emitter.input(TARGET, "int64", (each,)),)
    sizes = {d for value in emitter.values.values() for d in value.shape or () if isinstance(d, str)}
    terms = unused("terms", sizes)
    return emitter.input(TARGET, "int64", (each, terms)), emitter.input("weights", output.dtype, (each, terms))


def select(output: Var, target: Var, axis: int | None, weights: Var | None = None) -> Selection:
    """Write the selection of a target from an output.

    Parameters
    ----------
    output
        The output. If it holds floats, one element of each sample is explained, or a weighted sum of elements. If it
        holds labels, the share of labels that equal the target is explained.
    target, weights
        See `target_inputs`; `PREDICTED` stands for the greatest element.
    axis
        Batch axis of the output; None: there is one sample, to which all of the output belongs.
    """
    emitter, each = output.emitter, (_batch(output, axis),)
    if not is_float(output.dtype):
        agree = _flattened(_batch_first(output.equal(target).cast(np.float32), axis), axis)
        mean = emitter.op("ReduceMean", agree, emitter.ints([1]), known=each, keepdims=0)
        return Selection(target, mean, None, output, axis)
    front = _batch_first(output, axis)
    flat = _flattened(front, axis)
    if weights is not None:
        predicted = emitter.op("ArgMax", flat, known=(*each, 1), axis=1, keepdims=1, select_last_index=0)
        resolved = choose(target < 0, predicted, target)
        score = (emitter.op("GatherElements", flat, resolved, known=resolved.shape, axis=1) * weights).sum([1])
        nothing = zeros(flat.sizes(), flat.dtype, flat.shape)
        weights = emitter.op("Expand", weights, resolved.sizes(), known=resolved.shape)
        spread = emitter.op("ScatterElements", nothing, resolved, weights, known=flat.shape, axis=1, reduction="add")
        return Selection(resolved, score, spread if flat is front else spread.reshape_like(front), front, axis)
    predicted = emitter.op("ArgMax", flat, known=each, axis=1, keepdims=0, select_last_index=0)
    resolved = choose(target < 0, predicted, target)
    column = emitter.op("Unsqueeze", resolved, emitter.ints([1]), known=(*each, 1))
    count = emitter.op("Squeeze", flat.size(1), emitter.ints([0]), known=())
    positions = emitter.op("Range", count.like(0), count, count.like(1), known=(flat.shape or (None, None))[1:])
    chosen = positions.equal(column)
    score = emitter.op("GatherElements", flat, column, axis=1)  # fails where there is no such element; a sum would not
    score = emitter.op("Squeeze", score, emitter.ints([1]), known=each)
    return Selection(resolved, score, chosen if flat is front else chosen.reshape_like(front), front, axis)


def _to_front(output: Var, axis: int) -> list[int]:
    return [axis, *(k for k in range(output.rank) if k != axis)]


def _batch_first(output: Var, axis: int | None) -> Var:
    return output.transpose(_to_front(output, axis)) if axis else output


def _flattened(output: Var, axis: int | None) -> Var:
    """Reshape the output, whose batch axis is in front, to two axes: the batch, and all other axes."""
    whole = axis is None or output.shape == ()
    if output.shape is not None and output.rank == 2 and not whole:
        return output
    sizes = (None,) if output.shape is None else output.shape if whole else output.shape[1:]
    static = [d for d in sizes if isinstance(d, int)]
    first = 1 if whole else _batch(output, 0)
    return output.reshape([1 if whole else 0, -1], known=(first, prod(static) if len(static) == len(sizes) else None))


def _batch(output: Var, axis: int | None) -> Dim:
    return 1 if axis is None else output.shape[axis] if output.shape else None
