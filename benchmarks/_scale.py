"""What a million slides take on a thousand workers: a simulation of events, fed with what was measured here."""

from __future__ import annotations

import heapq
import random
from dataclasses import dataclass

from pipelines.cluster.batches import Batches


@dataclass(frozen=True)
class Site:
    """What is assumed of a cluster, and what was measured of us.

    Attributes:
        task_seconds: that the one process that leads spends on a task (measured).
        slide_seconds: that it spends on a slide while it leads (measured).
        end_seconds: that it spends on a slide before and after, alone (measured).
        operations: on the job's file system for a slide: files opened, made, renamed, removed (counted).
        work_seconds: that a worker takes for a slide, on average (assumed).
        gigabytes: of a slide, on average (assumed).
        metadata: operations a second that the file server stands (assumed).
        bandwidth: gigabytes a second that the store gives (assumed).
    """

    task_seconds: float
    slide_seconds: float
    end_seconds: float
    operations: float
    work_seconds: float = 60.0
    gigabytes: float = 1.0
    metadata: float = 5_000.0
    bandwidth: float = 20.0


def simulate(site: Site, slides: int, workers: int, *, single: bool = False, seed: int = 0) -> dict[str, float | str]:
    """Give out slides to workers, by the very code that does so in a run; the one that leads serves one at a time.

    Args:
        site: what things cost.
        slides: how many; sizes vary as lognormal numbers do (sigma 0.8), and time with size.
        workers: slots.
        single: one slide in a task.
        seed: of the sizes.

    Returns:
        Hours, the share of them in which workers worked, how busy lead, file server and store are, and the limit.
    """
    dice = random.Random(seed)
    sizes = {str(n): max(1, round(1e9 * site.gigabytes * dice.lognormvariate(-0.32, 0.8))) for n in range(slides)}
    seconds_of = site.work_seconds / (1e9 * site.gigabytes)
    batches = Batches(sizes)
    lead = last = worked = led = 0.0
    tasks = 0
    free: list[tuple[float, int, list[str], float]] = [(0.0, worker, [], 0.0) for worker in range(workers)]
    while free:
        now, worker, did, took = heapq.heappop(free)
        if did:
            batches.learn(did, took)
        names = (batches.one() if len(batches) else []) if single else batches.next(workers)
        cost = (site.task_seconds if names else 0.0) + len(did) * site.slide_seconds
        lead = max(lead, now) + cost
        led += cost
        last = max(last, lead)
        if names:
            took = sum(sizes[name] for name in names) * seconds_of * dice.uniform(0.9, 1.1)
            worked += took
            tasks += 1
            heapq.heappush(free, (lead + took, worker, names, took))
    needs = {
        "the lead": led,
        "the file server": slides * site.operations / site.metadata,
        "the store": sum(sizes.values()) / 1e9 / site.bandwidth,
    }
    alone = slides * site.end_seconds
    seconds = max(last, *needs.values())
    limit, need = max(needs.items(), key=lambda item: item[1])
    return {
        "hours": (seconds + alone) / 3600,
        "alone_hours": alone / 3600,
        "efficiency": worked / workers / seconds,
        "tasks": tasks,
        **{name.removeprefix("the ").replace(" ", "_"): busy / seconds for name, busy in needs.items()},
        "limit": limit if need > 0.9 * seconds else "the workers",
    }


def most_workers(site: Site, slides_per_task: float) -> dict[str, float]:
    """Return how many workers each of the three can serve before it is busy all the time; closed form."""
    return {
        "lead": slides_per_task * site.work_seconds / (site.task_seconds + slides_per_task * site.slide_seconds),
        "file_server": site.work_seconds * site.metadata / site.operations,
        "store": site.work_seconds * site.bandwidth / site.gigabytes,
    }
