"""A cache in memory for results that take long to make, of limited size."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

Key = TypeVar("Key")
Made = TypeVar("Made")

KEPT = 8  # results, such as the graphs and sessions for one size of images or texts; each may hold the weights


class Recent(Generic[Key, Made]):
    """Calls ``make(key)`` once per key, and keeps the `KEPT` most recently used results; thread-safe."""

    def __init__(self, make: Callable[[Key], Made]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._made: dict[Key, Made] = {}

    def __call__(self, key: Key) -> Made:
        """Return the result for ``key``, made now unless it is kept."""
        with self._lock:
            made = self._made.pop(key) if key in self._made else self._make(key)
            self._made[key] = made
            if len(self._made) > KEPT:
                del self._made[next(iter(self._made))]
            return made

    def newest(self) -> Made | None:
        """Return the most recently used result; None if there is none."""
        with self._lock:
            return next(reversed(self._made.values()), None)
