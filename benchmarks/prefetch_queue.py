"""Does a queue of depth L + 3√L keep the consumer busy?    python benchmarks/prefetch_queue.py [--quick]

The depth of `wsi.littles_law` is held against two things: a simulation of events, one tile at a time, that shares no
line with it; and real runs of `wsi.stream` over a slide in memory whose reads sleep as slow storage lets them. Ten
latency regimes; the figures are the worst of them. In both, the consumer's waiting is counted by the consumer.

Stationary regimes: the mean does not drift. Where it does (`bursts`, told but not scored) a depth from the overall mean
is too shallow for the slow phases: the stream measures and plans anew while it runs. No depth hides an outage of the
storage as a whole: it costs what it lasts, less the tiles that lie ready.
"""

from __future__ import annotations

import argparse
import heapq
import math
import random
import sys
import threading
import time
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from _summary import line, summary

import wsi
from wsi import littles_law

RATES = (500.0, 5000.0)
"""Tiles per second that the consumer takes, simulated."""
REAL_RATE = 500.0
BATCH = 16
GOALS = {"worst_stall": ("<=", 0.01), "worst_depth_over_L": ("<=", 2.5)}
Draw = Callable[[random.Random], float]


@dataclass(frozen=True)
class Regime:
    """How long reads take.

    Attributes:
        draw: seconds of one read, where the storage answers.
        gap: seconds between two outages; None where there are none.
        outage: seconds of one, in which no read makes headway.
    """

    draw: Draw
    gap: float | None = None
    outage: float = 0.0


def lognormal(mean: float, sigma: float) -> Draw:
    return lambda dice: dice.lognormvariate(math.log(mean) - sigma**2 / 2, sigma)


def mixed(share: float, rare: Draw, usual: Draw) -> Draw:
    return lambda dice: rare(dice) if dice.random() < share else usual(dice)


REGIMES = {
    "constant": Regime(lambda _: 0.010),
    "uniform": Regime(lambda dice: dice.uniform(0.0, 0.020)),
    "lognormal, small": Regime(lognormal(0.010, 0.3)),
    "lognormal, large": Regime(lognormal(0.010, 1.2)),
    "exponential": Regime(lambda dice: dice.expovariate(100)),
    "bimodal: cache or disk": Regime(mixed(0.3, lognormal(0.030, 0.2), lognormal(0.0015, 0.2))),
    "nfs: p99 is ten times the mean": Regime(mixed(0.015, lognormal(0.120, 0.1), lognormal(0.0083, 0.4))),
    "nfs: 1 % at 100-300 ms": Regime(mixed(0.01, lambda dice: dice.uniform(0.1, 0.3), lognormal(0.010, 0.3))),
    "hangs: 0.2 % at 500 ms": Regime(mixed(0.002, lambda _: 0.5, lognormal(0.010, 0.5))),
    "outages: 0.5 s every 100 s": Regime(lognormal(0.010, 0.5), gap=100.0, outage=0.5),
}


# ------------------------------------------------------------------ simulated


class Storage:
    """Seeded: when a read that begins now will end."""

    def __init__(self, regime: Regime, seed: int, horizon: float) -> None:
        self._regime, self._dice = regime, random.Random(seed)
        self._outages: list[float] = []
        if regime.gap is not None:
            first = self._dice.uniform(0.2, 0.8) * regime.gap
            self._outages += [first + number * regime.gap for number in range(math.ceil(horizon / regime.gap))]

    def ends(self, now: float) -> float:
        """Return when a read that begins now ends: outages stop the clock of every read."""
        end = now + self._regime.draw(self._dice)
        for begins in self._outages[max(0, bisect_right(self._outages, now) - 1) :]:
            if begins >= end:
                break
            end += max(0.0, begins + self._regime.outage - max(begins, now))
        return end


def simulate(regime: Regime, rate: float, depth: int, tiles: int, seed: int) -> tuple[float, float, float]:
    """Let a consumer take a tile every 1 / rate seconds; `depth` reads are under way or wait to be taken.

    Returns:
        The share of the time that it waits, the mean number of reads under way, and their mean latency.
    """
    storage = Storage(regime, seed, horizon=3 * tiles / rate)
    under_way = [storage.ends(0.0) for _ in range(depth)]
    heapq.heapify(under_way)
    ready = taken = 0
    now = waited = held = 0.0
    while taken < tiles:
        wanted = now + (1 / rate if taken else 0.0)
        now, held = _advance(under_way, now, wanted, held)
        ready = depth - len(under_way)
        if not ready:  # nothing is there: wait for whichever read ends first
            first = under_way[0]
            held += len(under_way) * (first - now)
            waited += first - now
            heapq.heappop(under_way)
            now = first
        heapq.heappush(under_way, storage.ends(now))
        taken += 1
    return waited / now, held / now, held / taken


def _advance(under_way: list[float], now: float, until: float, held: float) -> tuple[float, float]:
    """Let reads end until a moment; return it, and the summed time of reads under way."""
    while under_way and under_way[0] <= until:
        end = under_way[0]
        held += len(under_way) * (end - now)
        now = end
        heapq.heappop(under_way)
    return until, held + len(under_way) * (until - now)


def simulated(tiles: int) -> dict[str, float]:
    """Return the worst stall and the worst depth of all regimes and rates."""
    stalls, depths = [], []
    for name, regime in REGIMES.items():
        for rate in RATES:
            taken = tiles if regime.gap is None else max(tiles, round(tiles / 30_000 * regime.gap * rate))
            *_, mean = simulate(regime, rate, 100, taken // 4, 99)  # a pilot measures W, as the stream does
            under_way = littles_law.in_flight(rate, mean)
            depth = littles_law.depth(under_way)
            runs = [simulate(regime, rate, depth, taken, seed) for seed in range(3)]
            stall, counted, _ = (sum(values) / len(runs) for values in zip(*runs, strict=True))
            shallow, *_ = simulate(regime, rate, max(1, round(under_way)), taken, 0)
            stalls.append(stall)
            depths.append(depth / under_way)
            line(
                simulated=name,
                rate=rate,
                L=round(under_way, 2),
                counted=round(counted, 2),
                depth=depth,
                stall=round(stall, 5),
                stall_at_depth_L=round(shallow, 4),
            )
    return {"worst_stall": max(stalls), "worst_depth_over_L": max(depths)}


def drifting(tiles: int) -> float:
    """Return the stall where the mean drifts: five times as slow for 1 s in 10, depth from the overall mean."""
    usual, slow = lognormal(0.010, 0.5), lognormal(0.050, 0.5)

    class Bursts(Storage):
        def ends(self, now: float) -> float:
            return now + (slow if now % 10 < 1 else usual)(self._dice)

    rate, waited, now = RATES[0], 0.0, 0.0
    storage = Bursts(REGIMES["constant"], 0, 0.0)
    depth = littles_law.depth(littles_law.in_flight(rate, 0.014))
    under_way = sorted(storage.ends(0.0) for _ in range(depth))
    for _ in range(tiles):
        first = heapq.heappop(under_way)
        waited += max(0.0, first - now)
        now = max(now, first)
        heapq.heappush(under_way, storage.ends(now))
        now += 1 / rate
    return waited / now


# ------------------------------------------------------------------ real runs


class SlowReads:
    """Lets reads of a slide in memory sleep as long as the regime says."""

    def __init__(self, regime: Regime, seed: int) -> None:
        self._regime, self._dice, self._lock = regime, random.Random(seed), threading.Lock()
        self.slept, self.reads = 0.0, 0

    def __call__(self, *_: int) -> None:
        """Sleep once."""
        with self._lock:
            span = self._regime.draw(self._dice)
            self.slept += span
            self.reads += 1
        time.sleep(span)


def real(regime: Regime, seconds: float, settle: float) -> tuple[float, wsi.StreamRecord, float]:
    """Run a stream whose consumer takes REAL_RATE tiles a second.

    Returns:
        The share of the time after `settle` that the consumer waited, what the stream measured, the true mean latency.
    """
    slow = SlowReads(regime, 1)
    pixels = np.full((32 * 200, 32 * 200, 3), 200, np.uint8)
    slide = wsi.MemorySlide([pixels], mpp=0.5, on_read=slow)
    grid = wsi.tile_grid(slide, None, wsi.TileSpec(32, 0.5))
    waited = 0.0
    began = due = time.perf_counter()
    with wsi.stream(((slide, grid) for _ in range(99)), batch_size=BATCH) as stream:
        for batch in stream:
            now = time.perf_counter()
            if due - began >= settle:
                waited += now - due
            if now - began >= settle + seconds:
                break
            time.sleep(len(batch) / REAL_RATE)
            due = time.perf_counter()
        record = stream.record()
    return waited / (now - began - settle), record, slow.slept / slow.reads


def real_runs(names: list[str], seconds: float, settle: float) -> dict[str, float]:
    """Return the worst stall of real runs, and the worst depth."""
    stalls, depths = [], []
    for name in names:
        stall, record, mean = real(REGIMES[name], seconds, settle)
        under_way = littles_law.in_flight(REAL_RATE, mean)
        stalls.append(stall)
        depths.append(record.depth / under_way)
        line(
            real=name,
            rate=REAL_RATE,
            L=round(under_way, 2),
            counted=round(record.in_flight, 2),
            depth=record.depth,
            readers=record.workers,
            latency_ms=round(1e3 * mean, 2),
            measured_ms=round(1e3 * record.W_mean, 2),
            stall=round(stall, 5),
        )
    return {"real_worst_stall": max(stalls), "real_worst_depth_over_L": max(depths)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few tiles, two real runs")
    args = parser.parse_args()
    tiles = 10_000 if args.quick else 60_000
    figures = simulated(tiles)
    figures["bursts_stall"] = drifting(tiles)
    names = [name for name, regime in REGIMES.items() if regime.gap is None]  # an outage in 100 s needs a long run
    names, seconds = (names[:2], 1.0) if args.quick else (names, 15.0)
    figures |= real_runs(names, seconds, settle=seconds / 3)
    how = {
        "regimes": len(REGIMES),
        "tiles": tiles,
        "real": f"{len(names)} regimes of {seconds:g} s at {REAL_RATE:g} tiles/s, first {seconds / 3:g} s left out",
        "cores": wsi.available_cores(),
        "python": sys.version.split()[0],
    }
    summary("prefetch_queue", figures, GOALS, how)


if __name__ == "__main__":
    main()
