"""One run at a time makes a model, predictions or heatmaps of one name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from .claims import Claims
from .console import warn
from .jobfolder import JobFolder


@contextmanager
def alone(job: JobFolder, kind: str, name: str) -> Iterator[None]:
    """Make something that another run may be making, too: the second waits, and then finds it there."""
    with (
        Claims(job, kind) as claims,
        claims.hold(name, waiting=lambda other: warn(f"{kind}/{name}: {other.who} is making it; waiting")),
    ):
        yield
