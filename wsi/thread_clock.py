"""Where the time of one thread goes: on a core, waiting for a core, or asleep (storage, locks)."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import NamedTuple, Self


class Spent(NamedTuple):
    """Seconds of a thread.

    Attributes:
        core: on a core.
        queued: ready to run, while others held the cores; 0 where the system does not tell.
        aside: for something that is no part of the work: a slide was opened, here or by another thread.
    """

    core: float
    queued: float
    aside: float = 0.0

    def since(self, before: Spent) -> Spent:
        """Return what was spent after `before`."""
        return Spent(self.core - before.core, self.queued - before.queued, self.aside - before.aside)


_elsewhere = threading.local()


def spent_elsewhere(spent: Spent) -> None:
    """Note what another process has spent for this thread."""
    before = getattr(_elsewhere, "spent", Spent(0.0, 0.0))
    _elsewhere.spent = Spent(before.core + spent.core, before.queued + spent.queued, before.aside + spent.aside)


@contextmanager
def set_aside() -> Iterator[None]:
    """Do something that is no part of what the thread's clock measures: its seconds of any kind go under `aside`."""
    with ThreadClock() as clock:
        before, began = clock.read(), time.perf_counter()
        try:
            yield
        finally:
            spent = clock.read().since(before)
            more = time.perf_counter() - began - spent.aside
            spent_elsewhere(Spent(-spent.core, -spent.queued, more))


class ThreadClock:
    """Reads the clocks of the thread that made it, in about 2 µs; close it, or use it in a `with`."""

    def __init__(self) -> None:
        try:
            self._file = os.open("/proc/thread-self/schedstat", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            self._file = -1

    def read(self) -> Spent:
        """Return what the thread has spent since it began, here and elsewhere."""
        core, queued, aside = getattr(_elsewhere, "spent", Spent(0.0, 0.0))
        return Spent(core + time.thread_time(), queued + self._queued(), aside)

    def close(self) -> None:
        """Let go of the clock; it then tells no more than core seconds."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _queued(self) -> float:
        if self._file < 0:
            return 0.0
        try:
            return int(os.pread(self._file, 64, 0).split()[1]) * 1e-9
        except (OSError, ValueError, IndexError):
            return 0.0
