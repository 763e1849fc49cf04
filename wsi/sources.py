"""Where the bytes of a file come from: this disk, or an address."""

from __future__ import annotations

import io
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from wsi.address import Address
from wsi.errors import FetchError, TileReadError
from wsi.file_identity import FileIdentity
from wsi.ranges import RemoteError, RemoteFile, RemoteState

_BLOCK = 2**20
"""Bytes that are fetched together where little is asked for: tables, and tiles of small levels, lie side by side."""
_KEPT = 64 * 2**20
"""Bytes of such blocks that are kept."""
_GAP = 2**16
"""Bytes between two wanted pieces that are fetched along, rather than asked for twice."""
_LONGEST = 2**23
"""The longest piece that is made of several."""

Identity = FileIdentity | RemoteState


class ByteSource(Protocol):
    """A file that is open; called from several threads."""

    @property
    def path(self) -> Path:
        """Where it lies."""

    @property
    def size(self) -> int:
        """In bytes."""

    @property
    def identity(self) -> Identity:
        """What tells whether it is still the same."""

    def read(self, place: int, size: int) -> bytes:
        """Return the bytes there, fewer at the end. Raises OSError."""

    def fill(self, views: Sequence[memoryview], places: Sequence[int]) -> list[int | OSError]:
        """Read to several places at once; return how many bytes each got, or why none.

        Raises:
            TileReadError: the file was written to since it was opened, or lies elsewhere and does not come.
        """

    def share(self) -> ByteSource:
        """Return the same file, for another to close."""

    def close(self) -> None:
        """Let go of it."""


def open_source(path: Path) -> ByteSource:
    """Open a file.

    Raises:
        OSError: it cannot be opened.
    """
    return RangeSource(path) if isinstance(path, Address) else FileSource(path)


class FileSource:
    """A file on this disk. It stays open: one that is put in its place does no harm, one written over is noticed.

    Args:
        path: of the file.
        descriptor: of the file where it is open already; it is closed with this.
        identity: what the file must be, where it was opened elsewhere before.
    """

    def __init__(self, path: Path, descriptor: int | None = None, identity: FileIdentity | None = None) -> None:
        self.path = path
        self._file: _OpenFile | None = _OpenFile(_open(path) if descriptor is None else descriptor)
        self.identity = FileIdentity.of(self._file.descriptor)
        self.size = self.identity.size
        if identity is not None and identity != self.identity:
            raise _changed(path.name)

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel to another process as the way to open the file there."""
        return _again, (self.path.absolute(), self.identity)

    @property
    def _opened(self) -> _OpenFile:
        file = self._file  # a reference of this thread: the file is closed when the last one is gone
        if file is None:
            raise ValueError(f"{self.path.name}: the slide was closed before all its tiles were read")
        return file

    def read(self, place: int, size: int) -> bytes:
        """Return the bytes there, fewer at the end."""
        return os.pread(self._opened.descriptor, size, place)

    def fill(self, views: Sequence[memoryview], places: Sequence[int]) -> list[int | OSError]:
        """Read to several places, one after the other: the system reads ahead."""
        file = self._opened
        got: list[int | OSError] = []
        for view, place in zip(views, places, strict=True):
            try:
                got.append(os.preadv(file.descriptor, [view], place))
            except OSError as error:
                got.append(error)
        if FileIdentity.of(file.descriptor) != self.identity:
            raise _changed(self.path.name)
        return got

    def share(self) -> FileSource:
        """Return the very same file, for another to close."""
        return FileSource(self.path, os.dup(self._opened.descriptor))

    def close(self) -> None:
        """Let go of the file; reads that run in other threads end first."""
        self._file = None


def _again(path: Path, identity: FileIdentity) -> FileSource:
    try:
        return FileSource(path, None, identity)
    except OSError as error:
        what = f"the file cannot be opened again ({error.strerror})"
        raise TileReadError(path.name, what, "Check the path.") from error


class _OpenFile:
    """A file descriptor that is closed when nobody holds it any more."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def __del__(self) -> None:
        os.close(self.descriptor)


def _open(path: Path) -> int:
    return os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))


def _changed(name: str) -> TileReadError:
    return TileReadError(name, "the file was changed while it was read", "Run this slide again.")


class RangeSource:
    """A file behind an address: pieces of it are fetched when they are needed, those side by side at once.

    Args:
        path: the address.
        identity: what must lie there, where it was opened elsewhere before.
    """

    def __init__(self, path: Address, identity: RemoteState | None = None) -> None:
        self.path = path
        self._file = RemoteFile.of(path)
        self.identity = self._file.state()
        if identity is not None and identity != self.identity:
            raise _changed(path.name)
        self.size = self.identity.size
        self._blocks: OrderedDict[int, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel to another process as the way to ask for the file there."""
        return _ask_again, (self.path, self.identity)

    @property
    def file(self) -> RemoteFile:
        """What asks for it."""
        return self._file

    def read(self, place: int, size: int) -> bytes:
        """Return the bytes there, fewer at the end; whole blocks are fetched and kept."""
        end = min(place + size, self.size)
        if place >= end:
            return b""
        first, last = place // _BLOCK, (end - 1) // _BLOCK
        with self._lock:
            known = {number: self._blocks[number] for number in range(first, last + 1) if number in self._blocks}
        for begin, stop in _runs([number for number in range(first, last + 1) if number not in known]):
            (data,) = self._file.pieces([(begin * _BLOCK, min((stop + 1) * _BLOCK, self.size))])
            for number in range(begin, stop + 1):
                known[number] = data[(number - begin) * _BLOCK : (number - begin + 1) * _BLOCK]
        self._keep(known)
        whole = known[first] if first == last else b"".join(known[number] for number in range(first, last + 1))
        return whole[place - first * _BLOCK : end - first * _BLOCK]

    def _keep(self, blocks: dict[int, bytes]) -> None:
        with self._lock:
            for number, data in blocks.items():
                self._blocks[number] = data
                self._blocks.move_to_end(number)
            while len(self._blocks) * _BLOCK > _KEPT:
                self._blocks.popitem(last=False)

    def fill(self, views: Sequence[memoryview], places: Sequence[int]) -> list[int | OSError]:
        """Read to several places: neighbors in one piece, all pieces together.

        Raises:
            FetchError: the network does not give them; none of them is damaged for all we know.
        """
        wanted = sorted(
            (place, min(place + len(view), self.size), number)
            for number, (view, place) in enumerate(zip(views, places, strict=True))
            if len(view)
        )
        got: list[int | OSError] = [0] * len(views)
        groups = joined(wanted)
        try:
            fetched = self._file.pieces([(group[0][0], max(end for _, end, _ in group)) for group in groups])
        except RemoteError as error:
            raise fetch_error(error) from None
        for group, data in zip(groups, fetched, strict=True):
            start = group[0][0]
            for place, end, number in group:
                views[number][: end - place] = data[place - start : end - start]
                got[number] = end - place
        return got

    def share(self) -> RangeSource:
        """Return itself: there is nothing to close."""
        return self

    def close(self) -> None:
        """Do nothing: others may read on."""


def _ask_again(path: Address, identity: RemoteState) -> RangeSource:
    try:
        return RangeSource(path, identity)
    except RemoteError as error:
        raise fetch_error(error) from None


def fetch_error(error: RemoteError) -> FetchError:
    """Return the error of a slide for one of the network."""
    return FetchError(Path(error.filename).name, f"{error.filename}: {error.strerror}", error.mend)


def joined(wanted: Sequence[tuple[int, int, int]]) -> list[list[tuple[int, int, int]]]:
    """Group pieces (start, end, number), sorted by start, that are best fetched as one."""
    groups: list[list[tuple[int, int, int]]] = []
    stop = 0
    for piece in wanted:
        near = groups and piece[0] - stop <= _GAP and max(stop, piece[1]) - groups[-1][0][0] <= _LONGEST
        if near:
            groups[-1].append(piece)
            stop = max(stop, piece[1])
        else:
            groups.append([piece])
            stop = piece[1]
    return groups


def _runs(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """Return the first and last of each run of numbers that follow one another."""
    runs: list[tuple[int, int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1] = runs[-1][0], number
        else:
            runs.append((number, number))
    return runs


class SourceFile(io.RawIOBase):
    """A source as a file object, for libraries that want one; it has the name of the slide, and no path.

    Args:
        source: stays open.
        closed: called when this is closed.
    """

    def __init__(self, source: ByteSource, closed: Callable[[], object] | None = None) -> None:
        self._source, self._place, self._then = source, 0, closed
        self.name = source.path.name

    def close(self) -> None:
        """Let go of it."""
        if not self.closed and self._then is not None:
            self._then()
        super().close()

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return where the next read begins."""
        return self._place

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a place."""
        self._place = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._source.size}[whence]
        return self._place

    def readinto(self, buffer: Any) -> int:
        """Read as much as fits."""
        data = self._source.read(self._place, len(buffer))
        buffer[: len(data)] = data
        self._place += len(data)
        return len(data)
