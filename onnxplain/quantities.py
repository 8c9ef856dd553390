"""What is explained: one element of the output per sample, chosen by a target; or whether its labels stay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from onnxplain.emit import Var
from onnxplain.emit import where as choose
from onnxplain.errors import TargetError
from onnxplain.ir import Dim, Graph, Shape, Value, is_float
from onnxplain.ops.quantize import ROUNDING

TARGET = "target"
PREDICTED = -1  # the target that stands for the class with the highest score

Target = int | str | Sequence[int] | Sequence[str] | np.ndarray[Any, Any] | None


@dataclass(frozen=True)
class Selection:
    """What is explained of an output, in the graph.

    Attributes
    ----------
    target
        The target, `PREDICTED` resolved: int64 of shape (N,), a position in the flattened output; or labels.
    score
        Its value, shape (N,).
    one_hot
        bool, the shape of ``scores``: True at the chosen element; None for labels.
    scores
        The explained output, with its batch axis in front.
    axis
        Where that axis belongs.
    """

    target: Var
    score: Var
    one_hot: Var | None
    scores: Var
    axis: int | None

    def unit_seed(self) -> Var:
        """Derivative of the score by the output: 1 at the element."""
        assert self.one_hot is not None
        return self._back(self.one_hot.cast(self.scores.dtype))

    def value_seed(self) -> Var:
        """The output itself at the element, 0 elsewhere: what relevance propagation starts from."""
        assert self.one_hot is not None
        return self._back(choose(self.one_hot, self.scores, 0.0))

    def _back(self, seed: Var) -> Var:
        # Floats: ONNX Runtime 1.31.1 crashes on a bool that is transposed, cast and multiplied.
        return seed.transpose(np.argsort(_to_front(seed, self.axis)).tolist()) if self.axis else seed


def target_input(output: Var, axis: int | None) -> Var:
    """A new input for the target: an element's position per sample, or, where the output is no score, its labels."""
    if is_float(output.dtype):
        return output.emitter.input(TARGET, "int64", (_batch(output, axis),))
    return output.emitter.input(TARGET, output.dtype, output.shape and (output.shape[0], *[None] * (output.rank - 1)))


def select(output: Var, target: Var, axis: int | None) -> Selection:
    """Write what is explained of ``output``.

    Parameters
    ----------
    output
        If it holds floats, one element of each sample is explained. Else it holds labels, and what is explained is the
        part of them that equals the target's.
    target
        See `target_input`; `PREDICTED` stands for the highest element.
    axis
        The output's batch axis; None: there is one sample, and all of the output is its.
    """
    emitter, each = output.emitter, (_batch(output, axis),)
    if not is_float(output.dtype):
        agree = _flattened(_batch_first(output.equal(target).cast(np.float32), axis), axis)
        mean = emitter.op("ReduceMean", agree, emitter.ints([1]), known=each, keepdims=0)
        return Selection(target, mean, None, output, axis)
    front = _batch_first(output, axis)
    flat = _flattened(front, axis)
    predicted = emitter.op("ArgMax", flat, known=each, axis=1, keepdims=0, select_last_index=0)
    resolved = choose(target < 0, predicted, target)
    column = emitter.op("Unsqueeze", resolved, emitter.ints([1]), known=(*each, 1))
    count = emitter.op("Squeeze", flat.size(1), emitter.ints([0]), known=())
    positions = emitter.op("Range", count.like(0), count, count.like(1), known=(flat.shape or (None, None))[1:])
    chosen = positions.equal(column)
    score = emitter.op("GatherElements", flat, column, axis=1)  # fails where there is no such element; a sum would not
    score = emitter.op("Squeeze", score, emitter.ints([1]), known=each)
    one_hot = chosen if flat is front else chosen.reshape_like(front)
    return Selection(resolved, score, one_hot, front, axis)


def _to_front(output: Var, axis: int) -> list[int]:
    return [axis, *(k for k in range(output.rank) if k != axis)]


def _batch_first(output: Var, axis: int | None) -> Var:
    return output.transpose(_to_front(output, axis)) if axis else output


def _flattened(output: Var, axis: int | None) -> Var:
    """Give the output two axes: the batch, which is in front, and everything else."""
    whole = axis is None or output.shape == ()
    if output.shape is not None and output.rank == 2 and not whole:
        return output
    sizes = (None,) if output.shape is None else output.shape if whole else output.shape[1:]
    static = [d for d in sizes if isinstance(d, int)]
    first = 1 if whole else _batch(output, 0)
    return output.reshape([1 if whole else 0, -1], known=(first, prod(static) if len(static) == len(sizes) else None))


def _batch(output: Var, axis: int | None) -> Dim:
    return 1 if axis is None else output.shape[axis] if output.shape else None


def explained_value(graph: Graph, output: str, probability: bool) -> str:
    """The tensor to explain for a model output: the value before a final Softmax or Sigmoid, unless ``probability``."""
    node = graph.producer.get(output)
    if node is not None and node.op == "Identity":
        return explained_value(graph, node.inputs[0], probability)
    if node is not None and node.op == "DequantizeLinear":  # the probabilities are rounded
        while node is not None and node.op in ROUNDING:
            node = graph.producer.get(node.inputs[0])
    return node.inputs[0] if node is not None and node.op in ("Softmax", "Sigmoid") and not probability else output


def resolve(target: Target, value: Value, axis: int | None, samples: int) -> np.ndarray[Any, Any] | None:
    """Turn what the user asked for into positions in the flattened output, or into labels.

    Parameters
    ----------
    target
        None: the predicted class. int: that class, for every sample. Tuple: an index into the output without its batch
        axis, for every sample. 1-D array of ints: one class per sample; 2-D array: one index per sample. For an output
        that holds no floats: None, a label for every sample, or an array of one each.
    value
        The explained output.
    axis
        Its batch axis; None: it has none, and an index covers every axis.
    samples
        Number of samples.

    Returns
    -------
    ndarray of shape (samples,), int64; of shape (samples, 1, ...) for labels; None for the labels that the model gives

    Raises
    ------
    TargetError
        No such element, or the wrong number of targets.
    """
    if not value.is_float:
        return None if target is None else _labels(target, value, samples)
    if target is None:
        return np.full(samples, PREDICTED, np.int64)
    indices = _indices(target, samples)
    shape = _axes_of_one(value, axis)
    if not shape and indices.shape[1] == 1:
        shape = (1 if value.shape is not None else None,)  # one number per sample: class 0 is that number
    if value.shape is None and indices.shape[1] > 1:
        raise TargetError(f"the number of axes of output '{value.name}' is not known before it runs")
    if indices.shape[1] != len(shape):
        dims = " x ".join("?" if d is None else str(d) for d in shape) or "one number"
        besides = "axes, none of which is the batch" if axis is None else "axes besides the batch"
        raise TargetError(
            f"the output '{value.name}' has {len(shape)} {besides} ({dims}), the target {indices.shape[1]}",
            "Give a tuple with one index per axis.",
        )
    _check_range(indices, shape, value.name)
    strides = np.cumprod([1, *(d for d in reversed(shape[1:]) if isinstance(d, int))])[::-1]
    positions: np.ndarray[Any, Any] = (indices * strides).sum(axis=1)
    return positions


def _axes_of_one(value: Value, axis: int | None) -> Shape:
    """The part of the output's shape that a target is an index into."""
    if value.shape is None:
        return (None,) if axis is None else ()
    return tuple(d for k, d in enumerate(value.shape) if k != axis)


def _labels(target: Any, value: Value, samples: int) -> np.ndarray[Any, Any]:
    array = np.asarray(target)
    wanted = "OSU" if value.dtype == object else value.dtype.kind if value.dtype.kind == "b" else "iu"
    if array.dtype.kind not in wanted or array.ndim > 1:
        raise TargetError(f"the output '{value.name}' holds {value.dtype} labels; a target is one of them, or one each")
    if array.ndim and len(array) != samples:
        raise TargetError(f"{len(array)} targets for {samples} samples; give one for all, or one each")
    each = np.broadcast_to(array.astype(value.dtype), (samples,))
    return each.reshape(samples, *[1] * (len(value.shape or (None,)) - 1))


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


def unravel(resolved: np.ndarray[Any, Any], value: Value, axis: int | None) -> np.ndarray[Any, Any]:
    """What was explained as a user calls it: (N,) classes, (N, axes) indices, or labels."""
    shape = _axes_of_one(value, axis)
    if not value.is_float or len(shape) < 2 or not all(isinstance(d, int) for d in shape):
        return resolved
    return np.stack(np.unravel_index(resolved, tuple(d for d in shape if isinstance(d, int))), axis=-1)
