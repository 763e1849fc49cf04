"""How many readers, learnt while running: more only where reads wait for storage and more readers give more tiles."""

from __future__ import annotations

from dataclasses import dataclass

_STALL = 0.02
"""Share of a window that the consumer may wait before anything is changed."""
_IDLE = 0.5
"""Share of a core that a read must leave unused, for more readers to have a chance."""
_GAIN = 1.05
_REST = 20


@dataclass(frozen=True)
class Window:
    """What was measured since the last look.

    Attributes:
        seconds: its length.
        tiles: tiles handed to the consumer.
        reads: tiles read.
        waited: seconds the consumer waited.
        latency: mean seconds per read, weighted by tiles.
        core_share: processor time over wall time of the reads.
    """

    seconds: float
    tiles: int
    reads: int
    waited: float
    latency: float
    core_share: float

    @property
    def appetite(self) -> float:
        """λ the consumer would take if it never waited, tiles per second; at least what it took."""
        busy = max(self.seconds - self.waited, 1e-3 * self.seconds)
        return self.tiles / busy


class ReaderCount:
    """Climbs while it pays: a step up that gives under 5 % more is taken back, and left alone for a while.

    Not where the consumer waits no longer: it cannot take 5 % more when it waited for 3 %.

    Decoding on all cores looks like slow storage when cores are shared, so the rate decides, not the latency.

    Attributes:
        count: readers that should run.
        saturated: whether the last step up gave nothing: more readers get no more out of storage and cores.
    """

    def __init__(self, start: int, most: int) -> None:
        self.count = start
        self.saturated = False
        self._most = most
        self._before: tuple[int, float] | None = None
        self._rest = 0

    def look(self, window: Window, needed: int) -> int:
        """Take a window in, return how many readers should run.

        Args:
            window: the latest measurements.
            needed: readers that would keep up, by Little's law.
        """
        rate = window.reads / window.seconds
        stalled = window.waited > _STALL * window.seconds
        if self._before is not None:
            count, old = self._before
            self._before = None
            self.saturated = stalled and rate < _GAIN * old
            if self.saturated:
                self.count, self._rest = count, _REST
                return self.count
        if self._rest:
            self._rest -= 1
            return self.count
        wanted = min(max(self.count + 1, self.count * 3 // 2), needed, self._most)
        if stalled and window.core_share < _IDLE and wanted > self.count:
            self._before = self.count, rate
            self.count = wanted
        return self.count
