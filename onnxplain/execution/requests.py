"""`Request`: checked samples and targets for an `Explainer`; requests are joined, and their answer separated."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from onnxplain.canonize.canonical import Sizes
from onnxplain.execution.answer import Answer
from onnxplain.execution.runner import Runner
from onnxplain.graph.axes import BatchAxes
from onnxplain.questions.quantities import ExplainedTensor, Quantity, Target
from onnxplain.runtime.device import Tensor

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Specialization:
    """Everything besides the model and the method that a program depends on.

    Attributes
    ----------
    sizes
        Pairs of a free dimension other than the batch, and its size, by name.
    tensor
        The tensor whose elements a quantity adds up; None: one element of the explainer's output is explained.
    """

    sizes: Sizes = ()
    tensor: ExplainedTensor | None = None

    @classmethod
    def of(cls, sizes: Mapping[str, int], target: Target | Quantity) -> Specialization:
        """The specialization for the sizes of an input, and for a target or a quantity."""
        return cls(tuple(sorted(sizes.items())), target.explained if isinstance(target, Quantity) else None)


@dataclass(frozen=True, eq=False)
class Request:
    """Checked samples, with a target for each.

    Attributes
    ----------
    feeds
        Input name -> array, of the dtype and with the axes that the model declares.
    samples
        Number of samples.
    specialization
        Specialization of the program that answers the request.
    target, weights
        Arrays for the inputs of `quantities.target_inputs`, one row per sample. A target of None: the labels that the
        model gives. Weights of None: there are no weighted sums.
    axes
        Name of each input with a batch axis -> that axis.
    joinable
        Whether the answer does not depend on the other samples of the batch.
    tensors
        Inputs on a GPU, which are not in ``feeds``; a request that has any joins no other.
    """

    feeds: Mapping[str, Array]
    samples: int
    specialization: Specialization
    target: Array | None
    weights: Array | None
    axes: BatchAxes
    joinable: bool
    tensors: Mapping[str, Tensor] = field(default_factory=dict)

    def copy(self) -> Request:
        """The request with copies of its arrays and tensors, all on the host."""
        arrays = {**self.feeds, **{name: tensor.numpy() for name, tensor in self.tensors.items()}}
        return replace(self, feeds={name: array.copy() for name, array in arrays.items()}, tensors={})

    def joins(self, other: Request) -> bool:
        """Whether both can be answered in one batch."""
        return (
            self.joinable
            and other.joinable
            and not self.tensors
            and not other.tensors
            and self.specialization == other.specialization
            and not self.axes.keys().isdisjoint(self.feeds)
            and _row(self.target) == _row(other.target)
            and _row(self.weights) == _row(other.weights)
            and all(self._fits(name, other.feeds[name]) for name in self.feeds)
        )

    def _fits(self, name: str, other: Array) -> bool:
        """Whether an input can be stacked with that of another request, or, without a batch axis, equals it."""
        array, axis = self.feeds[name], self.axes.get(name)
        if axis is None:
            return np.array_equal(array, other)
        sizes = [np.delete(shape, axis).tolist() for shape in (array.shape, other.shape)]
        return array.dtype == other.dtype and sizes[0] == sizes[1]


@dataclass(frozen=True)
class PreparedBatch:
    """A request with the runner that answers it.

    Attributes
    ----------
    specialization
        The specialization of the runner.
    runner
        The program and its sessions.
    feeds
        All inputs besides the target that are on the host, by name, with the weights of a weighted sum.
    target
        The target, as `onnxplain.execution.run` takes it.
    tensors
        The inputs that stay on the GPU, where the runner calculates.
    """

    specialization: Specialization
    runner: Runner
    feeds: dict[str, Array]
    target: Array | None
    tensors: Mapping[str, Tensor]

    @classmethod
    def of(cls, request: Request, runner: Runner) -> PreparedBatch:
        """The request as it is."""
        weights = {} if request.weights is None else {str(runner.names.weights): request.weights}
        return cls(request.specialization, runner, {**request.feeds, **weights}, request.target, request.tensors)

    def on_host(self) -> PreparedBatch:
        """Copy the tensors to the host."""
        copies = {name: tensor.numpy() for name, tensor in self.tensors.items()}
        return replace(self, feeds={**self.feeds, **copies}, tensors={})


def _row(array: Array | None) -> Any:
    """Dtype and shape of a row, which arrays must have in common to be stacked."""
    return None if array is None else (array.dtype, array.shape[1:])


def joined(requests: Sequence[Request]) -> Request:
    """One request with all samples of requests that join each other."""
    first, *others = requests
    if not others:
        return first
    feeds = {
        name: np.concatenate([r.feeds[name] for r in requests], first.axes[name]) if name in first.axes else array
        for name, array in first.feeds.items()
    }
    target, weights = _stacked([r.target for r in requests]), _stacked([r.weights for r in requests])
    return replace(first, feeds=feeds, samples=sum(r.samples for r in requests), target=target, weights=weights)


def _stacked(rows: Sequence[Array | None]) -> Array | None:
    arrays = [array for array in rows if array is not None]
    return np.concatenate(arrays) if arrays else None


def separated(answer: Answer, requests: Sequence[Request], axes: BatchAxes) -> Iterator[Answer]:
    """Answer to each of the requests, from the answer to the `joined` one."""
    start = 0
    for request in requests:
        rows = slice(start, start + request.samples)
        start = rows.stop
        values, errors = axes.cut(answer.attributions, rows), axes.cut(answer.errors, rows)
        residual, copies = (None if column is None else column[rows] for column in (answer.residual, answer.copies))
        yield Answer(values, answer.target[rows], answer.score[rows], residual, errors, copies)
