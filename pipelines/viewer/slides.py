"""Slides as the server sees them: asked of a process that may be lost, never opened here.

A library that aborts on a crafted or damaged file, or hangs on it, ends the process that reads, not the server. Who
was asking then is asked again, one slide at a time in a process apart: that tells which slide did it. This one is then
refused with what was found; the others are read on.
"""

from __future__ import annotations

import json
import pickle
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import EnvironmentFault
from pipelines.manifest import SlideEntry
from wsi.reader_process import ReaderProcess

from .pool import SlideGoneError, version_of
from .reading import PICTURE

if TYPE_CHECKING:
    from pipelines.reread import SlideTiles

SECONDS = 120.0
"""The most that one answer may take."""
REFUSED_SECONDS = 600.0
"""So long a slide that ended its reader is not opened again."""
_SERVE = "import sys; from pipelines.viewer.reading import main; main(*map(int, sys.argv[1:]), {})"


@dataclass
class Slides:
    """Asks for what slides show.

    Attributes:
        icc: how slides are opened, see `wsi.open_slide`.
        slide_mpp: likewise.
        seconds: the most that one answer may take.
    """

    icc: str = "none"
    slide_mpp: float | None = None
    seconds: float = SECONDS
    _process: ReaderProcess | None = field(default=None, init=False)
    _apart: ReaderProcess | None = field(default=None, init=False)
    _waiting: int = field(default=0, init=False)
    _closed: bool = field(default=False, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)
    _one_by_one: threading.Lock = field(default_factory=threading.Lock, init=False)
    _refused: dict[tuple[str, str], tuple[str, float]] = field(default_factory=dict, init=False)

    def begin(self) -> None:
        """Start the process that reads; who asks waits until it serves."""
        with self._lock:
            self._process = self._new()

    def wait(self) -> None:
        """Wait until it serves.

        Raises:
            EnvironmentFault: it cannot be started.
        """
        self._reader()

    def tile(self, entry: SlideEntry, level: int, column: int, row: int) -> bytes | None:
        """Return a tile of the pyramid as JPEG, None where there is no such place.

        Raises:
            SlideGoneError: the slide is not where it was, cannot be read, or ends what reads it. So do the others.
        """
        return self._picture("tile", entry, level, column, row)

    def crop(self, entry: SlideEntry, box: tuple[int, int, int, int]) -> bytes | None:
        """Return a small picture of (x, y, width, height), level-0 px; None where that is no place of the slide."""
        return self._picture("crop", entry, *box)

    def thumbnail(self, entry: SlideEntry) -> bytes | None:
        """Return a small picture of the whole slide."""
        return self._picture("thumbnail", entry)

    def facts(self, entry: SlideEntry) -> dict[str, Any]:
        """Return `width` and `height` in level-0 px, `top` (the sharpest level) and `mpp` (x and y, or None)."""
        found = self._ask("facts", entry, ())
        assert isinstance(found, dict)
        return found

    def encoded(self, tiles: SlideTiles) -> NDArray[np.uint8]:
        """Return tiles as the encoder saw them, (n, S, S, 3)."""
        found = self._ask("encoded", tiles.entry, (tiles,))
        side = int(tiles.file.attributes["patch_size"])
        return np.frombuffer(found, np.uint8).reshape(-1, side, side, 3)

    def close(self) -> None:
        """End the processes."""
        with self._lock:
            self._closed = True
            ending = [process for process in (self._process, self._apart) if process is not None]
        for process in ending:
            process.kill()
        for process in ending:
            process.ended(2)

    def _picture(self, what: str, entry: SlideEntry, *numbers: int) -> bytes | None:
        found = self._ask(what, entry, numbers)
        return found if isinstance(found, bytes) else None

    def _ask(self, what: str, entry: SlideEntry, numbers: tuple[Any, ...]) -> Any:
        mark = entry.slide_id, version_of(entry)
        message = pickle.dumps((what, entry, numbers))
        self._check(mark)
        try:
            return self._answer(self._reader(), message)
        except EOFError:  # this slide ended the process, or another that was read at the same time
            return self._ask_apart(mark, entry, message)
        except TimeoutError:
            self._refuse(mark, self._late(entry))
            self._check(mark)

    def _ask_apart(self, mark: tuple[str, str], entry: SlideEntry, message: bytes) -> Any:
        with self._lock:
            self._waiting += 1
        try:
            with self._one_by_one:
                self._check(mark)  # it may have been found out while this one waited
                process = self._apart = self._apart if self._apart and self._apart.alive else self._begun()
                try:
                    return self._answer(process, message)
                except EOFError:
                    process.ended(2)
                    self._refuse(mark, f"{entry.slide_id}: what reads it ended ({process.cause}). {_MEND}")
                except TimeoutError:
                    self._refuse(mark, self._late(entry))
                self._check(mark)
        finally:
            with self._lock:
                self._waiting -= 1
                if not self._waiting and self._apart is not None:
                    self._apart.kill()
                    self._apart = None

    def _answer(self, process: ReaderProcess, message: bytes) -> Any:
        """Ask a process; end it where it does not answer in time.

        Raises:
            EOFError: it ended.
            TimeoutError: it was ended.
            SlideGoneError: what it says of the slide.
        """
        wire = process.take_wire()
        try:
            wire.send(message, self.seconds)
            data = wire.receive(self.seconds)
        except TimeoutError:
            process.kill()
            wire.close()
            raise
        except EOFError:
            wire.close()
            raise
        process.give_back(wire)
        if data[:1] == PICTURE:
            return data[1:]
        told = json.loads(data[1:])
        if "error" in told:
            raise SlideGoneError(told["error"])
        if "bug" in told:
            raise RuntimeError(told["bug"])
        return told["found"]

    def _reader(self) -> ReaderProcess:
        with self._lock:
            if self._process is None or not self._process.alive:
                self._process = self._new()
            process = self._process
        return _serving(process)

    def _begun(self) -> ReaderProcess:
        with self._lock:
            process = self._new()
        return _serving(process)

    def _new(self) -> ReaderProcess:
        if self._closed:
            raise SlideGoneError("the viewer ends.")
        given = f"icc={self.icc!r}, slide_mpp={self.slide_mpp!r}"
        return ReaderProcess(None, 0, _SERVE.format(given))

    def _check(self, mark: tuple[str, str]) -> None:
        """Refuse a slide that ended its reader not long ago."""
        told, until = self._refused.get(mark, ("", 0.0))
        if time.monotonic() < until:
            raise SlideGoneError(told)

    def _refuse(self, mark: tuple[str, str], told: str) -> None:
        self._refused[mark] = told, time.monotonic() + REFUSED_SECONDS

    def _late(self, entry: SlideEntry) -> str:
        return f"{entry.slide_id}: no answer in {self.seconds:.0f} s. {_MEND}"


_MEND = f"Copy the slide again, or write it anew; it is tried again in {REFUSED_SECONDS / 60:.0f} minutes."


def _serving(process: ReaderProcess) -> ReaderProcess:
    if not process.begins():
        process.ended(2)
        raise EnvironmentFault(f"no process that reads slides can be started ({process.cause}).")
    return process
