"""Progress on stderr: a bar where there is a terminal, a line a minute where there is none."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

_LINE_EVERY = 60.0  # seconds


class Progress(Protocol):
    """What a stage tells of how far it is."""

    def total(self, total: int) -> None:
        """Say how much there is to do; may grow."""

    def advance(self, steps: int = 1, note: str | None = None) -> None:
        """Say that `steps` more are done; `note` says what limits the pace."""


class Quiet:
    """Says nothing."""

    def total(self, total: int) -> None:
        """Take the total and say nothing."""

    def advance(self, steps: int = 1, note: str | None = None) -> None:
        """Take the steps and say nothing."""


class Lines:
    """One line a minute, for logs of batch systems."""

    def __init__(self, what: str, unit: str) -> None:
        self._what, self._unit = what, unit
        self._began = self._spoke = time.monotonic()
        self._total = self._done = 0

    def total(self, total: int) -> None:
        """Say how much there is to do."""
        self._total = total

    def advance(self, steps: int = 1, note: str | None = None) -> None:
        """Count, and speak once a minute."""
        self._done += steps
        now = time.monotonic()
        if now - self._spoke >= _LINE_EVERY:
            self._spoke = now
            rate = self._done / max(now - self._began, 1e-9)
            left = (self._total - self._done) / rate if rate else 0
            tail = f" · {note}" if note else ""
            print(
                f"{self._what}: {self._done} of {self._total} {self._unit}, {rate:.1f}/s, "
                f"about {left / 60:.0f} min left{tail}",
                file=sys.stderr,
                flush=True,
            )


@contextmanager
def progress(what: str, unit: str, *, quiet: bool = False) -> Iterator[Progress]:
    """Show how far a stage is, on stderr."""
    if quiet:
        yield Quiet()
    elif sys.stderr.isatty():
        with _bar(what, unit) as bar:
            yield bar
    else:
        yield Lines(what, unit)


@contextmanager
def _bar(what: str, unit: str) -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as RichProgress

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit + " {task.fields[rate]}"),
        TextColumn("{task.fields[left]}"),
        TextColumn("{task.fields[note]}"),
    )
    with RichProgress(*columns, console=Console(stderr=True)) as rich:
        yield _Bar(rich, rich.add_task(what, total=None, note="", rate="", left=""))


class _Bar:
    """A bar whose total may change: rich forgets its own estimate of the time left each time that happens."""

    def __init__(self, rich: RichProgress, task: TaskID) -> None:
        self._rich, self._task = rich, task
        self._began, self._done, self._total, self._note = time.monotonic(), 0, 0, ""

    def total(self, total: int) -> None:
        self._total = total
        self._rich.update(self._task, total=total)

    def advance(self, steps: int = 1, note: str | None = None) -> None:
        self._done += steps
        rate = self._done / max(time.monotonic() - self._began, 1e-9)
        left = max(0, self._total - self._done) / rate
        self._note = self._note if note is None else note
        self._rich.update(
            self._task, advance=steps, rate=f"{rate:.1f}/s", left=f"{_duration(left)} left", note=self._note
        )


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes}:{rest:02d}"
