"""The time that a plan's probe may take: what it aims at, and when it ends whatever it has found by then."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

_TIMES, _LEAST = 3.0, 30.0
"""After how many times what it aims at a probe ends, and after how many seconds at least: processes have to start."""


def most_seconds(aim: float) -> float:
    """Return after how many seconds a probe ends that aims at so many."""
    return max(_LEAST, _TIMES * aim)


@dataclass
class ProbeClock:
    """Runs from when it is made.

    Attributes:
        aim: seconds that measuring and counting should take.
        cut: what could not be measured in the time, as parts of a sentence.
    """

    aim: float
    cut: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Start."""
        self.most = most_seconds(self.aim)
        self._began = time.monotonic()

    @property
    def spent(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._began

    def over(self, share: float) -> bool:
        """Tell whether this share of what it aims at is over."""
        return self.spent >= share * self.aim

    def left(self, share: float = 1.0) -> float:
        """Return the seconds until this share of the most it may take; never below 0."""
        return max(0.0, share * self.most - self.spent)

    def told(self) -> str:
        """Return what the user should know of what is missing; empty where nothing is."""
        if not self.cut:
            return ""
        return (
            f"the probe ended after {self.spent:.0f} s of at most {self.most:.0f}: {'; '.join(self.cut)}. The guess is "
            f"rougher for it; --probe {round(self.most)} gives it three times as long"
        )
