"""How far all workers are together, and what holds most of them back: one line."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Mapping
from typing import Any

_WINDOW = 30.0
"""Seconds over which the pace is taken."""
_SILENT = 120.0
"""Seconds without news after which a task is no longer counted among those that say what limits them."""


class Board:
    """Gathers news of tasks; news come in dask's own thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tiles: deque[tuple[float, int]] = deque()
        self._said: dict[str, tuple[float, str]] = {}
        self._ended = 0
        self._began = time.monotonic()

    def take(self, event: tuple[float, Mapping[str, Any]]) -> None:
        """Take in one event of a worker."""
        _, news = event
        now = time.monotonic()
        with self._lock:
            self._tiles.append((now, int(news["tiles"])))
            self._ended += int(news["ended"])
            if news["note"]:
                self._said[str(news["task"])] = (now, str(news["note"]))

    def forget(self, task: str) -> None:
        """A task is over."""
        with self._lock:
            self._said.pop(task, None)

    def ended(self) -> int:
        """Return the slides that ended since this was asked last."""
        with self._lock:
            ended, self._ended = self._ended, 0
            return ended

    def line(self, workers: int, tasks: int) -> str:
        """Return the pace of all workers, and what holds most of them back."""
        now = time.monotonic()
        with self._lock:
            while self._tiles and now - self._tiles[0][0] > _WINDOW:
                self._tiles.popleft()
            tiles = sum(n for _, n in self._tiles)
            said = [note for when, note in self._said.values() if now - when < _SILENT]
        pace = tiles / max(1.0, min(_WINDOW, now - self._began))
        text = f"{workers} workers, {tasks} tasks, {pace:,.0f} tiles/s"
        if not said:
            return text
        heads = Counter(note.partition(":")[0].partition(" · ")[0] for note in said)
        head, count = heads.most_common(1)[0]
        example = next(note for note in reversed(said) if note.startswith(head)).partition(" · ")[0]
        return f"{text} · {example}" + (f" ({count} of {len(said)} tasks)" if len(said) > 1 else "")
