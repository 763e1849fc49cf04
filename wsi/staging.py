"""Copies of slides that lie elsewhere, for readers that need a file on this disk: within a cap, shared by all runs.

Only a folder that we made is ever emptied: it holds a marker. Each slide has a folder in it, called by its address and
content, and a lock beside: held together by whoever reads the copy, alone by whoever writes or deletes it. The copies
used longest ago go first. Whoever dies lets go of its locks; what it left half-written is written anew, or deleted.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import gc
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wsi.address import Address
from wsi.errors import UnreadableSlideError
from wsi.ranges import NoRangesError, RemoteError, RemoteFile, RemoteState
from wsi.sources import FileSource, RangeSource, SourceFile

FOLDER, GIGABYTES = "SLIDEMIL_CACHE", "SLIDEMIL_CACHE_GB"
"""Variables that say where copies go, and how many GB they may take."""
_CAP, _MOST = 50.0, 1e9
_MARKER = ".made-by-slidemil"
_PIECE = 8 * 2**20
_TOGETHER = 4


def cache_folder() -> Path:
    """Return where copies go: `SLIDEMIL_CACHE`, else `slidemil` among the user's caches."""
    given = os.environ.get(FOLDER)
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return (Path(given) if given else caches / "slidemil") / "slides"


def cap() -> int:
    """Return how many bytes copies may take."""
    try:
        return int(min(float(os.environ.get(GIGABYTES, _CAP)), _MOST) * 1e9)
    except ValueError:
        return int(_CAP * 1e9)


class _GoneError(UnreadableSlideError):
    """There is no copy."""


class Held:
    """A copy that nobody deletes while this lives; it holds it in another process, too, once it has come there."""

    def __init__(self, path: Path, lock: Path) -> None:
        self.path, self._lock = path, lock
        self._descriptor = _locked(lock, fcntl.LOCK_SH)
        if not path.exists():
            self.let_go()
            raise _GoneError(path.name, "the copy of it on this disk is gone", "Run this slide again.")
        os.utime(lock)  # used just now

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel to another process of ours, and hold it there, too."""
        return Held, (self.path, self._lock)

    def let_go(self) -> None:
        """Let it be deleted."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            self.let_go()


@dataclass(frozen=True)
class Staging:
    """The folder of copies.

    Attributes:
        root: of all of them.
        limit: bytes they may take.
    """

    root: Path
    limit: int

    @classmethod
    def of_user(cls) -> Staging:
        """Return the one that the environment names."""
        return cls(cache_folder(), cap())

    def copy(self, address: Address, state: RemoteState) -> Held:
        """Return a copy of what lies at an address: the one that is there, else a new one.

        Raises:
            wsi.ranges.RemoteError: it cannot be had.
            UnreadableSlideError: there is no room for it, or the folder is none of ours.
        """
        try:
            return self._copy(address, state)
        except OSError as error:
            if error.filename == str(address):  # of the network
                raise
            what = f"it cannot be copied to this disk: {self.root} ({error.strerror})"
            raise UnreadableSlideError(address.name, what, f"Name another folder: {FOLDER}=FOLDER.") from error

    def _copy(self, address: Address, state: RemoteState) -> Held:
        self._claim(address.name)
        # Without a tag nothing tells two contents apart: each copy is then one of its own.
        told = f"{address}\0{state.size}\0{state.tag or uuid.uuid4().hex}"
        name = hashlib.sha256(told.encode("utf-8", "surrogateescape")).hexdigest()[:24]
        path, lock = self.root / name / address.name, self.root / f"{name}.lock"
        while True:
            with contextlib.suppress(_GoneError):  # not there yet, or deleted just now
                return Held(path, lock)
            with _alone(lock):
                if not path.exists():
                    self._write(path, lock, address, state)

    def _write(self, path: Path, lock: Path, address: Address, state: RemoteState) -> None:
        part = path.with_name(f"{path.name}.part")
        with _alone(self.root / ".lock"):
            self._make_room(address, state.size, lock)
            path.parent.mkdir(exist_ok=True)
            with part.open("wb") as file:
                file.truncate(state.size)  # so that others count it
        file_of = RemoteFile.of(address)
        try:
            with part.open("r+b") as file:
                have = 0
                for data in _pieces(file_of, state.size):
                    have += len(data)
                    file.write(data)
                file.flush()
                os.fsync(file.fileno())
            if have != state.size or file_of.state() != state:
                what = "the file was changed while it was copied"
                raise UnreadableSlideError(address.name, what, "Run this slide again.")
            part.replace(path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise

    def _make_room(self, address: Address, size: int, mine: Path) -> None:
        gc.collect()  # slides that nobody can reach any more hold theirs until then
        used = {folder: _size_of(folder) for folder in self.root.iterdir() if folder.is_dir()}
        old = sorted((f.with_name(f"{f.name}.lock") for f in used), key=lambda lock: _time_of(lock))
        total = sum(used.values()) - used.get(mine.with_suffix(""), 0)
        for lock in old:
            if total + size <= self.limit:
                return
            if lock != mine:
                total -= self._delete(lock, used[lock.with_suffix("")])
        if total + size > self.limit:
            what = f"its copy needs {size / 1e9:.2f} GB, and {total / 1e9:.2f} of {self.limit / 1e9:.2f} GB are in use"
            raise UnreadableSlideError(address.name, what, f"Give copies more room: {GIGABYTES}=100.")

    def _delete(self, lock: Path, size: int) -> int:
        """Delete a copy that nobody holds; return the bytes that are free then."""
        try:
            descriptor = _locked(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return 0
        try:
            shutil.rmtree(lock.with_suffix(""))
            return size
        finally:
            os.close(descriptor)

    def _claim(self, slide: str) -> None:
        """Make the folder ours; refuse one that holds what we did not write."""
        self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        marker = self.root / _MARKER
        if marker.exists():
            return
        others = any(path.name not in (".lock", _MARKER) for path in self.root.iterdir())
        if marker.exists():  # written meanwhile: what lies beside it is of a run that came first
            return
        if others:
            what = f"{self.root} holds files that are none of ours, and would be emptied"
            raise UnreadableSlideError(slide, what, f"Name another folder for copies: {FOLDER}=FOLDER.")
        marker.write_text("slidemil keeps copies of slides here and deletes them as it sees fit.\n")


def opened(address: Address) -> SourceFile:
    """Open what lies at an address: in pieces, or a copy of it, held until it is closed, where there are none.

    Raises:
        wsi.ranges.RemoteError: it cannot be had, or there is no room for a copy.
    """
    try:
        source = RangeSource(address)
        source.read(0, 1)
    except NoRangesError:
        try:
            held = Staging.of_user().copy(address, RemoteFile.of(address).state())
        except UnreadableSlideError as error:
            raise RemoteError(errno.ENOSPC, error.what, address, error.mend) from None
        return SourceFile(FileSource(held.path), held.let_go)
    return SourceFile(source)


def _pieces(file: RemoteFile, size: int) -> Iterator[bytes]:
    """Yield a file from its start to its end, several pieces at once where the server gives any."""
    starts = range(0, size, _PIECE)
    try:
        for first in range(0, len(starts), _TOGETHER):
            yield from file.pieces([(a, min(a + _PIECE, size)) for a in starts[first : first + _TOGETHER]])
    except NoRangesError:
        yield from file.whole()


def _size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*") if path.is_file())


def _time_of(lock: Path) -> int:
    try:
        return lock.stat().st_mtime_ns
    except OSError:
        return 0


def _locked(path: Path, how: int) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, how)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    descriptor = _locked(lock, fcntl.LOCK_EX)
    try:
        yield
    finally:
        os.close(descriptor)
