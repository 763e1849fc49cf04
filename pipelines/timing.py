"""Rates, waits and core seconds of the stages of a run, measured while it goes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from wsi.thread_clock import Spent, ThreadClock


@dataclass
class StageClock:
    """Measures one stage that works batch by batch, in one thread at a time.

    Attributes:
        things: tiles (slides, where slides are prepared) that went through.
        seconds: duration of each batch.
        core: core seconds of the thread.
        queued: seconds in which the thread waited for a core.
    """

    things: int = 0
    seconds: list[float] = field(default_factory=list)
    core: float = 0.0
    queued: float = 0.0

    @contextmanager
    def of(self, things: int) -> Iterator[None]:
        """Time one batch of so many things."""
        with ThreadClock() as clock:
            before, began = clock.read(), time.perf_counter()
            yield
            self.add(things, time.perf_counter() - began, clock.read().since(before))

    def add(self, things: int, seconds: float, spent: Spent) -> None:
        """Count one batch."""
        self.seconds.append(seconds)
        self.things += things
        self.core += spent.core
        self.queued += spent.queued

    def join(self, other: StageClock) -> None:
        """Count what another clock has measured, too."""
        self.things += other.things
        self.seconds += other.seconds
        self.core += other.core
        self.queued += other.queued

    def to_dict(self) -> dict[str, Any]:
        """Return λ (things per second while busy), W (s per batch) and L, the things in the stage while busy."""
        took = np.asarray(self.seconds or [0.0])
        busy = float(took.sum())
        rate = self.things / busy if busy else 0.0
        return {
            "lambda": round(rate, 3),
            "W_mean": round(float(took.mean()), 6),
            "W_p99": round(float(np.quantile(took, 0.99)), 6),
            "L": round(rate * float(took.mean()), 3),
            "wait": 0.0,
            "things": self.things,
            "busy": round(busy, 6),
            "core": round(self.core, 6),
            "queued": round(self.queued, 6),
        }
