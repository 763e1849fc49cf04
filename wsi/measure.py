"""The queue's own clock: λ, W, L, how many readers and how deep, planned anew while it runs.

Not locked: the engine calls it under its lock.
"""

from __future__ import annotations

import math
import random
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from wsi import littles_law
from wsi.adapt import ReaderCount, Window
from wsi.thread_clock import Spent

_WINDOW_SECONDS = 0.25
_MEMORY_SECONDS = 6.0
"""Time constant of what the depth is planned from: a window holds too few reads where some take very long."""
_LONGER, _SHORTER = 4.0, 3.0
"""Standard errors by which a window must differ for what was before it to be given little weight.

More of them upwards: that is where the long tail lies.
"""
_KEPT = 65536


class Meter:
    """Counts requests and hand-overs; plans depth and readers from them.

    Args:
        readers: reading threads to start with.
        most_readers: the most there may ever be.
        probe: tiles to be read before the first plan.
    """

    def __init__(self, readers: int, most_readers: int, probe: int) -> None:
        self._count = ReaderCount(readers, most_readers)
        self._probe = probe
        self._most_depth = 2**31
        self._plan: littles_law.Plan | None = None
        self.readers = readers
        self.depth = littles_law.depth(readers)
        self._planned: dict[str, float | None] = {"lambda": None, "W": None, "L": float(readers)}
        self._latencies: list[float] = []
        self._dice = random.Random(0)  # noqa: S311
        self._reads = self._failed = self._tiles = 0
        self._latency_sum = self._waited = self._starved = self._first_batch = 0.0
        self._held = self._core = self._queued = 0.0
        self._began = self._last = 0.0
        self._under_way, self._area, self._area_at = 0, 0.0, 0.0
        self._window = _Tally()
        self._recent = Recent()

    def set_caps(self, most_depth: int) -> None:
        """Set how many tiles memory lets be under way or wait."""
        self._most_depth = most_depth
        self.depth = min(self.depth, most_depth)

    def begin(self) -> None:
        """Start the clock."""
        self._began = self._last = self._area_at = time.perf_counter()
        self._window = _Tally(self._began)

    def asked(self, tiles: int) -> float:
        """Note a request; returns when."""
        now = self._count_area()
        self._under_way += tiles
        return now

    def had(self, asked: float, tiles: int, failed: int, spent: Spent) -> bool:
        """Note a request's end; returns whether more readers are wanted than before.

        Args:
            asked: what `asked` returned.
            tiles: how many it gave, failed ones included.
            failed: how many of them failed.
            spent: what of it the reader was on a core, or waited for one, and what was no part of the read.
        """
        now = self._count_area()
        self._under_way -= tiles
        latency = max(0.0, now - asked - spent.aside)
        self._reads += tiles
        self._failed += failed
        self._latency_sum += latency * tiles
        self._held += latency
        self._core += spent.core
        self._queued += spent.queued
        self._keep(latency)
        self._window.add(tiles, latency, spent.core)
        self._recent.note(tiles, latency)
        return self._plan_anew(now)

    def waited(self, since: float, tiles: int) -> None:
        """Note that the consumer asked at `since` and got a batch of `tiles` now (0 at the end)."""
        now = time.perf_counter()
        self._waited += now - since
        self._window.waited += now - since
        self._window.tiles += tiles
        if tiles and not self._tiles:
            self._first_batch = now - self._began
        self._tiles += tiles
        self._count_area()
        self._last = now

    def starved(self, seconds: float) -> None:
        """Note that the consumer waited so long while no slide was there to be read."""
        self._starved += seconds

    def summary(self) -> dict[str, Any]:
        """Return the fields of a StreamRecord."""
        seconds = max(self._last - self._began, 1e-9)
        plan = self._overall(seconds)
        mean = self._latency_sum / self._reads if self._reads else 0.0
        rate = self._tiles / seconds
        reads = max(self._reads, 1)
        return {
            "lambda_": rate,
            "W_mean": mean,
            "W_p99": float(np.percentile(self._latencies, 99)) if self._latencies else 0.0,
            "L": littles_law.in_flight(rate, mean),
            "in_flight": self._area / max(self._area_at - self._began, 1e-9),
            "depth": self.depth,
            "planned": dict(self._planned),
            "workers": self.readers,
            "wait": min(1.0, self._waited / seconds),
            "starved": min(1.0, self._starved / seconds),
            "service": self._held / reads,
            "core": self._core / reads,
            "queued": self._queued / reads,
            "saturated": self._count.saturated,
            "tiles": self._tiles,
            "failed": self._failed,
            "seconds": seconds,
            "first_batch": self._first_batch,
            "capped_by": plan.capped_by if plan else None,
            "text": self._words(plan),
        }

    def _overall(self, seconds: float) -> littles_law.Plan | None:
        """Plan from the whole run: the last window may hold no more than the odd tiles of the last slide."""
        if not self._reads or not self._tiles:
            return None
        appetite = self._tiles / max(seconds - self._waited, 1e-3 * seconds)
        return self._made(appetite, self._latency_sum / self._reads, self._held / self._reads)

    def _words(self, plan: littles_law.Plan | None) -> str:
        if plan is None:
            return "no tile was read"
        return plan.text if plan.capped_by else littles_law.keeps_up(self.depth)

    def _made(self, appetite: float, latency: float, service: float) -> littles_law.Plan:
        return littles_law.plan(
            appetite, latency, service=service, most_readers=self.readers, most_depth=self._most_depth
        )

    def _count_area(self) -> float:
        now = time.perf_counter()
        self._area += self._under_way * (now - self._area_at)
        self._area_at = now
        return now

    def _keep(self, latency: float) -> None:
        if len(self._latencies) < _KEPT:
            self._latencies.append(latency)
        elif (place := self._dice.randrange(self._reads)) < _KEPT:
            self._latencies[place] = latency

    def _plan_anew(self, now: float) -> bool:
        tally = self._window
        if now - tally.began < _WINDOW_SECONDS or tally.reads < self._probe or not tally.tiles:
            return False
        window = tally.close(now)
        self._window = _Tally(now)
        # Latencies swing, so as many reads must sleep side by side as the depth says: L + 3√L, not the mean alone.
        needed = littles_law.depth(littles_law.in_flight(window.appetite, tally.service))
        before = self.readers
        self.readers = self._count.look(window, needed)
        recent = self._recent.take(window.seconds, window.tiles, window.waited)
        self._plan = self._made(recent.appetite, recent.latency, recent.service)
        self._planned = {
            "lambda": self._plan.under_way / recent.latency if recent.latency > 0 else recent.appetite,
            "W": recent.latency,
            "L": self._plan.under_way,
        }
        self.depth = self._plan.depth
        return self.readers > before


class Recent:
    """What the last seconds were like, older ones counting less; a shift that chance does not explain counts at once.

    One window of 0.25 s would do for latencies that swing little. Where one read in a hundred takes forty times as
    long, its mean swings by as much as the margin of the depth.
    """

    def __init__(self) -> None:
        self._new = _Sums()
        self._old = _Sums()

    def note(self, tiles: int, latency: float) -> None:
        """Add a request."""
        new = self._new
        new.reads += tiles
        new.latency += latency * tiles
        new.requests += 1
        new.wall += latency
        new.squares += latency * latency

    def take(self, seconds: float, tiles: int, waited: float) -> Recent:
        """End a window in which so many tiles were handed over, the consumer waiting for so many seconds."""
        new, old = self._new, self._old
        new.seconds, new.tiles, new.waited = seconds, float(tiles), waited
        keep = math.exp(-seconds / _MEMORY_SECONDS)
        error = math.sqrt(old.variance / new.requests) if old.requests else math.inf
        if new.mean - old.mean > _LONGER * error or old.mean - new.mean > _SHORTER * error:
            keep = min(keep, new.requests / old.requests)  # no more weight than the window itself
        for name, value in vars(old).items():
            setattr(old, name, keep * value + getattr(new, name))
        self._new = _Sums()
        return self

    @property
    def latency(self) -> float:
        """W, mean seconds per tile."""
        return self._old.latency / self._old.reads

    @property
    def service(self) -> float:
        """Seconds that one tile keeps one reader."""
        return self._old.wall / self._old.reads

    @property
    def appetite(self) -> float:
        """λ that the consumer would take if it never waited, tiles per second."""
        old = self._old
        return old.tiles / max(old.seconds - old.waited, 1e-3 * old.seconds)


@dataclass
class _Sums:
    """Of requests and of hand-overs."""

    reads: float = 0.0
    requests: float = 0.0
    latency: float = 0.0
    wall: float = 0.0
    squares: float = 0.0
    seconds: float = 0.0
    tiles: float = 0.0
    waited: float = 0.0

    @property
    def mean(self) -> float:
        return self.wall / self.requests if self.requests else 0.0

    @property
    def variance(self) -> float:
        """At least that of a hundredth of the mean, which is chance where nothing seems to swing."""
        return max((0.01 * self.mean) ** 2, self.squares / self.requests - self.mean**2) if self.requests else 0.0


class _Tally:
    """Sums since the last plan."""

    def __init__(self, began: float = 0.0) -> None:
        self.began = began
        self.tiles = self.reads = 0
        self.waited = self._latency = self._wall = self._busy = 0.0

    def add(self, tiles: int, latency: float, busy: float) -> None:
        self.reads += tiles
        self._latency += latency * tiles
        self._wall += latency
        self._busy += busy

    @property
    def service(self) -> float:
        """Seconds that one tile keeps one reader: a request may give many."""
        return self._wall / self.reads

    def close(self, now: float) -> Window:
        return Window(
            seconds=now - self.began,
            tiles=self.tiles,
            reads=self.reads,
            waited=self.waited,
            latency=self._latency / self.reads,
            core_share=self._busy / max(self._wall, 1e-9),
        )
