"""`Batcher`: what many callers ask at the same time is answered in common batches."""

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
from onnxplain.arguments import is_count
from onnxplain.errors import BusyError, OnnxplainError, OptionError
from onnxplain.execution.requests import Request
from onnxplain.questions.quantities import Quantity, Target
from onnxplain.result import Attribution


@dataclass(frozen=True, eq=False)
class _Waiting:
    request: Request
    future: Future[Attribution] = field(default_factory=Future)
    since: float = field(default_factory=time.monotonic)


class Batcher:
    """Joins what concurrent callers ask of an `Explainer` into batches, which a thread of its own runs.

    Requests are joined that ask the same kind of thing about inputs of the same sizes; all others run on their own, in
    the order of arrival. Each caller gets what a call of the explainer with its own samples gives, and its own errors.

    A batcher belongs to the process that made it: it does not survive a fork, and says so. It is a context manager;
    leaving it closes it, and cancels what still waits if an exception is the reason.

    Parameters
    ----------
    explainer
        What answers. It can be called directly all the same.
    max_batch
        Samples that are joined at most; a larger request runs on its own.
    max_wait
        Seconds that a request waits for others to join it. 0: what waits already when the thread gets free is joined.
    max_queue
        Requests that may wait; see ``timeout`` in `submit`.

    Raises
    ------
    OptionError
        A bad value.

    Examples
    --------
    >>> with ox.Batcher(ox.Explainer("model.onnx", "lrp"), max_batch=16) as batcher:  # doctest: +SKIP
    ...     futures = [batcher.submit(x) for x in images]
    ...     results = [future.result() for future in futures]
    """

    def __init__(
        self, explainer: Explainer, *, max_batch: int = 8, max_wait: float = 0.002, max_queue: int = 128
    ) -> None:
        for name, value in (("max_batch", max_batch), ("max_queue", max_queue)):
            if not is_count(value, 1):
                raise OptionError(f"{name} must be a whole number of at least 1, not {value!r}")
        if isinstance(max_wait, bool) or not isinstance(max_wait, int | float) or not 0 <= max_wait < float("inf"):
            raise OptionError(f"max_wait must be a finite number of seconds of at least 0, not {max_wait!r}")
        self.explainer = explainer
        self._max_batch, self._max_wait, self._max_queue = max_batch, max_wait, max_queue
        self._waiting: deque[_Waiting] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._process = os.getpid()
        # At exit, Python waits for ordinary threads before it calls what would close this one.
        self._thread = threading.Thread(target=self._work, name="onnxplain-batcher", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    def submit(self, x: Inputs, target: Target | Quantity = None, timeout: float | None = 0) -> Future[Attribution]:
        """Ask for an explanation; the future may be cancelled as long as it waits.

        Parameters
        ----------
        x, target
            See `Explainer.__call__`; checked here, at once, and copied.
        timeout
            Seconds to wait for a place in a full queue; None: for ever.

        Raises
        ------
        BusyError
            The queue is full, or the batcher is closed.
        InputError, TargetError, OptionError
            What was asked cannot be answered.
        """
        self._check_process()
        waiting = _Waiting(self.explainer.check(x, target).copy())
        with self._changed:
            free = self._changed.wait_for(lambda: self._closed or self._has_place(), timeout)
            if self._closed:
                raise BusyError("the batcher is closed")
            if not free:
                why = f"the queue is full: {self._max_queue} requests wait"
                raise BusyError(why, "Ask later, wait with timeout=, or allow for more with max_queue=.")
            self._waiting.append(waiting)
            self._changed.notify_all()
        return waiting.future

    def __call__(self, x: Inputs, target: Target | Quantity = None, timeout: float | None = None) -> Attribution:
        """Ask for an explanation and wait for it; see `submit`."""
        return self.submit(x, target, timeout).result()

    def warm(self, x: Inputs, target: Target | Quantity = None) -> None:
        """Explain an example and forget it, so that the first request does not wait for compilation."""
        self.explainer(x, target)

    def close(self, cancel: bool = False) -> None:
        """Take no more requests, answer or cancel those that wait, and end the thread. More calls do no harm."""
        if self._process != os.getpid():
            return  # the thread lives in another process
        with self._changed:
            self._closed = True
            left = list(self._waiting) if cancel else []
            self._changed.notify_all()
        for waiting in left:
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
                f"this batcher works in process {self._process}, of which this one is a fork",
                "Make a batcher in each process.",
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
        """Wait for requests and take those that are joined next; none once everything is answered after `close`."""
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
        """The oldest request, and others of its kind, in order, for which there is room."""
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
                for waiting in batch:  # one may fail, or not go with others: each gets its own answer or error
                    self._answer([waiting])
                return
            for waiting in batch:
                waiting.future.set_exception(error)
            return
        for waiting, answer in zip(batch, answers, strict=True):
            waiting.future.set_result(answer)
