"""How long work was under way, whoever did it: threads may do parts of it at once."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


class Stopwatch:
    """Runs while any thread works, and stands while all of them wait or have ended."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._working = 0
        self._since = self._before = 0.0

    @property
    def seconds(self) -> float:
        """What it shows now."""
        with self._lock:
            return self._before + (time.monotonic() - self._since if self._working else 0.0)

    @contextmanager
    def runs(self) -> Iterator[None]:
        """Let it run for the work of this thread."""
        self._count(1)
        try:
            yield
        finally:
            self._count(-1)

    @contextmanager
    def stands(self) -> Iterator[None]:
        """Let it stand within `runs`, while this thread waits for something that is no part of the work."""
        self._count(-1)
        try:
            yield
        finally:
            self._count(1)

    def _count(self, more: int) -> None:
        with self._lock:
            now = time.monotonic()
            if self._working:
                self._before += now - self._since
            self._since = now
            self._working += more
