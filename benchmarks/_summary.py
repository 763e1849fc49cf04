"""What all benchmarks share: one JSON line per finding, the summary last."""

from __future__ import annotations

import json
import resource
from collections.abc import Collection
from typing import Any


def cpu_seconds() -> float:
    """Return the CPU seconds of this process and of its children that have ended."""
    return sum(
        one.ru_utime + one.ru_stime for one in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def line(**facts: Any) -> None:
    """Print one finding."""
    print(json.dumps(facts, default=float), flush=True)


def summary(
    bench: str,
    figures: dict[str, float],
    goals: dict[str, tuple[str, float]],
    how: dict[str, Any],
    lacking: Collection[str] = (),
) -> None:
    """Print the last line: figures beside goals, and the keys that fall short; those that are `lacking` always do."""
    short = [key for key, (sign, goal) in goals.items() if key in lacking or not _met(figures.get(key), sign, goal)]
    line(bench=bench, figures=figures, goals=goals, short=short, how=how)


def _met(figure: float | None, sign: str, goal: float) -> bool:
    if figure is None:
        return False
    return figure >= goal if sign == ">=" else figure <= goal
