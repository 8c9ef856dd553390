"""What is explained: one element of the output per sample, chosen by a target."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxplain.emit import Var
from onnxplain.emit import where as choose
from onnxplain.errors import TargetError
from onnxplain.ir import Graph, Shape, Value

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
    flat = output if output.shape is not None and output.rank == 2 else output.reshape([0, -1] if output.rank else [1, 1])
    predicted = emitter.op("ArgMax", flat, axis=1, keepdims=0, select_last_index=0)
    resolved = choose(target < 0, predicted, target)
    count = flat.static_shape[1] if flat.static_shape else _known(output.shape)
    if count:
        positions = emitter.ints(range(count))
    else:
        scalar = emitter.op("Squeeze", flat.sizes(1, 2), emitter.ints([0]))
        zero, one = emitter.const(np.array(0)), emitter.const(np.array(1))
        positions = emitter.op("Range", zero, scalar, one)
    column = emitter.op("Unsqueeze", resolved, emitter.ints([1]))
    chosen = positions.equal(column)
    score = choose(chosen, flat, 0.0).sum([1])
    one_hot = chosen if flat is output else chosen.reshape_like(output)
    return Selection(resolved, score, one_hot, output)


def _known(shape: Shape | None) -> int | None:
    sizes = [d for d in (shape or (None,))[1:] if isinstance(d, int)]
    return int(np.prod(sizes)) if shape and len(sizes) == len(shape) - 1 else None


def explained_value(graph: Graph, output: str, probability: bool) -> str:
    """The tensor to explain for a model output: the value before a final Softmax or Sigmoid, unless ``probability``."""
    node = graph.producer.get(output)
    if node is not None and node.op == "Identity":
        return explained_value(graph, node.inputs[0], probability)
    return node.inputs[0] if node is not None and node.op in ("Softmax", "Sigmoid") and not probability else output


def resolve(target: Target, value: Value, samples: int) -> np.ndarray[Any, Any]:
    """Turn what the user asked for into positions in the flattened output.

    Parameters
    ----------
    target
        None: the predicted class. int: that class, for every sample. Tuple: an index into the output without its batch axis.
        1-D array of ints: one class per sample; 2-D array: one index per sample.
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
    if isinstance(target, bool | float | str | np.bool_ | np.floating):
        raise TargetError(f"a target is None, an int, a tuple or an array of ints, not {target!r}")
    shape = (value.shape or (None,))[1:]
    if isinstance(target, tuple):
        index = np.array(target, dtype=object)
        if index.ndim != 1 or not all(isinstance(i, int | np.integer) for i in target):
            raise TargetError(f"a tuple target holds ints, one per axis of the output without its batch axis: {target!r}")
        indices = np.broadcast_to(np.array(target, dtype=np.int64), (samples, len(target)))
    else:
        array = np.asarray(target)
        if array.dtype.kind not in "iu":
            raise TargetError(f"targets are ints, not {array.dtype}")
        if array.ndim and len(array) != samples:
            raise TargetError(f"{len(array)} targets for {samples} samples; give one for all, or one each")
        if array.ndim > 2:
            raise TargetError(f"targets have one or two axes, not {array.ndim}")
        indices = array.reshape(samples, -1) if array.ndim else np.broadcast_to(array.astype(np.int64), (samples, 1))
    if len(shape) == 0 and indices.shape[1] == 1:
        shape = (1,)  # one number per sample: class 0 is that number
    if indices.shape[1] != len(shape):
        dims = " x ".join("?" if d is None else str(d) for d in shape) or "one number"
        raise TargetError(
            f"the output '{value.name}' has {len(shape)} axes besides the batch ({dims}), the target {indices.shape[1]}",
            "Give a tuple with one index per axis.",
        )
    if not all(isinstance(d, int) for d in shape[1:]):
        raise TargetError(f"the size of output '{value.name}' is not known before it runs: {shape}")
    for axis, size in enumerate(shape):
        worst = indices[:, axis]
        if worst.min(initial=0) < 0 or (isinstance(size, int) and worst.max(initial=0) >= size):
            bad = int(worst[(worst < 0) | (worst >= (size if isinstance(size, int) else np.inf))][0])
            where = f" on axis {axis}" if len(shape) > 1 else ""
            limit = f"0 to {size - 1}" if isinstance(size, int) else "at least 0"
            raise TargetError(f"target {bad} is out of range{where}: the output '{value.name}' takes {limit}")
    strides = np.cumprod([1, *[int(d) for d in reversed(shape[1:])]])[::-1]  # type: ignore[arg-type]
    positions: np.ndarray[Any, Any] = (indices.astype(np.int64) * strides).sum(axis=1)
    return positions.astype(np.int64)


def unravel(flat: np.ndarray[Any, Any], value: Value) -> np.ndarray[Any, Any]:
    """Positions in the flattened output -> what a user calls the target: (N,) classes, or (N, axes) indices."""
    shape = (value.shape or ())[1:]
    if len(shape) < 2 or not all(isinstance(d, int) for d in shape):
        return flat
    return np.stack(np.unravel_index(flat, tuple(d for d in shape if isinstance(d, int))), axis=-1)
