"""A session fed in chunks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from onnxplain.errors import InputError, RunError
from onnxplain.graph.axes import BatchAxes
from onnxplain.runtime.batching import chunks
from onnxplain.runtime.device import Given, Tensor
from onnxplain.runtime.session import Session

Array = np.ndarray[Any, Any]
Progress = Callable[[int, int], None]


@dataclass
class Chunked:
    """A session fed in chunks; arrays go in and come out with the batch in front, tensors as the session takes them.

    Attributes
    ----------
    axes
        Inputs and outputs with a batch axis -> which it is in the session; other inputs are the same for all samples.
    chunk
        Samples per run; becomes 1 when the model turns out to take only one.
    exactly
        Whether every run must have exactly ``chunk`` samples (the model's batch size is fixed): the last is filled up.
    at_once
        Runs that are under way at a time.
    """

    session: Session
    axes: BatchAxes
    chunk: int
    exactly: bool
    at_once: int = 1

    def run(
        self,
        feeds: Mapping[str, Given],
        count: int,
        outputs: Sequence[str],
        progress: Progress | None = None,
        into: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Array]:
        """Run ``count`` samples; the chunks' outputs are joined along the batch.

        Raises
        ------
        InputError
            Tensors that would have to be rearranged or filled up, which nobody does on their device.
        RunError
            The session fails.
        """
        into = into or {}
        try:
            return self._chunks(feeds, count, outputs, progress, into)
        except RunError:
            if self.exactly or min(count, self.chunk) == 1:
                raise
            # Some models take one sample only, whatever they declare: a state without a batch axis, a fixed Reshape.
            results = replace(self, chunk=1)._chunks(feeds, count, outputs, progress, into)
            self.chunk = 1
            return results

    def _chunks(
        self,
        feeds: Mapping[str, Given],
        count: int,
        outputs: Sequence[str],
        progress: Progress | None,
        into: Mapping[str, Tensor],
    ) -> dict[str, Array]:
        parts, joined = list(chunks(count, self.chunk)), []
        with _in_order(partial(self._chunk, feeds, outputs, into), parts, self.at_once) as results:
            for part, result in zip(parts, results, strict=True):
                joined.append(result)
                if progress:
                    progress(part.stop, count)
        return {n: np.concatenate([p[n] for p in joined]) for n in outputs} if len(joined) > 1 else joined[0]

    def _chunk(
        self, feeds: Mapping[str, Given], outputs: Sequence[str], into: Mapping[str, Tensor], part: slice
    ) -> dict[str, Array]:
        rows = np.arange(part.start, part.stop)
        size = len(rows)
        if self.exactly:
            rows = rows[np.minimum(np.arange(self.chunk), size - 1)]
        given = {n: self._fed(n, a, rows) for n, a in feeds.items()}
        results = self.session.run(given, outputs, {n: self._rows(n, t, rows) for n, t in into.items()})
        results = {n: np.moveaxis(a, self.axes.get(n, 0), 0) if a.ndim else a[None] for n, a in results.items()}
        if size < len(rows):
            results = {n: a[: len(a) * size // len(rows)] for n, a in results.items()}
        return results

    def _rows(self, name: str, tensor: Tensor, rows: Array) -> Tensor:
        axis = self.axes.get(name, 0)
        if len(rows) == tensor.shape[axis]:
            return tensor
        if axis or len(np.unique(rows)) < len(rows):
            what = f"the samples of '{name}' go through the model {self.chunk} at a time"
            why = (
                "those of a tensor can only be taken apart along the first axis"
                if axis
                else "the last ones are too few"
            )
            raise InputError(f"{what}, and {why}", "Give an array, or another number of samples.")
        return tensor.rows(slice(int(rows[0]), int(rows[-1]) + 1))

    def _fed(self, name: str, array: Given, rows: Array) -> Given:
        if name not in self.axes:
            return array
        if isinstance(array, Tensor):
            return self._rows(name, array, rows)
        part = array if len(rows) == len(array) and not self.exactly else array[rows]
        return np.moveaxis(part, 0, self.axes[name])


@contextmanager
def _in_order(
    run: Callable[[slice], dict[str, Array]], parts: Sequence[slice], at_once: int
) -> Iterator[Iterator[dict[str, Array]]]:
    """Results of the parts, one after the other; some run at once, and none any more where the block is left."""
    if at_once == 1 or len(parts) == 1:
        yield map(run, parts)
        return
    with ThreadPoolExecutor(at_once) as pool:
        futures = [pool.submit(run, part) for part in parts]
        try:
            yield (future.result() for future in futures)
        finally:
            for future in futures:
                future.cancel()
