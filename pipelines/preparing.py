"""Slides are opened and looked through, here or in a process that may be lost."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator, Mapping
from functools import partial
from typing import Any

import wsi
from wsi.owner import end_with
from wsi.thread_clock import Spent, ThreadClock, spent_elsewhere

from .config import ExtractSettings
from .errors import JobError
from .jobfolder import JobFolder, Tiling
from .losable import Done, Lost, each
from .manifest import SlideEntry
from .slide_work import SlideWork, prepare

_SECONDS = 1800.0
"""The most that opening a slide and finding its tissue may take: one level of 10 gigapixels takes minutes."""
_Item = tuple[SlideEntry, Mapping[str, Any]]


class Preparer:
    """Prepares one slide after another; close it.

    Args:
        job: where pictures of slides go.
        tiling: likewise.
        settings: what is asked.
        apart: whether in a process that may be lost; the slides then come without an open handle.
    """

    def __init__(self, job: JobFolder, tiling: Tiling, settings: ExtractSettings, *, apart: bool) -> None:
        self.core = 0.0
        """Core seconds that were spent in the other process."""
        self._prepare = partial(prepare, job=job, tiling=tiling, settings=settings)
        self._next: _Item | None = None
        self._answers = (
            each(partial(prepared, job, tiling, settings), self._given(), workers=1, seconds=_SECONDS)
            if apart
            else None
        )

    def __call__(self, entry: SlideEntry, parts: Mapping[str, Any]) -> SlideWork:
        """Return a slide that is ready to be read.

        Raises:
            wsi.SlideError: the slide cannot be used; says why and what helps.
            JobError: what `prepare` raises where the job folder cannot be written.
        """
        if self._answers is None:
            return self._prepare(entry, parts=parts)
        self._next = entry, parts
        _, answer = next(self._answers)
        if isinstance(answer, Lost) and answer.kind == "died":
            _, answer = next(self._answers)  # perhaps it was killed from outside
        if isinstance(answer, Done):
            return self._taken(*answer.value)
        if answer.kind == "raised":
            raise RuntimeError(f"a bug while {entry.slide_id} was prepared:\n{answer.trace}")
        what = f"it could not be opened and looked through: {answer.what}"
        mend = "Copy the slide again, check the storage, or leave it out."
        raise wsi.UnreadableSlideError(entry.path.name, what, mend)

    def close(self) -> None:
        """End the process."""
        if isinstance(self._answers, Generator):
            self._answers.close()

    def _given(self) -> Iterator[_Item]:
        """Yield the slide that is asked for: one process takes one after the other."""
        while self._next is not None:
            yield self._next

    def _taken(self, work: SlideWork | Exception, spent: Spent) -> SlideWork:
        spent_elsewhere(spent)
        self.core += spent.core
        if isinstance(work, Exception):
            raise work
        return work


def prepared(
    job: JobFolder, tiling: Tiling, settings: ExtractSettings, item: _Item
) -> tuple[SlideWork | Exception, Spent]:
    """Prepare a slide in a process of its own; return it or what speaks against it, and what that took."""
    end_with(os.getppid())  # nobody would wait for a read that hangs
    entry, parts = item
    with ThreadClock() as clock:
        before = clock.read()
        try:
            work: SlideWork | Exception = prepare(entry, job, tiling, settings, parts)
        except (wsi.SlideError, JobError) as error:
            work = error
        return work, clock.read().since(before)
