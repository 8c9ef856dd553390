"""`Batcher`: joins the requests of concurrent callers into batches."""

from __future__ import annotations

import atexit
import os
import threading
import time
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field
from types import TracebackType

from onnxplain.api import Explainer, Inputs
from onnxplain.arguments import number, whole_number
from onnxplain.errors import BusyError, OnnxplainError
from onnxplain.execution.requests import Request
from onnxplain.questions.quantities import Quantity, Target
from onnxplain.result import Attribution


@dataclass(frozen=True, eq=False)
class _Waiting:
    """A queued request.

    Attributes
    ----------
    request
        The checked inputs and target.
    future
        Gets the answer or the error.
    since
        Time of arrival, in seconds of `time.monotonic`.
    """

    request: Request
    future: Future[Attribution] = field(default_factory=Future)
    since: float = field(default_factory=time.monotonic)


class Batcher:
    """Joins the requests of concurrent callers of an `Explainer` into batches and runs them in a thread of its own.

    Requests with the same kind of target for inputs of the same sizes are joined; all others run alone, in order of
    arrival. Each caller gets the same result, or the same error, as from calling the explainer directly.

    A batcher belongs to the process that created it; calls from a forked process raise `BusyError`. It is a context
    manager: leaving the block closes the batcher, and cancels waiting requests if an exception ended the block.

    Parameters
    ----------
    explainer
        The explainer that answers the requests. It can still be called directly.
    max_batch
        Maximum number of samples in a joined batch. A larger request runs alone.
    max_wait
        Seconds that a request waits for others to join it. With 0, only requests that are already waiting when the
        thread becomes free are joined.
    max_queue
        Maximum number of waiting requests; see ``timeout`` in `submit`.

    Raises
    ------
    OptionError
        An option is invalid.

    Examples
    --------
    >>> with ox.Batcher(ox.Explainer("model.onnx", "lrp"), max_batch=16) as batcher:  # doctest: +SKIP
    ...     futures = [batcher.submit(x) for x in images]
    ...     results = [future.result() for future in futures]
    """

    def __init__(
        self, explainer: Explainer, *, max_batch: int = 8, max_wait: float = 0.002, max_queue: int = 128
    ) -> None:
        whole_number(1).check("max_batch", max_batch)
        whole_number(1).check("max_queue", max_queue)
        number(least=0).check("max_wait", max_wait)
        self.explainer = explainer
        self._max_batch, self._max_wait, self._max_queue = max_batch, max_wait, max_queue
        self._waiting: deque[_Waiting] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._process = os.getpid()
        # A daemon thread: at exit, Python joins ordinary threads before atexit calls `close`, and would hang.
        self._thread = threading.Thread(target=self._work, name="onnxplain-batcher", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    def submit(self, x: Inputs, target: Target | Quantity = None, timeout: float | None = 0) -> Future[Attribution]:
        """Queue a request for an explanation.

        Parameters
        ----------
        x, target
            As in `Explainer.__call__`. They are checked and copied before this call returns.
        timeout
            Seconds to wait for a free place in a full queue; None waits without limit.

        Returns
        -------
        Future of Attribution
            It can be cancelled while the request waits.

        Raises
        ------
        BusyError
            The queue is full, the batcher is closed, or this process is a fork of the one that created it.
        InputError, TargetError, OptionError
            The request is invalid.
        """
        self._check_process()
        waiting = _Waiting(self.explainer.check(x, target).copy())
        with self._changed:
            free = self._changed.wait_for(lambda: self._closed or self._has_place(), timeout)
            if self._closed:
                raise BusyError("the batcher is closed")
            if not free:
                why = f"the queue is full: {self._max_queue} requests wait"
                raise BusyError(why, "Try again later, wait with timeout=, or allow more with max_queue=.")
            self._waiting.append(waiting)
            self._changed.notify_all()
        return waiting.future

    def __call__(self, x: Inputs, target: Target | Quantity = None, timeout: float | None = None) -> Attribution:
        """Queue a request and wait for its explanation; parameters and errors are those of `submit`."""
        return self.submit(x, target, timeout).result()

    def warm(self, x: Inputs, target: Target | Quantity = None) -> None:
        """Explain an example and discard the result, so that the first request does not wait for compilation."""
        self.explainer(x, target)

    def close(self, cancel: bool = False) -> None:
        """Refuse new requests, answer the waiting ones (or cancel them), and end the thread.

        Closing twice is harmless; closing in a forked process does nothing.

        Parameters
        ----------
        cancel
            Cancel waiting requests instead of answering them.
        """
        if self._process != os.getpid():
            return  # the thread lives in another process
        with self._changed:
            self._closed = True
            cancelled = list(self._waiting) if cancel else []
            self._changed.notify_all()
        for waiting in cancelled:
            waiting.future.cancel()
        self._thread.join()
        atexit.unregister(self.close)

    def __enter__(self) -> Batcher:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        self.close(cancel=kind is not None)

    def _check_process(self) -> None:
        if self._process != os.getpid():
            raise BusyError(
                f"this batcher belongs to process {self._process}, and this process is a fork of it",
                "Create a batcher in each process.",
            )

    def _has_place(self) -> bool:
        if len(self._waiting) >= self._max_queue:
            self._waiting = deque(w for w in self._waiting if not w.future.cancelled())
        return len(self._waiting) < self._max_queue

    def _work(self) -> None:
        while batch := self._next():
            running = [w for w in batch if w.future.set_running_or_notify_cancel()]
            if running:
                self._answer(running)

    def _next(self) -> list[_Waiting]:
        """Wait for requests and take the next batch; an empty list once `close` was called and all are answered."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            if not self._waiting:
                return []
            end = self._waiting[0].since + self._max_wait
            self._changed.wait_for(lambda: self._closed or self._is_full(), end - time.monotonic())
            batch = self._joined()
            self._waiting = deque(w for w in self._waiting if w not in batch)
            self._changed.notify_all()
            return batch

    def _is_full(self) -> bool:
        return sum(w.request.samples for w in self._joined()) >= self._max_batch

    def _joined(self) -> list[_Waiting]:
        """Return the oldest request and, in order of arrival, those that join it and fit into ``max_batch``."""
        batch: list[_Waiting] = []
        samples = 0
        for waiting in self._waiting:
            request = waiting.request
            if not batch or (samples + request.samples <= self._max_batch and request.joins(batch[0].request)):
                batch.append(waiting)
                samples += request.samples
        return batch

    def _answer(self, batch: list[_Waiting]) -> None:
        requests = [w.request for w in batch]
        try:
            answers: Iterable[Attribution] = self.explainer.answer(requests)
        except BaseException as error:
            if len(batch) > 1 and isinstance(error, OnnxplainError):
                for waiting in batch:  # one request may cause the error of all: run each alone for its own result
                    self._answer([waiting])
                return
            for waiting in batch:
                waiting.future.set_exception(error)
            return
        for waiting, answer in zip(batch, answers, strict=True):
            waiting.future.set_result(answer)
