"""Slides are hashed, opened and looked through, here or in a process that may be lost."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator, Mapping
from functools import partial
from typing import Any

import wsi
from wsi.opening import check_regular
from wsi.owner import end_with
from wsi.thread_clock import Spent, ThreadClock, spent_elsewhere

from .config import ExtractSettings
from .errors import JobError
from .jobfolder import JobFolder, Tiling
from .losable import Done, Lost, each
from .manifest import SlideEntry
from .provenance import known_sha256, series_sha256
from .slide_work import SlideWork, prepare

_LIBRARIES = 512 * 2**20
"""Bytes of data that a process holds for its libraries, before there is any slide."""
_LEAVE_OUT = "Copy the slide again, check the storage, or leave it out."
_Item = tuple[SlideEntry, Mapping[str, Any]]
_Answer = tuple[Any, Spent]
_Call = Callable[[], _Answer]


class Preparer:
    """Prepares one slide after another; close it.

    Args:
        job: where pictures of slides go.
        tiling: likewise.
        settings: what is asked.
        apart: whether in a process that may be lost; the slides then come without an open handle.
        stop: asked meanwhile whether the run is over: a slide may take minutes, and a signal wants an end in seconds.
    """

    def __init__(
        self,
        job: JobFolder,
        tiling: Tiling,
        settings: ExtractSettings,
        *,
        apart: bool,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.core = 0.0
        """Core seconds that were spent in the other process."""
        self._job, self._tiling, self._settings = job, tiling, settings
        self._next: _Call | None = None
        memory = int(settings.memory_gb * 1e9) + _LIBRARIES
        how: dict[str, Any] = {"workers": 1, "seconds": settings.slide_timeout, "memory": memory, "stop": stop}
        self._answers = each(_called, self._given(), **how) if apart else None

    def digest(self, entry: SlideEntry) -> str:
        """Return the SHA-256 of a slide; where it is remembered, no byte of the slide is read.

        Raises:
            wsi.SlideError: it is no regular file, or reading it takes too long.
            OSError: it cannot be read.
        """
        entry.path.stat()  # what is not there just now has not failed for good
        check_regular(entry.path)
        known = known_sha256(self._job, entry.slide_id, entry.files)
        if known is not None:
            return known
        if self._answers is None:
            return series_sha256(self._job, entry.slide_id, entry.files)
        return str(self._have(partial(hashed, self._job, entry), entry, "it could not be read whole"))

    def __call__(self, entry: SlideEntry, parts: Mapping[str, Any]) -> SlideWork:
        """Return a slide that is ready to be read.

        Raises:
            wsi.SlideError: the slide cannot be used; says why and what helps.
            JobError: what `prepare` raises where the job folder cannot be written.
        """
        job, tiling, settings = self._job, self._tiling, self._settings
        if self._answers is None:
            return prepare(entry, job, tiling, settings, parts)
        call = partial(prepared, job, tiling, settings, (entry, parts))
        work: SlideWork = self._have(call, entry, "it could not be opened and looked through")
        return work

    def close(self) -> None:
        """End the process."""
        if isinstance(self._answers, Generator):
            self._answers.close()

    def _have(self, call: _Call, entry: SlideEntry, failed: str) -> Any:
        """Have something done in the process, which has nothing else to do; once more where it died."""
        assert self._answers is not None
        self._next = call
        _, answer = next(self._answers)
        if isinstance(answer, Lost) and answer.kind == "died":
            _, answer = next(self._answers)  # perhaps it was killed from outside
        if isinstance(answer, Done):
            return self._taken(*answer.value)
        if answer.kind == "raised":
            raise RuntimeError(f"a bug while {entry.slide_id} was prepared:\n{answer.trace}")
        raise wsi.UnreadableSlideError(entry.path.name, f"{failed}: {answer.what}", _LEAVE_OUT)

    def _given(self) -> Iterator[_Call]:
        """Yield what is to be done: one process does one after the other."""
        while self._next is not None:
            yield self._next

    def _taken(self, found: Any, spent: Spent) -> Any:
        spent_elsewhere(spent)
        self.core += spent.core
        if isinstance(found, Exception):
            raise found
        return found


def prepared(job: JobFolder, tiling: Tiling, settings: ExtractSettings, item: _Item) -> _Answer:
    """Prepare a slide in a process of its own; return it or what speaks against it, and what that took."""
    entry, parts = item
    try:
        return _timed(lambda: prepare(entry, job, tiling, settings, parts), wsi.SlideError, JobError)
    except MemoryError:
        what = f"to open and look through it takes more than {settings.memory_gb:g} GB of memory"
        mend = "Allow more with --memory, or convert it to a tiled pyramid."
        return wsi.UnreadableSlideError(entry.path.name, what, mend), Spent(0.0, 0.0)


def hashed(job: JobFolder, entry: SlideEntry) -> _Answer:
    """Hash a slide in a process of its own; return the hash or why there is none, and what that took."""
    return _timed(lambda: series_sha256(job, entry.slide_id, entry.files), OSError, wsi.SlideError, JobError)


def _called(call: _Call) -> _Answer:
    end_with(os.getppid())  # nobody would wait for a read that hangs
    return call()


def _timed(work: Callable[[], Any], *expected: type[Exception]) -> _Answer:
    """Return what some work gives, or the error of an expected kind that it ends with, and what it took."""
    with ThreadClock() as clock:
        before = clock.read()
        try:
            found = work()
        except expected as error:
            found = error
        return found, clock.read().since(before)
