"""Quantities: weighted sums of elements, and other values of the model, that can be explained instead of one class."""

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
    """A weighted sum of elements of one tensor.

    `Class`, `Difference` and the other functions here make quantities; ``+``, ``-`` and ``*`` combine them, with
    numbers, or arrays of one number per sample.

    Attributes
    ----------
    terms : tuple of (weight, element)
        A weight is a number, or one per sample. An element is a target (see `Explainer.__call__`); in an index, a slice
        stands for several elements along its axis, and ``...`` for all axes that are left.
    explained : ExplainedTensor
        The tensor that has the elements.
    """

    terms: tuple[tuple[Any, Any], ...]
    explained: ExplainedTensor = ExplainedTensor()

    def __add__(self, other: Quantity) -> Quantity:
        if not isinstance(other, Quantity):
            return NotImplemented
        if self.explained != other.explained:
            hint = "ox.Expression(lambda a, b: ..., 'one', 'other') adds elements of several tensors."
            raise OptionError("quantities can be added only if their elements are in the same tensor", hint)
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
        """Positions in the flattened tensor, int64, and their weights, both of shape (samples, K).

        Raises
        ------
        TargetError
            There is no such element.
        OptionError
            The number of weights is not the number of samples.
        """
        positions, weights = [], []
        for weight, element in self.terms:
            if np.ndim(weight) and len(weight) != samples:
                raise OptionError(f"{len(weight)} weights for {samples} samples; give one for all, or one each")
            places = _positions(element, value, axis, samples, names)
            positions.append(places)
            weights.append(np.broadcast_to(np.asarray(weight, value.dtype).reshape(-1, 1), places.shape))
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
        raise TargetError(f"'{value.name}' holds {value.dtype}, and a weighted sum needs floats")
    if not isinstance(element, tuple) or not any(isinstance(i, slice | EllipsisType) for i in element):
        found = resolve(element, value, axis, samples, names)
        assert found is not None
        return found[:, None]
    dims = [d for k, d in enumerate(value.shape or (None,)) if k != axis]
    sizes = [d for d in dims if isinstance(d, int)]
    if len(sizes) < len(dims):
        raise TargetError(f"slices need known sizes: {value}")
    grid = np.arange(prod(sizes)).reshape(sizes)
    try:
        chosen = grid[element].ravel()
    except IndexError as error:
        raise TargetError(f"no element {element} in '{value.name}': {error}") from None
    if not chosen.size:
        raise TargetError(f"the index {element} of '{value.name}' holds no element")
    return np.broadcast_to(chosen, (samples, chosen.size))


def Class(target: Element = None) -> Quantity:
    """The score of a class, or of any elements of the output.

    Parameters
    ----------
    target : int, str, tuple or array, optional
        A class, an index, or an index with slices (see `Quantity`), for all samples or one each; None: the predicted
        class.
    """
    return Quantity(((1.0, target),))


def Difference(one: Element, other: Element) -> Quantity:
    """The score of one class minus the score of another: explains why the model prefers one of them.

    Parameters
    ----------
    one, other : int, str, tuple or array
        Classes, as `Class` takes them.
    """
    return Class(one) - Class(other)


def Probability(target: Target = None) -> Quantity:
    """The probability of a class: its score after the final Softmax or Sigmoid.

    Parameters
    ----------
    target : int, str, tuple or array, optional
        A class, for all samples or one each; None: the predicted class.
    """
    return Quantity(((1.0, target),), ExplainedTensor(probability=True))


def LogProbability(target: Target = None) -> Quantity:
    """The logarithm of a class's probability: unlike the score, it does not rise when the scores of all classes rise.

    It is calculated from the values before the final Softmax or Sigmoid. If the model has neither, but scores of shape
    (N, classes), the probabilities are their Softmax.

    Parameters
    ----------
    target : int, str, tuple or array, optional
        A class, for all samples or one each; None: the predicted class.
    """
    return Quantity(((1.0, target),), ExplainedTensor(derived=LogProbabilities()))


def Expression(function: Callable[..., Var], *tensors: str, index: Target = None) -> Quantity:
    """A function of tensors of the model, which becomes part of the graph, and of exported explainers.

    >>> def margin(scores):  # the highest score, less the mean of all
    ...     return op("ReduceMax", scores, [1], keepdims=0) - op("ReduceMean", scores, [1], keepdims=0)
    >>> quantity = Expression(margin)

    Parameters
    ----------
    function : callable
        Called with one tensor per name. Tensors support ``+ - * / **``, comparisons and abs, also with numbers and
        arrays; `onnxplain.op` writes any other operator. A condition is ``onnxplain.op("Where", ...)``: ``if``, ``==``
        and loops over tensors raise a `TensorError`. Returns a tensor whose first axis is the batch. Graphs are
        compiled once per function, so keep the function for later calls.
    *tensors : str
        Names of outputs, inputs or internal tensors; without names, the function takes the explained output.
    index : int, tuple or array, optional
        The element of the result that is explained, as a target (see `Explainer.__call__`). A result of shape (N,) has
        only one; None: the greatest element.
    """
    return Quantity(((1.0, index),), ExplainedTensor(derived=Expressed(function, tensors)))


def Output(name: str, index: int | tuple[int, ...]) -> Quantity:
    """One element of an output without a batch axis; samples are run one by one.

    Parameters
    ----------
    name : str
        Name of the output.
    index : int or tuple of int
        Index into the whole output.
    """
    return Quantity(((1.0, index),), ExplainedTensor(output=name, whole=True))


def Neuron(tensor: str, index: Element) -> Quantity:
    """One element of an internal tensor, or the sum of several.

    Parameters
    ----------
    tensor : str
        Name of the tensor.
    index : int or tuple
        Index into the tensor without its batch axis; slices stand for several elements (see `Quantity`).
    """
    return Quantity(((1.0, index),), ExplainedTensor(tensor))


Reduction = Literal["sum", "max"]
"""What becomes of the elements of a channel."""


def Channel(tensor: str, channel: int, reduce: Reduction = "sum") -> Quantity:
    """One channel of an internal tensor of images, volumes or signals.

    Parameters
    ----------
    tensor : str
        Name of the tensor, whose axis 1 counts the channels.
    channel : int
        Number of the channel.
    reduce : {"sum", "max"}
        Explain the sum or the greatest of the channel's elements.
    """
    one_of(get_args(Reduction)).check("reduction", reduce)
    if reduce == "max":
        return Quantity(((1.0, 0),), ExplainedTensor(derived=Greatest(tensor, channel)))
    return Quantity(((1.0, (channel, ...)),), ExplainedTensor(tensor))
