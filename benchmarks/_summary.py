"""What all benchmarks share: one JSON line per finding, the summary last."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any


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
