"""Which slides make one task: about five minutes' worth, less at the start and towards the end. Pure arithmetic."""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterable, Mapping

from .splits import Portion

TASK_SECONDS = 300.0
"""Worth of a task: long against what a task costs the scheduler (milliseconds) and a stream to fill (seconds), short
against a night's queue; what a lost worker can cost is no more than the slides it had open."""
LEAST_SECONDS = 20.0
"""Worth of a task at least, where there is enough to do for all: starting to read takes a second or two."""
_EACH = 2e6
"""Bytes that opening a slide and looking for tissue counts for: a task of small slides is not one of a thousand."""
_SHARE = 3
"""A task is at most this part of what each slot has left to do, so that the slots end together."""
_MUCH = 1.5
"""Times the share of a slot in what is left, from which on a slide is cut into portions."""
_LEAST_PORTION = 5e8
"""Bytes of a portion at least while nothing is known of their pace: each worker opens and looks through the slide."""
_LEAST_PORTION_SECONDS = 60.0
_FIRST = 8
"""Slides of a task at most while nothing is known of their pace."""


class Batches:
    """The slides that wait, large ones first, and how fast they go.

    Args:
        sizes: bytes of each slide; all of them wait.
    """

    def __init__(self, sizes: Mapping[str, int]) -> None:
        self._sizes = dict(sizes)
        self._waiting = sorted((size, name) for name, size in sizes.items())
        self._left = float(sum(map(self._weight_of, sizes)))
        self._seconds = self._weight = 0.0

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, sizes: Mapping[str, int]) -> None:
        """Let more wait: portions of a slide, or a slide that is nearly done."""
        self._sizes |= sizes
        self.put_back(sizes)

    def portions(self, name: str, slots: int) -> int:
        """Return into how many portions a slide that was taken is best cut; 1 where it is better done whole.

        It is cut where it is worth two tasks and more, or where the slots would wait for it at the end.

        Args:
            name: of the slide.
            slots: tasks that run at once.
        """
        weight, rate = self._weight_of(name), self.rate
        worth = (self._left + weight) / max(slots, 1)
        least = _LEAST_PORTION if rate is None else _LEAST_PORTION_SECONDS * rate
        if rate is not None and weight > 2 * TASK_SECONDS * rate:
            worth = min(worth, TASK_SECONDS * rate)
        elif weight <= _MUCH * worth:
            return 1
        return max(1, min(math.ceil(weight / worth), int(weight / least))) if slots > 1 else 1

    def take_out(self, name: str) -> bool:
        """Let one wait no longer; say whether it did."""
        place = bisect.bisect_left(self._waiting, (self._sizes[name], name))
        waits = place < len(self._waiting) and self._waiting[place][1] == name
        if waits:
            del self._waiting[place]
            self._left -= self._weight_of(name)
        return waits

    def put_back(self, names: Iterable[str]) -> None:
        """Let slides wait again."""
        for name in names:
            bisect.insort(self._waiting, (self._sizes[name], name))
            self._left += self._weight_of(name)

    def learn(self, names: Iterable[str], seconds: float) -> None:
        """Take in how long a task of slides took."""
        weight = sum(map(self._weight_of, names))
        if weight > 0 and seconds > 0:
            self._seconds += seconds
            self._weight += weight

    @property
    def rate(self) -> float | None:
        """Weight that a slot works off in a second, None where nothing is known."""
        return self._weight / self._seconds if self._seconds else None

    def next(self, slots: int) -> list[str]:
        """Return the slides of the next task; empty where none waits.

        Args:
            slots: tasks that run at once.
        """
        if not self._waiting:
            return []
        fair = self._left / max(slots, 1)
        worth, most = fair / _SHARE, _FIRST
        if self.rate is not None:
            worth = min(max(worth, LEAST_SECONDS * self.rate), fair, TASK_SECONDS * self.rate)
            most = len(self._waiting)
        taken = [self._take()]
        weight = self._weight_of(taken[0])
        alone = isinstance(taken[0], Portion)
        while self._waiting and len(taken) < most and not alone:
            following = self._waiting[-1][1]
            if isinstance(following, Portion) or weight + self._weight_of(following) > worth:
                break
            taken.append(self._take())
            weight += self._weight_of(taken[-1])
        return taken

    def one(self) -> list[str]:
        """Return a task of one slide alone."""
        return [self._take()]

    def _take(self) -> str:
        _, name = self._waiting.pop()
        self._left -= self._weight_of(name)
        return name

    def _weight_of(self, name: str) -> float:
        return self._sizes[name] + _EACH
