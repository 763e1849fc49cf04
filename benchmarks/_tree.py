"""A process and all that it started, watched from outside: memory and open files of each."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Seen:
    """What one process held at one moment.

    Attributes:
        pid: of the process.
        parent: of its parent.
        command: its arguments, joined by spaces.
        own: bytes that are in memory and its own: not pages of files, nor of memory it shares.
        files: open descriptors, -1 where it had just ended.
        threads: of the process.
    """

    pid: int
    parent: int
    command: str
    own: int
    files: int
    threads: int


def descendants(pid: int) -> Iterator[tuple[int, int]]:
    """Yield the process and all below it, each with its parent."""
    waiting = [(pid, 0)]
    while waiting:
        one, parent = waiting.pop()
        yield one, parent
        for task in _listed(f"/proc/{one}/task"):
            with contextlib.suppress(OSError):
                below = Path(f"/proc/{one}/task/{task}/children").read_text().split()
                waiting += [(int(child), one) for child in below]


def look(pid: int) -> list[Seen]:
    """Look at a process and all below it, now; those that end meanwhile are left out."""
    seen = []
    for one, parent in descendants(pid):
        with contextlib.suppress(OSError, ValueError, IndexError):
            _, resident, shared, *_ = Path(f"/proc/{one}/statm").read_text().split()
            command = Path(f"/proc/{one}/cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
            files = len(_listed(f"/proc/{one}/fd")) or -1
            threads = len(_listed(f"/proc/{one}/task"))
            seen.append(Seen(one, parent, command, (int(resident) - int(shared)) * PAGE, files, threads))
    return seen


def peak(pid: int) -> int:
    """Return the most bytes that a process ever had in memory, 0 where it is gone."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    return 0


def _listed(folder: str) -> list[str]:
    try:
        return os.listdir(folder)  # noqa: PTH208 - names are all that is wanted
    except OSError:
        return []


@dataclass
class Watch:
    """Looks at a process tree again and again, in a thread of its own.

    Attributes:
        peaks: process → the most bytes it had in memory.
        together: the most bytes that all of them held at once, as their own.
        looks: every look, with its time.
    """

    pid: int
    every: float = 0.1
    keep: bool = False
    peaks: dict[int, int] = field(default_factory=dict)
    together: int = 0
    looks: list[tuple[float, list[Seen]]] = field(default_factory=list)

    def __enter__(self) -> Self:
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._go_on, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()

    def _go_on(self) -> None:
        while not self._over.wait(self.every):
            seen = look(self.pid)
            for one in seen:
                self.peaks[one.pid] = max(self.peaks.get(one.pid, 0), peak(one.pid))
            self.together = max(self.together, sum(one.own for one in seen))
            if self.keep and seen:
                self.looks.append((time.monotonic(), seen))
