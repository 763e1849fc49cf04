"""Progress on stderr: a bar where there is a terminal, a line a minute where there is none."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from .units import duration

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

_LINE_EVERY = 60.0  # seconds


class Progress(Protocol):
    """What a stage tells of how far it is."""

    def total(self, total: int, *, exact: bool = True) -> None:
        """Say how much there is to do, or about how much; may change."""

    def advance(self, steps: int = 1, note: str | None = None) -> None:
        """Say that `steps` more are done; `note` says what limits the pace."""


class Quiet:
    """Says nothing."""

    def total(self, total: int, *, exact: bool = True) -> None:
        """Take the total and say nothing."""

    def advance(self, steps: int = 1, note: str | None = None) -> None:
        """Take the steps and say nothing."""


class Lines:
    """One line a minute, for logs of batch systems."""

    def __init__(self, what: str, unit: str) -> None:
        self._what, self._unit = what, unit
        self._began = self._spoke = time.monotonic()
        self._total = self._done = 0
        self._about = ""

    def total(self, total: int, *, exact: bool = True) -> None:
        """Say how much there is to do."""
        self._total, self._about = total, "" if exact else "about "

    def advance(self, steps: int = 1, note: str | None = None) -> None:
        """Count, and speak once a minute."""
        self._done += steps
        now = time.monotonic()
        if now - self._spoke >= _LINE_EVERY:
            self._spoke = now
            rate = self._done / max(now - self._began, 1e-9)
            left = max(0, self._total - self._done) / rate if rate else 0
            tail = f" · {note}" if note else ""
            print(
                f"{self._what}: {self._done} of {self._about}{self._total} {self._unit}, {rate:.1f}/s, "
                f"about {duration(left)} left{tail}",
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

    with bar_with_note(unit, Console(stderr=True)) as rich:
        yield _Bar(rich, rich.add_task(what, total=None, note="", rate="", left="", count=""))


def bar_with_note(unit: str, console: Console, **options: Any) -> RichProgress:
    """Return a bar with the note in lines of its own: what limits the pace is a whole sentence, and is never cut."""
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as RichProgress
    from rich.text import Text

    class Noted(RichProgress):
        def get_renderables(self) -> Iterator[RenderableType]:
            yield self.make_tasks_table(self.tasks)
            yield from (Text(task.fields["note"]) for task in self.tasks if task.fields["note"])

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=16),
        TextColumn("{task.fields[count]} " + unit + " {task.fields[rate]}"),
        TextColumn("{task.fields[left]}"),
    )
    return Noted(*columns, console=console, **options)


class _Bar:
    """A bar whose total may change: rich forgets its own estimate of the time left each time that happens."""

    def __init__(self, rich: RichProgress, task: TaskID) -> None:
        self._rich, self._task = rich, task
        self._began, self._done, self._total, self._note = time.monotonic(), 0, 0, ""
        self._about = ""

    def total(self, total: int, *, exact: bool = True) -> None:
        self._total, self._about = total, "" if exact else "~"
        self._rich.update(self._task, total=total, count=self._count)

    @property
    def _count(self) -> str:
        return f"{self._done}/{self._about}{self._total or '?'}"

    def advance(self, steps: int = 1, note: str | None = None) -> None:
        self._done += steps
        rate = self._done / max(time.monotonic() - self._began, 1e-9)
        left = max(0, self._total - self._done) / rate
        self._note = self._note if note is None else note
        self._rich.update(
            self._task,
            advance=steps,
            count=self._count,
            rate=f"{rate:.1f}/s",
            left=f"{_duration(left)} left",
            note=self._note,
        )


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes}:{rest:02d}"
