"""Quantities: what is explained, where that is not just one class."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod
from types import EllipsisType
from typing import Any, Literal, get_args

import numpy as np

from onnxplain.arguments import one_of
from onnxplain.errors import OptionError, TargetError
from onnxplain.graph.ir import Value
from onnxplain.graph.var import Var
from onnxplain.questions.quantities.derived import Derived, Expressed, Greatest, LogProbabilities
from onnxplain.questions.quantities.indices import Array, Names, Target, resolve

Element = Target | tuple[int | slice | EllipsisType, ...]  # a target, or an index that may stand for several elements


@dataclass(frozen=True)
class ExplainedTensor:
    """The tensor whose elements a quantity adds up; programs are compiled once for each.

    Attributes
    ----------
    tensor
        Name of an internal tensor; None: the model's output.
    output
        Name of the output; None: the explainer's.
    whole
        Whether indices cover all axes of the tensor, so that all of it belongs to one sample.
    probability
        Whether a final Softmax or Sigmoid is included; None: as the explainer says.
    derived
        Calculates the tensor from others of the model; None: the model calculates it.
    """

    tensor: str | None = None
    output: str | None = None
    whole: bool = False
    probability: bool | None = None
    derived: Derived | None = None


@dataclass(frozen=True, eq=False)
class Quantity:
    """A weighted sum of elements of one tensor; made by `Class` and the like, and by ``+``, ``-`` and ``*`` on these.

    Attributes
    ----------
    terms
        Pairs of a weight (a number, or one per sample) and an element (a target, see `Explainer.__call__`; in place of
        an index, a slice stands for several elements along that axis, and ... for all axes that are left).
    explained
        The tensor whose elements these are.
    """

    terms: tuple[tuple[Any, Any], ...]
    explained: ExplainedTensor = ExplainedTensor()

    def __add__(self, other: Quantity) -> Quantity:
        if not isinstance(other, Quantity):
            return NotImplemented
        if self.explained != other.explained:
            hint = "ox.Expression(lambda a, b: ..., 'one', 'other') adds up elements of several."
            raise OptionError("a sum of quantities takes elements of one and the same tensor", hint)
        return replace(self, terms=(*self.terms, *other.terms))

    def __mul__(self, factor: Any) -> Quantity:
        weight = np.asarray(factor)
        if weight.dtype.kind not in "iuf" or weight.ndim > 1 or not np.isfinite(weight).all():
            raise OptionError(f"the weight of a quantity is a number, or one per sample, not {factor!r}")
        return replace(self, terms=tuple((w * weight, element) for w, element in self.terms))

    __rmul__ = __mul__
    __array_ufunc__ = None  # array * Quantity is Quantity.__rmul__

    def __neg__(self) -> Quantity:
        return self * -1

    def __sub__(self, other: Quantity) -> Quantity:
        return self + -other if isinstance(other, Quantity) else NotImplemented

    def resolve(self, value: Value, axis: int | None, samples: int, names: Names = ()) -> tuple[Array, Array]:
        """Positions in the flattened tensor and their weights, both of shape (samples, K).

        Raises
        ------
        TargetError
            No such element.
        OptionError
            The wrong number of weights.
        """
        positions, weights = [], []
        for weight, element in self.terms:
            if np.ndim(weight) and len(weight) != samples:
                raise OptionError(f"{len(weight)} weights for {samples} samples; give one for all, or one each")
            found = _positions(element, value, axis, samples, names)
            positions.append(found)
            weights.append(np.broadcast_to(np.asarray(weight, value.dtype).reshape(-1, 1), found.shape))
        return np.concatenate(positions, axis=1), np.concatenate(weights, axis=1)


def resolved(
    target: Target | Quantity, value: Value, axis: int | None, samples: int, names: Names = ()
) -> tuple[Array | None, Array | None]:
    """Positions in the flattened tensor and their weights, of a target or of a quantity.

    Returns
    -------
    positions
        As `Quantity.resolve` returns them for a quantity; as `onnxplain.questions.quantities.indices.resolve` does for
        a target, which may also be labels, or None for the labels that the model gives.
    weights
        None for a target.

    Raises
    ------
    TargetError, OptionError
        There is no such element, or the number of targets or weights is wrong.
    """
    if isinstance(target, Quantity):
        return target.resolve(value, axis, samples, names)
    return resolve(target, value, axis, samples, names), None


def _positions(element: Any, value: Value, axis: int | None, samples: int, names: Names) -> Array:
    """Positions of the elements that an index stands for, shape (samples, K)."""
    if not value.is_float:
        raise TargetError(f"'{value.name}' holds {value.dtype}, of which there is no weighted sum")
    if not isinstance(element, tuple) or not any(isinstance(i, slice | EllipsisType) for i in element):
        found = resolve(element, value, axis, samples, names)
        assert found is not None
        return found[:, None]
    dims = [d for k, d in enumerate(value.shape or (None,)) if k != axis]
    sizes = [d for d in dims if isinstance(d, int)]
    if len(sizes) < len(dims):
        raise TargetError(f"slices need known sizes, and there is {value}")
    grid = np.arange(prod(sizes)).reshape(sizes)
    try:
        chosen = grid[element].ravel()
    except IndexError as error:
        raise TargetError(f"no element {element} in '{value.name}': {error}") from None
    if not chosen.size:
        raise TargetError(f"the index {element} of '{value.name}' holds no element")
    return np.broadcast_to(chosen, (samples, chosen.size))


def Class(target: Element = None) -> Quantity:
    """The score of a class (None: the predicted one), or any element of the output by index, or several."""
    return Quantity(((1.0, target),))


def Difference(one: Element, other: Element) -> Quantity:
    """Score of one class minus that of another: what makes it this rather than that."""
    return Class(one) - Class(other)


def Probability(target: Target = None) -> Quantity:
    """The probability of a class: with the final Softmax or Sigmoid."""
    return Quantity(((1.0, target),), ExplainedTensor(probability=True))


def LogProbability(target: Target = None) -> Quantity:
    """The logarithm of a class's probability: less what raises all classes alike than their scores.

    Calculated from the values before the final Softmax or Sigmoid. Where the model has neither, but scores of shape
    (N, classes), the probabilities are those of a Softmax.
    """
    return Quantity(((1.0, target),), ExplainedTensor(derived=LogProbabilities()))


def Expression(function: Callable[..., Var], *tensors: str, index: Target = None) -> Quantity:
    """What a function makes of tensors of the model: it becomes part of the graph, and of exported explainers.

    >>> def margin(scores):  # the highest score, less the mean of all
    ...     return op("ReduceMax", scores, [1], keepdims=0) - op("ReduceMean", scores, [1], keepdims=0)
    >>> quantity = Expression(margin)

    Parameters
    ----------
    function
        Called with one tensor per name. Tensors support ``+ - * / **``, comparisons and abs, also with numbers and
        arrays; `onnxplain.op` writes any other operator. A condition is ``onnxplain.op("Where", ...)``: ``if``, ``==``
        and loops over tensors raise a `TensorError`. Returns a tensor whose first axis is the batch. Graphs are
        compiled once per function, so keep the function for later calls.
    tensors
        Names of outputs, inputs or internal tensors; none: the explained output, as the explainer says.
    index
        Which element of what the function returns: see `Explainer.__call__`. A tensor of shape (N,) has only one;
        None: the greatest.
    """
    return Quantity(((1.0, index),), ExplainedTensor(derived=Expressed(function, tensors)))


def Output(name: str, index: int | tuple[int, ...]) -> Quantity:
    """One element of a whole output, for outputs that are no row per sample; samples go one by one."""
    return Quantity(((1.0, index),), ExplainedTensor(output=name, whole=True))


def Neuron(tensor: str, index: Element) -> Quantity:
    """One element of an internal tensor, by its index without the batch axis; or several, by an index with slices."""
    return Quantity(((1.0, index),), ExplainedTensor(tensor))


Reduction = Literal["sum", "max"]
"""What becomes of the elements of a channel."""


def Channel(tensor: str, channel: int, reduce: Reduction = "sum") -> Quantity:
    """A channel (axis 1) of an internal tensor of pictures, volumes or signals: its sum, or its max."""
    one_of(get_args(Reduction)).check("reduction", reduce)
    if reduce == "max":
        return Quantity(((1.0, 0),), ExplainedTensor(derived=Greatest(tensor, channel)))
    return Quantity(((1.0, (channel, ...)),), ExplainedTensor(tensor))
