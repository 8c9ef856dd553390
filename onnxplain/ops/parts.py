"""Sums of cotangents of a tensor that is read in parts: by Slice or Gather, or step by step.

The cotangent of each part has zeros around it. The sum of parts that lie side by side is written as a Concat.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from onnxplain.graph.var import Var, concat
from onnxplain.ops.index import pad
from onnxplain.ops.table import Cotangent


@dataclass(frozen=True)
class Part:
    """A cotangent that is zero except in a range of one axis.

    Attributes
    ----------
    whole
        The cotangent, zeros included.
    inner
        The part in the range.
    axis, start, end
        The axis, and the range along it.
    """

    whole: Var
    inner: Var
    axis: int
    start: int
    end: int

    @classmethod
    def of(cls, ct: Var) -> Part | None:
        """The part around which a Pad with constant widths has put zeros; None if ``ct`` has another producer."""
        emitter, node = ct.emitter, ct.emitter.producer(ct.name)
        if node is None or node.op != "Pad" or node.attrs["mode"] != "constant" or len(node.inputs) != 2:
            return None
        inner, widths = map(emitter.var, node.inputs)
        if widths.value is None or (widths.value < 0).any():
            return None
        before, after = widths.value.reshape(2, -1)
        axes = np.flatnonzero(before + after).tolist()
        size = inner.shape[axes[0]] if len(axes) == 1 and inner.shape else None
        start = int(before[axes[0]]) if axes else 0
        return cls(ct, inner, axes[0], start, start + size) if isinstance(size, int) else None


def joined(parts: Iterable[Part]) -> list[Var]:
    """Join parts that lie side by side; the sum of the results is the sum of all parts."""
    runs: list[list[Part]] = []
    for part in sorted(parts, key=lambda part: (part.axis, part.start)):
        before = (run for run in runs if (run[-1].axis, run[-1].end) == (part.axis, part.start))
        run = next(before, None)
        runs.append([part]) if run is None else run.append(part)
    return [_written(run) for run in runs]


def _written(run: list[Part]) -> Var:
    """Write a run of parts that lie side by side as one cotangent."""
    first, whole = run[0], run[0].whole
    if len(run) == 1:
        return whole
    row, emitter = concat([part.inner for part in run], first.axis), whole.emitter
    size = whole.shape[first.axis] if whole.shape else None
    if (first.start, run[-1].end) == (0, size):
        return emitter.refine(row, whole.shape)
    begins, ends = ([emitter.ints([0])] * whole.rank for _ in range(2))
    begins[first.axis], ends[first.axis] = emitter.ints([first.start]), whole.size(first.axis) - run[-1].end
    return pad(row, begins, ends, whole.shape)


class Sums(Mapping[str, Var]):
    """Name of a value -> the sum of its cotangents so far; parts are joined when the sum is first read."""

    def __init__(self, arrived: Mapping[str, Var] | Iterable[tuple[str, Var]] = ()) -> None:
        self._sums = dict(arrived)
        self._parts: dict[str, list[Part]] = {}  # name -> parts that are not in the sum yet

    def add(self, name: str, cotangent: Cotangent) -> None:
        """Add a cotangent; None adds nothing."""
        part = None if cotangent is None else Part.of(cotangent)
        if part is not None:
            self._parts.setdefault(name, []).append(part)
        elif cotangent is not None:
            self._sums[name] = self._sums[name] + cotangent if name in self._sums else cotangent

    def __getitem__(self, name: str) -> Var:
        for whole in joined(self._parts.pop(name, ())):
            self._sums[name] = self._sums[name] + whole if name in self._sums else whole
        return self._sums[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._sums.keys() | self._parts.keys())

    def __len__(self) -> int:
        return len(self._sums.keys() | self._parts.keys())
