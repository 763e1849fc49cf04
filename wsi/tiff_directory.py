"""The directories of a TIFF file, read without any pixel, and what is wrong with them.

Readers trust what these tables say: a loop hangs them, an absurd size makes them end the process, and places beyond
the end of the file show only at the first read. This file looks first; it costs about a millisecond.

Source: TIFF 6.0 (Adobe 1992); BigTIFF as in libtiff 4.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from wsi.sources import ByteSource, open_source

MOST_DIRECTORIES = 1000
MOST_PIXELS = 2**40
"""Of one level."""
MOST_TILE_PIXELS = 2**26
"""Of one tile: it is decoded whole."""
LONGEST_TEXT = 16 * 2**20

_TYPES = {
    1: "u1", 2: "u1", 3: "u2", 4: "u4", 5: "u4", 6: "i1", 7: "u1", 8: "i2", 9: "i4", 10: "i4",
    11: "f4", 12: "f8", 13: "u4", 16: "u8", 17: "i8", 18: "u8",
}  # fmt: skip
_RATIONAL = {5, 10}

WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, DESCRIPTION = 256, 257, 258, 259, 262, 270
STRIP_OFFSETS, SAMPLES, ROWS_PER_STRIP, STRIP_COUNTS = 273, 277, 278, 279
PLANAR, SOFTWARE, TILE_WIDTH, TILE_HEIGHT, TILE_OFFSETS, TILE_COUNTS = 284, 305, 322, 323, 324, 325
SUB_DIRECTORIES, JPEG_TABLES, XMP, NDPI_FLAG = 330, 347, 700, 65420


class TiffProblemError(Exception):
    """What is wrong with the directories, in words for the user."""


@dataclass(frozen=True)
class Tag:
    """One entry: where its values lie, and how many of which type."""

    kind: int
    count: int
    place: int
    size: int


@dataclass
class Directory:
    """One image of the file (IFD)."""

    file: TiffFile
    offset: int
    tags: dict[int, Tag]
    children: list[Directory] = field(default_factory=list)

    def numbers(self, tag: int) -> NDArray[Any]:
        """Return the values of a tag, empty where it is absent."""
        entry = self.tags.get(tag)
        return np.empty(0, np.uint8) if entry is None else self.file.values(entry)

    def number(self, tag: int, default: int) -> int:
        """Return the first value of a tag as an integer."""
        values = self.whole_numbers(tag)
        return int(values[0]) if len(values) else default

    def whole_numbers(self, tag: int) -> NDArray[Any]:
        """Return the values of a tag that counts something.

        Raises:
            TiffProblemError: they are fractions or floats.
        """
        values = self.numbers(tag)
        entry = self.tags.get(tag)
        if not np.issubdtype(values.dtype, np.integer) or (entry and entry.kind in _RATIONAL):
            raise TiffProblemError(f"tag {tag} holds no whole numbers")
        return values

    @cached_property
    def description(self) -> str:
        """The text of ImageDescription, "" where there is none."""
        return self.numbers(DESCRIPTION).tobytes().split(b"\0")[0].decode("utf-8", "replace")

    @property
    def width(self) -> int:
        """In pixels; 0 where the tag is missing."""
        return self.number(WIDTH, 0)

    @property
    def height(self) -> int:
        """In pixels; 0 where the tag is missing."""
        return self.number(HEIGHT, 0)

    @property
    def tiled(self) -> bool:
        """Whether the pixels lie in tiles rather than in strips of rows."""
        return TILE_OFFSETS in self.tags or TILE_WIDTH in self.tags

    @property
    def samples(self) -> int:
        """Channels per pixel."""
        return self.number(SAMPLES, 1)

    @cached_property
    def places(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """Offsets and byte counts of the tiles or strips."""
        tags = (TILE_OFFSETS, TILE_COUNTS) if self.tiled else (STRIP_OFFSETS, STRIP_COUNTS)
        return self.whole_numbers(tags[0]), self.whole_numbers(tags[1])


class TiffFile:
    """The chain of directories of a file, which stays open until `close`.

    Args:
        file: its path, or the file where it is open already; that stays open.

    Raises:
        TiffProblemError: the chain cannot be followed: no directory, a loop, too many, or places beyond the end.
        OSError: the file cannot be read.
    """

    def __init__(self, file: Path | ByteSource) -> None:
        self._source = open_source(file) if isinstance(file, Path) else file.share()
        try:
            self.size = self._source.size
            self._seen: set[int] = set()
            self._read_header()
            self.directories = list(self._chain(self._first, depth=0))
            if not self.directories:
                raise TiffProblemError("a TIFF header with no image behind it")
            self._check()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let go of the file; tags can no longer be read."""
        self._source.close()

    def share(self) -> ByteSource:
        """Return the very same file, for the caller to close."""
        return self._source.share()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _check(self) -> None:
        for directory in self.every():
            _check_shape(directory)
            # NDPI files over 4 GB keep the upper half of each place elsewhere: OpenSlide knows where.
            if not (self.is_ndpi and self.size >= 2**32):
                _check_places(directory, self.size)

    @property
    def big(self) -> bool:
        """Whether places are 64 bits wide (BigTIFF)."""
        return self._big

    @property
    def is_ndpi(self) -> bool:
        """Whether a Hamamatsu scanner wrote it."""
        return NDPI_FLAG in self.directories[0].tags

    def every(self) -> Iterator[Directory]:
        """Each directory, sub-directories after their parent."""
        for directory in self.directories:
            yield directory
            yield from directory.children

    def read(self, place: int, size: int) -> bytes:
        """Return `size` bytes at `place`.

        Raises:
            TiffProblemError: they lie beyond the end of the file.
        """
        data = self._source.read(place, size) if place + size <= self.size else b""
        if len(data) < size:
            what = f"a table at byte {place:,} lies beyond the end of the file"
            raise TiffProblemError(f"it is cut short: {what} ({self.size:,} bytes)")
        return data

    def values(self, tag: Tag) -> NDArray[Any]:
        """Return a tag's values; rationals as pairs."""
        return np.frombuffer(self.read(tag.place, tag.size), np.dtype(self._order + _TYPES[tag.kind]))

    def _read_header(self) -> None:
        head = self.read(0, 8)
        self._order = {b"II": "<", b"MM": ">"}[head[:2]]
        self._big: bool = struct.unpack(self._order + "H", head[2:4])[0] == 43
        if self._big:
            self._first = struct.unpack(self._order + "Q", self.read(8, 8))[0]
        else:
            self._first = struct.unpack(self._order + "I", head[4:8])[0]

    def _chain(self, offset: int, *, depth: int) -> Iterator[Directory]:
        while offset:
            if offset in self._seen:
                raise TiffProblemError("its directories form a loop")
            if len(self._seen) >= MOST_DIRECTORIES:
                raise TiffProblemError(f"it holds more than {MOST_DIRECTORIES:,} directories")
            self._seen.add(offset)
            directory, offset = self._directory(offset)
            if depth == 0 and SUB_DIRECTORIES in directory.tags:
                for child in directory.whole_numbers(SUB_DIRECTORIES):
                    directory.children.extend(self._chain(int(child), depth=1))
            yield directory
            if depth:
                return  # a sub-directory's successor belongs to no pyramid

    def _directory(self, offset: int) -> tuple[Directory, int]:
        order, big = self._order, self._big
        head, entry, inline = (8, 20, 8) if big else (2, 12, 4)
        count = struct.unpack(order + ("Q" if big else "H"), self.read(offset, head))[0]
        if count > 4096:
            raise TiffProblemError(f"a directory claims {count:,} entries")
        table = self.read(offset + head, count * entry + inline)
        tags: dict[int, Tag] = {}
        for i in range(count):
            code, kind, n = struct.unpack_from(order + ("HHQ" if big else "HHI"), table, i * entry)
            if kind not in _TYPES:
                continue
            size = n * np.dtype(_TYPES[kind]).itemsize * (2 if kind in _RATIONAL else 1)
            place = offset + head + i * entry + entry - inline
            if size > inline:
                place = struct.unpack_from(order + ("Q" if big else "I"), table, (i + 1) * entry - inline)[0]
            tags[code] = Tag(kind, n, place, size)
        following = struct.unpack_from(order + ("Q" if big else "I"), table, count * entry)[0]
        return Directory(self, offset, tags), following


def _check_shape(directory: Directory) -> None:
    width, height = directory.width, directory.height
    if width <= 0 or height <= 0:
        raise TiffProblemError(f"a directory states a size of {width} x {height} pixels")
    if width * height > MOST_PIXELS:
        raise TiffProblemError(f"it claims {width:,} x {height:,} pixels, more than any slide has")
    if not 1 <= directory.samples <= 256:
        raise TiffProblemError(f"it claims {directory.samples:,} channels per pixel")
    if directory.tiled:
        tile = directory.number(TILE_WIDTH, 0), directory.number(TILE_HEIGHT, 0)
        if min(tile) <= 0:
            raise TiffProblemError("it does not state how large its tiles are")
        if tile[0] * tile[1] > MOST_TILE_PIXELS:
            raise TiffProblemError(f"it claims tiles of {tile[0]:,} x {tile[1]:,} pixels")
    text = directory.tags.get(DESCRIPTION)
    if text is not None and text.size > LONGEST_TEXT:
        raise TiffProblemError(f"its description claims {text.size:,} bytes")


def pieces_expected(directory: Directory) -> int:
    """Return how many tiles or strips the image needs."""
    if directory.tiled:
        across = math.ceil(directory.width / directory.number(TILE_WIDTH, 1))
        pieces = across * math.ceil(directory.height / directory.number(TILE_HEIGHT, 1))
    else:
        rows = directory.number(ROWS_PER_STRIP, directory.height) or directory.height
        pieces = math.ceil(directory.height / min(rows, directory.height))
    return pieces * (directory.samples if directory.number(PLANAR, 1) == 2 else 1)


def _check_places(directory: Directory, size: int) -> None:
    expected = pieces_expected(directory)
    offsets, counts = directory.places
    word = "tiles" if directory.tiled else "strips"
    if len(offsets) < expected or len(counts) < expected:
        held = min(len(offsets), len(counts))
        raise TiffProblemError(f"its table names {held:,} of {expected:,} {word}: the places of the others are lost")
    offsets, counts = offsets[:expected], counts[:expected]
    ends = offsets.astype(np.uint64) + counts.astype(np.uint64)
    beyond = int(((ends > size) & (counts > 0)).sum())
    if beyond:
        raise TiffProblemError(
            f"it is cut short: {beyond:,} of {expected:,} {word} of the {directory.width} x {directory.height} image "
            f"lie beyond the end of the file ({size:,} bytes)"
        )
