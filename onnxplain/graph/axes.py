"""Batch axes: which axis of a tensor counts the samples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxplain.graph.ir import BATCH, Dim, Graph, Value, rows_per_sample

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False)
class BatchAxes(Mapping[str, int]):
    """Name of a tensor -> its batch axis; tensors that are missing are the same for all samples.

    Calculations have the batch axis in front. It is moved, as a view, at two borders: in `onnxplain.execution.run`, to
    users, and in `onnxplain.runtime.chunked.Chunked`, to sessions.
    """

    axes: Mapping[str, int]

    @classmethod
    def of(cls, inputs: Sequence[Value]) -> BatchAxes:
        """The batch axes of a model's inputs.

        Inputs with a free batch axis have one; if no input has, those with the smallest first size. All other inputs
        are parameters, the same for all samples.
        """
        free = {v.name: v.shape.index(BATCH) if v.shape else 0 for v in inputs if v.shape is None or BATCH in v.shape}
        fixed = {v.name: v.shape[0] for v in inputs if v.shape and isinstance(v.shape[0], int)}
        return cls(free or {name: 0 for name, size in fixed.items() if size == min(fixed.values())})

    def __getitem__(self, name: str) -> int:
        return self.axes[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.axes)

    def __len__(self) -> int:
        return len(self.axes)

    def to_front(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """Move the batch axis to the front."""
        return {n: np.moveaxis(a, self[n], 0) if n in self else a for n, a in arrays.items()}

    def to_place(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """Move the batch axis from the front to its place."""
        return {n: np.moveaxis(a, 0, self[n]) if n in self else a for n, a in arrays.items()}

    def cut(self, arrays: Mapping[str, Array], samples: slice) -> dict[str, Array]:
        """Take a slice of the samples from arrays with the batch axis in its place."""
        return {n: a[(slice(None),) * self[n] + (samples,)] if n in self else a for n, a in arrays.items()}

    def take(self, arrays: Mapping[str, Array], samples: Any) -> dict[str, Array]:
        """Take some samples, by a slice or their numbers, from arrays with the batch axis in front."""
        return {n: a[samples] if n in self else a for n, a in arrays.items()}

    def count(self, arrays: Mapping[str, Array]) -> int:
        """Number of samples in arrays with the batch axis in front; 1 if none has a batch axis."""
        return next((len(a) for n, a in arrays.items() if n in self), 1)


def rows(value: Value) -> Dim:
    """Size of the first axis; 1 for a scalar, None where the rank is unknown."""
    return None if value.shape is None else value.shape[0] if value.shape else 1


def batch_axis(graph: Graph, name: str) -> int | None:
    """The batch axis of a tensor; None if it has none.

    In a model for one sample at a time, any axis of size 1 serves. A first axis of unknown size counts as the batch
    axis, unless the model is fixed to some number of samples: the size may then be another number.
    """
    value = graph.value(name)
    axes = BatchAxes.of(graph.inputs)
    batch = next((v.shape[axes[v.name]] for v in graph.inputs if v.name in axes and v.shape), BATCH)
    if value.shape is not None and batch in value.shape and (isinstance(batch, str) or batch == 1):
        return value.shape.index(batch)
    first = rows(value)
    if isinstance(first, int):
        return 0 if first == batch or (first == 1 and batch == BATCH) else None
    return 0 if first is None or (isinstance(batch, str) and not rows_per_sample(first)) else None
