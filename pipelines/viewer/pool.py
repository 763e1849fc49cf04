"""Open slides, a few of them: opened when first looked at, closed when others need the room and nobody reads."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import wsi
from pipelines.manifest import SlideEntry
from wsi.remote_path import RemotePath

from .pyramid import Zoomed

MOST = 8
"""Slides that stay open."""


class SlideGoneError(Exception):
    """A slide cannot be shown: says what was found and what helps."""


@dataclass
class _Held:
    """One open slide and how many read it now."""

    zoomed: Zoomed
    version: str
    readers: int = 0


@dataclass
class SlidePool:
    """Slides by name.

    Attributes:
        open_slide: opens one.
        most: that stay open; more only while more are read at once.
    """

    open_slide: Callable[[SlideEntry], wsi.Slide]
    most: int = MOST
    _held: OrderedDict[str, _Held] = field(default_factory=OrderedDict, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)
    _opening: dict[str, threading.Lock] = field(default_factory=dict, init=False)

    def __len__(self) -> int:
        """Return how many are open."""
        return len(self._held)

    @contextmanager
    def lease(self, entry: SlideEntry) -> Iterator[Zoomed]:
        """Keep a slide open while the block runs; several threads may read it at once.

        Raises:
            SlideGoneError: it is not where it was, or cannot be opened.
        """
        with self._lock:
            mine = self._opening.setdefault(entry.slide_id, threading.Lock())
        with mine:  # who comes second waits until it is open
            held = self._taken(entry)
        try:
            yield held.zoomed
        finally:
            with self._lock:
                held.readers -= 1
                gone = [] if held is self._held.get(entry.slide_id) or held.readers else [held]
                gone += self._surplus()
            _close(gone)

    def close(self) -> None:
        """Close all."""
        with self._lock:
            gone = list(self._held.values())
            self._held.clear()
        _close(gone)

    def _taken(self, entry: SlideEntry) -> _Held:
        version = version_of(entry)
        with self._lock:
            held = self._held.get(entry.slide_id)
            if held is not None and held.version == version:
                self._held.move_to_end(entry.slide_id)
                held.readers += 1
                return held
        try:
            opened = _Held(Zoomed(self.open_slide(entry)), version, readers=1)
        except wsi.SlideError as error:
            raise SlideGoneError(str(error)) from error
        with self._lock:
            old = self._held.pop(entry.slide_id, None)  # of an older file; who still reads it closes it
            self._held[entry.slide_id] = opened
            gone = [old] if old is not None and not old.readers else []
            gone += self._surplus()
        _close(gone)
        return opened

    def _surplus(self) -> list[_Held]:
        """Take out those that are too many, the longest unread first; the lock is held."""
        over = max(0, len(self._held) - self.most)
        idle = [name for name, held in self._held.items() if not held.readers][:over]
        return [self._held.pop(name) for name in idle]


def version_of(entry: SlideEntry) -> str:
    """Return what changes when the file of a slide does.

    Raises:
        SlideGoneError: it is not where it was.
    """
    if isinstance(entry.path, RemotePath):
        return ""
    try:
        facts = os.stat(entry.path)  # noqa: PTH116 - a path of any kind
    except OSError as error:
        raise SlideGoneError(
            f"{entry.slide_id}: {entry.path} cannot be read ({error.strerror}). Put the slide back, or say where the "
            "slides lie now: slidemil serve JOB --slides FOLDER"
        ) from error
    return f"{facts.st_ino:x}-{facts.st_size:x}-{facts.st_mtime_ns:x}"


def _close(gone: list[_Held]) -> None:
    for held in gone:
        held.zoomed.slide.close()
