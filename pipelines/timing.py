"""Rates and waits of the stages of a run, and the sentence that names the bottleneck."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

_WAIT_THAT_MATTERS = 0.05


@dataclass
class StageClock:
    """Measures one stage that works batch by batch.

    Attributes:
        things: tiles (slides, where slides are prepared) that went through.
        seconds: duration of each batch.
    """

    things: int = 0
    seconds: list[float] = field(default_factory=list)

    @contextmanager
    def of(self, things: int) -> Iterator[None]:
        """Time one batch of so many things."""
        began = time.perf_counter()
        yield
        self.seconds.append(time.perf_counter() - began)
        self.things += things

    def to_dict(self) -> dict[str, Any]:
        """Return λ (things per second while busy), W (s per batch) and L, the things in the stage while busy."""
        took = np.asarray(self.seconds or [0.0])
        busy = float(took.sum())
        rate = self.things / busy if busy else 0.0
        return {
            "lambda": round(rate, 3),
            "W_mean": round(float(took.mean()), 6),
            "W_p99": round(float(np.quantile(took, 0.99)), 6),
            "L": round(rate * float(took.mean()), 3),
            "wait": 0.0,
            "things": self.things,
            "busy": round(busy, 3),
        }


def bottleneck(rates: Mapping[str, Mapping[str, Any]]) -> str:
    """Say in one sentence what limited the run.

    The consumer (stain and encoder) either waits for tiles or it does not: its share of waiting decides. What would
    help comes from the queue's own plan.
    """
    read = rates.get("read", {})
    if not read.get("tiles"):
        return "nothing was read"
    wait = float(read.get("wait") or 0.0)
    if wait > _WAIT_THAT_MATTERS:
        kind, _, cure = str(read.get("text", "")).partition("; ")
        if read.get("capped_by"):
            return f"{kind.partition(':')[0]}: encoder waits {wait:.0%} · {cure}"
        return f"preparation-bound: encoder waits {wait:.0%}, mostly for slides to be hashed, opened, looked through"
    stages = {name: float(rates[name]["busy"]) for name in ("stain", "encode") if name in rates}
    slowest = max(stages, key=lambda name: stages[name], default="encode")
    return f"{'encoder' if slowest == 'encode' else slowest}-bound: it waits {wait:.0%} of the time for tiles"
