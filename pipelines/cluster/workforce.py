"""Which workers are there, which of them can work on this job, and what becomes of it when the scheduler is lost."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from pipelines.errors import EnvironmentFault
from pipelines.units import duration

from .connect import GPU, Connection, slots_of
from .spec import Local

LONELY = 600.0
"""Seconds without any worker after which a run gives up; SLURM jobs may wait in their queue for as long as it takes."""
LOCAL_LONELY = 60.0
SCHEDULER = 120.0
"""Seconds in which a scheduler that was lost may come back."""
_LOOK_EVERY = 2.0
_TELL_EVERY = 60.0


class Workforce:
    """The workers of a connection, looked at every two seconds.

    Args:
        connection: to them.
        gpu: whether tasks need a GPU.
        say: prints one line for people.
    """

    def __init__(self, connection: Connection, *, gpu: bool, say: Callable[[str], None]) -> None:
        self.connection, self.gpu, self._say = connection, gpu, say
        self.troubles: dict[str, str] = {}
        """Machine → why no task is given to it."""
        self.seen: set[str] = set()
        self.hosts_seen: set[str] = set()
        self._workers: Mapping[str, Mapping[str, Any]] = {}
        self._looked = self._told = 0.0
        self._alone_since: float | None = None

    def look(self, *, now: bool = False) -> None:
        """See who is there, where that was not done just now.

        Raises:
            EnvironmentFault: nobody is, for too long; or nobody can work on this job.
        """
        clock = time.monotonic()
        if not now and clock - self._looked < _LOOK_EVERY:
            return
        self._looked = clock
        try:
            self._workers = self.connection.workers()
        except Exception:  # the scheduler does not answer just now
            self._workers = {}
        self.seen |= set(self._workers)
        self.hosts_seen |= {_host(one) for one in self._workers.values()}
        if self.usable():
            self._alone_since = None
        elif self._workers and self.troubles:
            listed = "; ".join(f"{host}: {why}" for host, why in sorted(self.troubles.items()))
            raise EnvironmentFault(
                f"no worker can work on this job: {listed}. "
                "Slides and job folder must lie under the same paths on all machines, and slidemil be the same."
            )
        else:
            self._wait(clock)

    def _wait(self, clock: float) -> None:
        self._alone_since = clock if self._alone_since is None else self._alone_since
        waited = clock - self._alone_since
        patience = LOCAL_LONELY if isinstance(self.connection.spec, Local) else LONELY
        if waited > patience and not self.connection.most:
            kind = 'with a GPU (--resources "GPU=1") ' if self.gpu else ""
            raise EnvironmentFault(
                f"no worker {kind}was there for {duration(patience)}. Start workers (`dask worker ADDRESS`), then run "
                "the same command again: it does only what is missing."
            )
        if waited > 5 and clock - self._told > _TELL_EVERY:
            self._told = clock
            self._say(f"no worker is there; waited {duration(waited)}")

    def usable(self) -> list[str]:
        """Return the addresses of those that tasks are given to."""
        return [
            address
            for address, one in self._workers.items()
            if _host(one) not in self.troubles and slots_of(one, gpu=self.gpu)
        ]

    def is_there(self, address: str) -> bool:
        """Tell whether a worker was there at the last look."""
        return address in self._workers

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self._workers)

    @property
    def room(self) -> int:
        """How many tasks may be under way: one for each slot, so that none waits on a worker."""
        now = sum(slots_of(self._workers[address], gpu=self.gpu) for address in self.usable())
        return max(now, self.connection.most)

    def sharing(self) -> dict[str, int]:
        """Return how many workers share the cores of each machine, where one allocation holds them all."""
        counts: dict[str, int] = {}
        for one in self._workers.values():
            counts[_host(one)] = counts.get(_host(one), 0) + 1
        return counts

    def options(self, where: str) -> dict[str, Any]:
        """Return how a task is submitted: to one worker, or to any that is usable."""
        options: dict[str, Any] = {"resources": {GPU: 1}} if self.gpu else {}
        if where:
            options["workers"] = [where]
        elif self.troubles:
            options["workers"] = self.usable()
        return options

    def bar(self, address: str, why: str) -> None:
        """Give no more tasks to a worker's machine."""
        host = _host(self._workers.get(address, {})) or address
        if host not in self.troubles:
            self.troubles[host] = why
            self._say(f"no slides are given to {host}: {why}")

    def find_scheduler(self) -> None:
        """Wait for a scheduler that was lost.

        Raises:
            EnvironmentFault: it does not come back.
        """
        self._say(f"the scheduler is gone; waiting up to {duration(SCHEDULER)} for it to come back")
        try:
            self.connection.again(SCHEDULER)
        except TimeoutError:
            raise EnvironmentFault(
                "the scheduler is gone and did not come back. What is finished is kept: start it and its workers, "
                "then run the same command again; it does only what is missing."
            ) from None
        self._say("the scheduler is back")
        self.look(now=True)


def _host(worker: Mapping[str, Any]) -> str:
    return str(worker.get("host", ""))
