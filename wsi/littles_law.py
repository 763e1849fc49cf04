"""How many reads must be under way so that the consumer never waits: rates in, plan out. Pure arithmetic.

Little's law: in a stable system the mean number of things under way is their rate times the mean time each takes,
L = λ · W, whatever the distributions. (J. D. C. Little, Operations Research 9 (1961) 383.)
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

TARGET_UTILIZATION = 0.9
"""How busy readers are meant to be: at 1, the queue before them grows without end."""


def in_flight(rate: float, latency: float) -> float:
    """Return L = λ · W.

    Args:
        rate: λ, per second.
        latency: W, seconds.
    """
    return rate * latency


def depth(under_way: float) -> int:
    """Return the queue depth that keeps the consumer busy: ceil(L + 3√L), at least 1.

    L itself is only the mean; the number under way swings by about √L (exactly so for Poisson arrivals), and three
    such swings leave a wait of under 1 % where reads are delivered as they complete. (Square-root staffing: Halfin
    and Whitt, Operations Research 29 (1981) 567.)
    """
    return max(1, math.ceil(under_way + 3 * math.sqrt(under_way)))


def readers_needed(rate: float, service_time: float, utilization: float = TARGET_UTILIZATION) -> int:
    """Return how many readers keep up with a rate: ceil(λ · S / utilization), at least 1.

    Args:
        rate: λ, per second.
        service_time: seconds that one read keeps one reader.
        utilization: the share of time a reader is meant to be busy, above 0 and at most 1.
    """
    return max(1, math.ceil(rate * service_time / utilization - 1e-9))


@dataclass(frozen=True)
class Plan:
    """What to run with, and what it costs where a cap binds.

    Attributes:
        readers: reading threads.
        depth: tiles under way or waiting, without the batch that is being filled.
        under_way: L, tiles.
        capped_by: "cores" or "memory" where a cap binds, else None.
        attainable: the share of the asked rate that the plan can give, at most 1.
        text: the plan in words.
    """

    readers: int
    depth: int
    under_way: float
    capped_by: str | None
    attainable: float
    text: str


def plan(
    rate: float,
    latency: float,
    *,
    most_readers: int,
    most_depth: int,
    service: float | None = None,
    utilization: float = TARGET_UTILIZATION,
) -> Plan:
    """Plan readers and depth for a consumer that takes `rate` tiles a second, where a read takes `latency` seconds.

    Args:
        rate: λ the consumer could take if it never waited, tiles per second.
        latency: W, mean seconds per tile from asking to having.
        most_readers: the cap on readers (cores, or what the user allows).
        most_depth: the cap on tiles under way or waiting (memory).
        service: seconds that one tile keeps one reader; None where a read gives one tile, so that it is the latency.
        utilization: how busy readers are meant to be.
    """
    service = latency if service is None else service
    wanted = readers_needed(rate, service, utilization)
    readers = min(wanted, most_readers)
    reachable = min(rate, readers / service) if service > 0 else rate
    under_way = in_flight(reachable, latency)
    asked = max(depth(under_way), readers)
    held = min(asked, most_depth)
    if held < under_way:  # too few places even for what should be under way on average
        reachable = held / latency
    attainable = min(1.0, reachable / rate) if rate > 0 else 1.0
    capped_by = "memory" if held < asked else "cores" if readers < wanted else None
    return Plan(
        readers, held, under_way, capped_by, attainable, _words(capped_by, attainable, wanted, readers, asked, held)
    )


def _words(capped_by: str | None, attainable: float, wanted: int, readers: int, asked: int, held: int) -> str:
    if capped_by == "cores":
        gain = f"about {1 / attainable:.1f}x" if attainable > 0 else "more"
        more = wanted - readers
        cure = f"{more} more reader{'s' if more > 1 else ''} would give {gain}"
        if more > 8 * readers:
            cure = f"it could take {gain} as many tiles"
        return f"reader-bound: the consumer waits {1 - attainable:.0%}; {cure}"
    if capped_by == "memory":
        return f"memory-bound: {held} of {asked} tiles may be under way; the consumer gets {attainable:.0%} of its rate"
    return keeps_up(held)


def keeps_up(depth: int) -> str:
    """Say that no cap binds."""
    return f"the readers keep up; {depth} tiles may be under way or wait"


# ------------------------------------------------------------------ the whole line: stations one behind the other

CORES = "cores"
"""Name of the resource that all stations share."""


@dataclass(frozen=True)
class Stage:
    """What one tile costs in one stage.

    Attributes:
        name: of the stage.
        station: the workers that do it. Stages of one station are done by the same worker, one after the other.
        seconds: for which a tile holds one worker, where the cores are free.
        core: core seconds it takes; above `seconds` where it computes in several threads.
    """

    name: str
    station: str
    seconds: float
    core: float


@dataclass(frozen=True)
class Line:
    """Stations with queues between them, which share the cores.

    In the long run the rate is that of the resource that one tile keeps busy the longest, whatever the distributions:
    X ≤ 1 / max D. (P. J. Denning and J. P. Buzen, ACM Computing Surveys 10 (1978) 225.)

    Attributes:
        stages: in any order.
        workers: per station.
        cores: that this process may use.
        most: per station, tiles per second that it never exceeds, whatever its workers (a storage, a short queue).
        fixed: seconds per tile that stay whatever is mended: in a run, those in which the longest demand lay idle.
    """

    stages: tuple[Stage, ...]
    workers: Mapping[str, float]
    cores: float
    most: Mapping[str, float] = field(default_factory=dict)
    fixed: float = 0.0

    def demands(self) -> dict[str, float]:
        """Return the seconds for which one tile keeps each resource busy, the longest first."""
        busy = {station: self._held(station) / workers for station, workers in self.workers.items()}
        for station, rate in self.most.items():
            busy[station] = max(busy[station], 1 / rate)
        busy[CORES] = sum(stage.core for stage in self.stages) / self.cores
        return dict(sorted(busy.items(), key=lambda one: -one[1]))

    @property
    def rate(self) -> float:
        """Tiles per second in the long run; infinite where nothing costs anything."""
        longest = max(self.demands().values())
        return 1 / longest if longest > 0 else math.inf

    def largest(self, resource: str) -> Stage:
        """Return the stage that takes most of a station's time, or of the cores."""
        if resource == CORES:
            return max(self.stages, key=lambda stage: stage.core)
        return max((s for s in self.stages if s.station == resource), key=lambda stage: stage.seconds)

    def more_workers(self, station: str) -> int:
        """Return how many more workers take a station to the rate of the next bottleneck; at least 1."""
        others = max(seconds for name, seconds in self.demands().items() if name != station)
        if others <= 0:
            return 1
        return max(1, math.ceil(self._held(station) / others - self.workers[station] - 1e-9))

    def gain(
        self,
        *,
        workers: Mapping[str, float] | None = None,
        cores: float = 0,
        faster: Mapping[str, float] | None = None,
        uncapped: str | None = None,
    ) -> float:
        """Return how many times the rate would be, with the next bottleneck as its cap; at least 1.

        Args:
            workers: more workers, per station.
            cores: more cores.
            faster: stage name → how many times as fast.
            uncapped: a station whose cap falls.
        """
        more, speed = workers or {}, faster or {}
        stages = tuple(
            replace(s, seconds=s.seconds / speed.get(s.name, 1), core=s.core / speed.get(s.name, 1))
            for s in self.stages
        )
        other = Line(
            stages,
            {name: count + more.get(name, 0) for name, count in self.workers.items()},
            self.cores + cores,
            {name: rate for name, rate in self.most.items() if name != uncapped},
        )
        return self.gain_of(other)

    def gain_of(self, other: Line) -> float:
        """Return how many times as fast another line is, `fixed` seconds staying; at least 1."""
        if not math.isfinite(self.rate):
            return 1.0
        return max(1.0, (1 / self.rate + self.fixed) / max(1 / other.rate + self.fixed, 1e-12))

    def within(self, seconds: float) -> Line:
        """Return the line as part of a run that takes so many seconds per tile."""
        busy = 1 / self.rate if math.isfinite(self.rate) else 0.0
        return replace(self, fixed=max(0.0, seconds - busy))

    def _held(self, station: str) -> float:
        return sum(stage.seconds for stage in self.stages if stage.station == station)


@dataclass(frozen=True)
class Job:
    """The seconds that one slide keeps each station busy.

    Attributes:
        prepare: hashing, opening, looking through it: one slide at a time.
        read: by all readers together.
        take: normalizing and encoding its tiles.
        close: writing what it has become.
    """

    prepare: float
    read: float
    take: float
    close: float = 0.0


def duration(jobs: Iterable[Job], *, batches: float = 1.0) -> float:
    """Return the seconds that slides need, one after the other, where the stations overlap.

    A slide is prepared while the one before it is read; its tiles are taken as they are read; the readers are ahead of
    the taker by little. Times are those that the stations need by themselves: where the cores bind, `Line` says so.

    Args:
        jobs: the slides in their order.
        batches: mean number of batches per slide: the taker begins when the first is full, and has one to take when
            the last tile was read.
    """
    part = 1 / max(batches, 1.0)
    ready = asked = asked_before = taken = 0.0
    for job in jobs:
        begun = max(ready, asked_before)  # two slides may lie ready: the next is looked at when the last but one is out
        ready = begun + job.prepare
        start = max(ready, asked)
        first = max(taken, start + part * job.read)
        read = max(start + job.read, taken + (1 - part) * job.read)  # while the taker writes, one batch is read
        last = max(first + job.take, read + part * job.take)
        asked_before, asked = asked, max(read, last - part * job.take)
        taken = last + job.close
    return taken
