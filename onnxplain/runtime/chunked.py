"""`Chunked`: a session that runs a batch in chunks that fit into memory."""

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
from onnxplain.runtime.device import AnyTensor, Tensor
from onnxplain.runtime.session import Session

Array = np.ndarray[Any, Any]
Progress = Callable[[int, int], None]


@dataclass
class Chunked:
    """A session that runs a batch in chunks.

    Arrays have the batch axis in front on the way in and out, tensors on a device have it in the session's place.

    Attributes
    ----------
    session
        The session.
    axes
        Batch axes of the inputs and outputs in the session; other inputs are the same for all samples.
    chunk
        Samples per run; becomes 1 when the model turns out to take only one.
    exactly
        Whether every run must have exactly ``chunk`` samples, because the model's batch size is fixed. The last chunk
        is then padded with copies of its last sample.
    at_once
        Number of runs at a time.
    """

    session: Session
    axes: BatchAxes
    chunk: int
    exactly: bool
    at_once: int = 1

    def run(
        self,
        feeds: Mapping[str, AnyTensor],
        count: int,
        outputs: Sequence[str],
        progress: Progress | None = None,
        into: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Array]:
        """Run a batch; the outputs of the chunks are joined along the batch axis.

        Parameters
        ----------
        feeds
            Inputs by name.
        count
            Number of samples.
        outputs
            Names of the outputs to return.
        progress
            Called with (done, count) samples after each chunk.
        into
            Tensors on the device into which further outputs are written, by name of the output.

        Raises
        ------
        InputError
            A tensor would have to be rearranged or padded, which is done for arrays only.
        RunError
            The session fails.
        """
        into = into or {}
        try:
            return self._chunks(feeds, count, outputs, progress, into)
        except RunError:
            if self.exactly or min(count, self.chunk) == 1:
                raise
            # Some models take one sample only, whatever they declare: a state has no batch axis, or a Reshape is fixed.
            results = replace(self, chunk=1)._chunks(feeds, count, outputs, progress, into)
            self.chunk = 1
            return results

    def _chunks(
        self,
        feeds: Mapping[str, AnyTensor],
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
        self, feeds: Mapping[str, AnyTensor], outputs: Sequence[str], into: Mapping[str, Tensor], part: slice
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
            what = f"the model takes {self.chunk} samples of '{name}' at a time"
            why = "a tensor can be split along its first axis only" if axis else "too few are left for the last run"
            raise InputError(f"{what}, and {why}", "Give an array, or another number of samples.")
        return tensor.rows(slice(int(rows[0]), int(rows[-1]) + 1))

    def _fed(self, name: str, array: AnyTensor, rows: Array) -> AnyTensor:
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
    """Results of the parts, in order; ``at_once`` of them run at a time, and leaving the block cancels the others."""
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
