"""What takes long to make is made once and kept, but not for ever."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

Key = TypeVar("Key")
Made = TypeVar("Made")

KEPT = 8  # sizes of images or texts whose graphs and sessions are kept; each holds the weights


class Recent(Generic[Key, Made]):
    """Calls ``make(key)`` once per key, from however many threads, and keeps the `KEPT` results used last."""

    def __init__(self, make: Callable[[Key], Made]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._made: dict[Key, Made] = {}

    def __call__(self, key: Key) -> Made:
        """Return what was made for ``key``."""
        with self._lock:
            made = self._made.pop(key) if key in self._made else self._make(key)
            self._made[key] = made
            if len(self._made) > KEPT:
                del self._made[next(iter(self._made))]
            return made

    def newest(self) -> Made | None:
        """Return what was used last, if anything."""
        with self._lock:
            return next(reversed(self._made.values()), None)
