"""Slides are hashed, opened, looked through and counted, here or in a process that may be lost."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from functools import partial
from typing import Any

import wsi
from wsi.opening import check_regular
from wsi.owner import end_with
from wsi.thread_clock import Spent, ThreadClock, spent_elsewhere

from .config import ExtractSettings
from .counting import tiles_of
from .errors import JobError
from .jobfolder import JobFolder, Tiling
from .losable import Done, Lost, each
from .manifest import SlideEntry
from .provenance import known_sha256, series_sha256
from .slide_work import SlideWork, prepare
from .timing import StageClock

_LIBRARIES = 512 * 2**20
"""Bytes of data that a process holds for its libraries, before there is any slide."""
_CHUNK = 1 << 20
"""Bytes that are hashed between two looks at the clock."""
_LEAVE_OUT = "Copy the slide again, check the storage, or leave it out."
_Item = tuple[SlideEntry, Mapping[str, Any]]
_Answer = tuple[Any, Spent]
_Call = Callable[[], _Answer]


class LateError(wsi.UnreadableSlideError):
    """Something took longer with a slide than it may."""


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
        self.seconds = settings.slide_timeout
        """The most that each of the calls below may take, where another process does it."""
        self._next: _Call | None = None
        memory = int(settings.memory_gb * 1e9) + _LIBRARIES
        how: dict[str, Any] = {"workers": 1, "seconds": lambda _: self.seconds, "memory": memory, "stop": stop}
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

    def hash_some(self, entry: SlideEntry, seconds: float) -> StageClock:
        """Hash a slide's files until the time is over; return how many bytes that were, and what they took.

        Raises:
            LateError: not even a piece of it could be read.
            wsi.SlideError: it is no regular file.
            OSError: it cannot be read.
        """
        if self._answers is None:
            return hash_some(entry, seconds)
        clock: StageClock = self._have(partial(hashed_in_part, entry, seconds), entry, "it could not be read")
        return clock

    def count(self, entry: SlideEntry) -> int:
        """Return how many tiles a slide has.

        Raises:
            LateError: looking takes too long.
            wsi.SlideError: the slide cannot be used.
        """
        if self._answers is None:
            return tiles_of(entry, self._settings)
        return int(self._have(partial(counted, self._settings, entry), entry, "it could not be looked through"))

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
        kind = LateError if answer.kind == "late" else wsi.UnreadableSlideError
        raise kind(entry.path.name, f"{failed}: {answer.what}", _LEAVE_OUT)

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
    return _within(settings, entry, lambda: prepare(entry, job, tiling, settings, parts))


def counted(settings: ExtractSettings, entry: SlideEntry) -> _Answer:
    """Count a slide's tiles in a process of its own; return them or what speaks against it, and what that took."""
    return _within(settings, entry, lambda: tiles_of(entry, settings))


def _within(settings: ExtractSettings, entry: SlideEntry, work: Callable[[], Any]) -> _Answer:
    """Do some work with a slide's pixels, for which memory may not suffice."""
    try:
        return _timed(work, wsi.SlideError, JobError)
    except MemoryError:
        what = f"to open and look through it takes more than {settings.memory_gb:g} GB of memory"
        mend = "Allow more with --memory, or convert it to a tiled pyramid."
        return wsi.UnreadableSlideError(entry.path.name, what, mend), Spent(0.0, 0.0)


def hash_some(entry: SlideEntry, seconds: float) -> StageClock:
    """Hash a slide's files until the time is over: what a byte costs is known then."""
    check_regular(entry.path)
    ends, clock, digest = time.monotonic() + seconds, StageClock(), hashlib.sha256()
    for path in entry.files:
        with path.open("rb") as file:
            while time.monotonic() < ends:
                before = file.tell()
                with clock.of(0):
                    digest.update(file.read(_CHUNK))
                clock.things += file.tell() - before
                if file.tell() == before:
                    break
    return clock


def hashed_in_part(entry: SlideEntry, seconds: float) -> _Answer:
    """Hash some of a slide in a process of its own, and load what its first slide would load: no slide's cost."""
    import scipy.ndimage

    import wsi.outlines
    import wsi.readers.openslide
    import wsi.readers.tiff

    from . import pictures

    assert scipy.ndimage, pictures
    return _timed(lambda: hash_some(entry, seconds), OSError, wsi.SlideError)


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
