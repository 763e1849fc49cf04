"""How many reads must be under way so that the consumer never waits: rates in, plan out. Pure arithmetic.

Little's law: in a stable system the mean number of things under way is their rate times the mean time each takes,
L = λ · W, whatever the distributions. (J. D. C. Little, Operations Research 9 (1961) 383.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

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
    utilization: float = TARGET_UTILIZATION,
) -> Plan:
    """Plan readers and depth for a consumer that takes `rate` tiles a second, where a read takes `latency` seconds.

    Args:
        rate: λ the consumer could take if it never waited, tiles per second.
        latency: W, mean seconds per tile from asking to having.
        most_readers: the cap on readers (cores, or what the user allows).
        most_depth: the cap on tiles under way or waiting (memory).
        utilization: how busy readers are meant to be.
    """
    wanted = readers_needed(rate, latency, utilization)
    readers = min(wanted, most_readers)
    reachable = min(rate, readers / latency) if latency > 0 else rate
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
    return f"the readers keep up; {held} tiles may be under way or wait"
