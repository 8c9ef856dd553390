"""What is explained: one element of the output per sample, chosen by a target."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from onnxplain.emit import Var
from onnxplain.emit import where as choose
from onnxplain.errors import TargetError
from onnxplain.ir import Dim, Graph, Shape, Value
from onnxplain.ops.quantize import ROUNDING

PREDICTED = -1  # the target that stands for the class with the highest score

Target = int | Sequence[int] | np.ndarray[Any, Any] | None


@dataclass(frozen=True)
class Selection:
    """A chosen element per sample, in the graph.

    Attributes
    ----------
    target
        int64 of shape (N,): its position in the flattened output, ``PREDICTED`` resolved.
    score
        Its value, shape (N,).
    one_hot
        bool, the output's shape: True at that element.
    output
        The explained output.
    """

    target: Var
    score: Var
    one_hot: Var
    output: Var

    def unit_seed(self) -> Var:
        """Derivative of the score by the output: 1 at the element."""
        return self.one_hot.cast(self.output.dtype)

    def value_seed(self) -> Var:
        """The output itself at the element, 0 elsewhere: what relevance propagation starts from."""
        return choose(self.one_hot, self.output, 0.0)


def select(output: Var, target: Var) -> Selection:
    """Write the choice of element ``target`` (shape (N,), `PREDICTED` for the highest) of ``output`` (N, ...)."""
    emitter = output.emitter
    flat = _flattened(output)
    each = (_batch(output),)
    predicted = emitter.op("ArgMax", flat, known=each, axis=1, keepdims=0, select_last_index=0)
    resolved = choose(target < 0, predicted, target)
    column = emitter.op("Unsqueeze", resolved, emitter.ints([1]), known=(*each, 1))
    count = emitter.op("Squeeze", flat.size(1), emitter.ints([0]), known=())
    positions = emitter.op("Range", count.like(0), count, count.like(1), known=(flat.shape or (None, None))[1:])
    chosen = positions.equal(column)
    score = emitter.op("GatherElements", flat, column, axis=1)  # fails where there is no such element; a sum would not
    score = emitter.op("Squeeze", score, emitter.ints([1]), known=each)
    one_hot = chosen if flat is output else chosen.reshape_like(output)
    return Selection(resolved, score, one_hot, output)


def _flattened(output: Var) -> Var:
    """Give the output two axes: the batch, and everything else."""
    if output.shape is not None and output.rank == 2:
        return output
    if output.shape == ():
        return output.reshape([1, 1])
    sizes = (output.shape or (None, None))[1:]
    static = [d for d in sizes if isinstance(d, int)]
    return output.reshape([0, -1], known=(_batch(output), prod(static) if len(static) == len(sizes) else None))


def _batch(output: Var) -> Dim:
    return output.shape[0] if output.shape else None


def explained_value(graph: Graph, output: str, probability: bool) -> str:
    """The tensor to explain for a model output: the value before a final Softmax or Sigmoid, unless ``probability``."""
    node = graph.producer.get(output)
    if node is not None and node.op == "Identity":
        return explained_value(graph, node.inputs[0], probability)
    if node is not None and node.op == "DequantizeLinear":  # the probabilities are rounded
        while node is not None and node.op in ROUNDING:
            node = graph.producer.get(node.inputs[0])
    return node.inputs[0] if node is not None and node.op in ("Softmax", "Sigmoid") and not probability else output


def resolve(target: Target, value: Value, samples: int) -> np.ndarray[Any, Any]:
    """Turn what the user asked for into positions in the flattened output.

    Parameters
    ----------
    target
        None: the predicted class. int: that class, for every sample. Tuple: an index into the output without its batch
        axis, for every sample. 1-D array of ints: one class per sample; 2-D array: one index per sample.
    value
        The explained output.
    samples
        Number of samples.

    Returns
    -------
    ndarray of shape (samples,), int64

    Raises
    ------
    TargetError
        No such element, or the wrong number of targets.
    """
    if target is None:
        return np.full(samples, PREDICTED, np.int64)
    indices = _indices(target, samples)
    shape = (value.shape or (None,))[1:]
    if not shape and indices.shape[1] == 1:
        shape = (1 if value.shape is not None else None,)  # one number per sample: class 0 is that number
    if indices.shape[1] != len(shape):
        dims = " x ".join("?" if d is None else str(d) for d in shape) or "one number"
        raise TargetError(
            f"the output '{value.name}' has {len(shape)} axes besides the batch ({dims}), "
            f"the target {indices.shape[1]}",
            "Give a tuple with one index per axis.",
        )
    _check_range(indices, shape, value.name)
    strides = np.cumprod([1, *(d for d in reversed(shape[1:]) if isinstance(d, int))])[::-1]
    positions: np.ndarray[Any, Any] = (indices * strides).sum(axis=1)
    return positions


def _indices(target: Any, samples: int) -> np.ndarray[Any, Any]:
    """Bring a target into the shape (samples, axes), int64."""
    single = isinstance(target, tuple)
    try:
        array = np.asarray(target)
    except ValueError:
        raise TargetError(f"the target is no regular array: {target!r}") from None
    if array.dtype.kind not in "iu" or (single and any(isinstance(i, bool) for i in target)):
        raise TargetError(f"a target is None, an int, a tuple or an array of ints, not {target!r}")
    array = array.astype(np.int64)
    if array.ndim == 0 or (single and array.ndim == 1):
        return np.broadcast_to(array, (samples, array.size))
    if single or array.ndim > 2:
        raise TargetError(
            f"the target has shape {array.shape}",
            "Give one int or tuple for all samples, or an array with a row for each.",
        )
    if len(array) != samples:
        raise TargetError(f"{len(array)} targets for {samples} samples; give one for all, or one each")
    return array.reshape(samples, -1)


def _check_range(indices: np.ndarray[Any, Any], shape: Shape, output: str) -> None:
    if not all(isinstance(d, int) for d in shape[1:]):
        raise TargetError(f"the size of output '{output}' is not known before it runs: {shape}")
    for axis, size in enumerate(shape):
        limit = size if isinstance(size, int) else np.iinfo(np.int64).max
        wrong = (indices[:, axis] < 0) | (indices[:, axis] >= limit)
        if wrong.any():
            where = f" on axis {axis}" if len(shape) > 1 else ""
            allowed = f"0 to {limit - 1}" if isinstance(size, int) else "at least 0"
            bad = indices[wrong, axis][0]
            raise TargetError(f"target {bad} is out of range{where}: the output '{output}' takes {allowed}")


def unravel(flat: np.ndarray[Any, Any], value: Value) -> np.ndarray[Any, Any]:
    """Positions in the flattened output -> what a user calls the target: (N,) classes, or (N, axes) indices."""
    shape = (value.shape or ())[1:]
    if len(shape) < 2 or not all(isinstance(d, int) for d in shape):
        return flat
    return np.stack(np.unravel_index(flat, tuple(d for d in shape if isinstance(d, int))), axis=-1)
