"""Tiles straight from a TIFF file: one read for the compressed bytes, libjpeg-turbo for the pixels.

Only what is surely understood is taken: tiled JPEG of three 8-bit samples. At opening, tiles are compared with what
the slide's own reader shows; where they differ, nothing is read this way.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass, field

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from wsi.errors import TileReadError
from wsi.jpeg_header import read_header
from wsi.readers.base import BaseSlide, FileIdentity
from wsi.tiff_directory import (
    BITS,
    COMPRESSION,
    JPEG_TABLES,
    PHOTOMETRIC,
    PLANAR,
    TILE_HEIGHT,
    TILE_WIDTH,
    Directory,
    TiffFile,
    TiffProblemError,
    pieces_expected,
)

_JPEG, _RGB, _YCBCR = 7, 2, 6
_START, _END = b"\xff\xd8", b"\xff\xd9"
_ADOBE = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00"
"""The marker that names a stream's colours, but for its last byte."""

SCALES = (8, 4, 2, 1)
"""By what libjpeg can reduce while it decodes."""

_SAME = 2
"""Grey levels by which decoders of one family may differ."""
_BOX, _ALIKE = 32, 6
"""Means over boxes of so many px may differ by so many grey levels, where the reference lies between its pixels."""


@dataclass
class NativeLevel:
    """The compressed tiles of one level, row by row.

    Attributes:
        number: the level of the slide.
        width: of the level, px; `height` likewise.
        tile_width: of a tile, px; `tile_height` likewise.
        offsets: (N,) int64, where each tile lies in the file.
        counts: (N,) int64, its bytes; 0 where the scanner left the tile out.
        tables: the JPEG tables that all tiles share, without the end marker.
        colour: the Adobe marker for streams that do not name their colours.
    """

    number: int
    width: int
    height: int
    tile_width: int
    tile_height: int
    offsets: NDArray[np.int64]
    counts: NDArray[np.int64]
    tables: bytes
    colour: bytes
    _seen: tuple[bytes, bytes] | None = field(default=None, init=False)

    @property
    def across(self) -> int:
        """Tiles per row of tiles."""
        return -(-self.width // self.tile_width)

    @property
    def room(self) -> int:
        """Bytes to be left free in front of a tile's own, where what it lacks is put."""
        return len(self.tables) + len(self.colour)

    def decode(self, data: memoryview, scale: int = 1, into: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
        """Return the pixels of a tile, reduced by `scale`: a view that lasts until this thread decodes again.

        Args:
            data: `room` bytes to be written to, then the tile as it lies in the file.
            scale: one of `SCALES`.
            into: where to put the pixels instead, contiguous and as large as they are.

        Raises:
            ValueError: the bytes are no whole JPEG of the size that the tags state.
        """
        room, seen = self.room, self._seen  # the tiles of a level differ in their pixels, rarely in their headers
        if seen is None or data[room : room + len(seen[0])] != seen[0]:
            seen = self._seen = self._look_at(bytes(data[room:]))
        if _END not in bytes(data[max(room, len(data) - 64) :]):
            raise ValueError("the JPEG has no end: it is cut short or overwritten")
        begin = room + len(_START) - len(seen[1])
        data[begin : begin + len(seen[1])] = seen[1]
        height, width = self.tile_height // scale, self.tile_width // scale
        memory = spare_memory("decoded", 3 * height * width) if into is None else into
        try:
            pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(
                data[begin:], min_height=height, min_width=width, buffer=memory
            )
        except Exception as error:  # the border: whatever the library raises, also for what it only warns of
            raise ValueError(str(error)) from error.with_traceback(None)
        if pixels.shape != (height, width, 3):
            raise ValueError(f"the decoder gave {pixels.shape[1]} x {pixels.shape[0]} px")
        return pixels

    def _look_at(self, data: bytes) -> tuple[bytes, bytes]:
        header = read_header(data)
        if (header.width, header.height, header.components) != (self.tile_width, self.tile_height, 3):
            raise ValueError(f"the tile holds a JPEG of {header.width} x {header.height} px")
        return data[: header.length], self.tables + (b"" if header.colour else self.colour)


class NativeTiles:
    """The compressed tiles of a slide, level by level; None for a level that must be read otherwise.

    The file stays open: one that is put in its place does no harm, and one that is written over is noticed.
    """

    def __init__(self, name: str, levels: tuple[NativeLevel | None, ...], descriptor: int) -> None:
        self.name = name
        self.levels = levels
        self._file: _OpenFile | None = _OpenFile(descriptor)
        self._identity = FileIdentity.of(descriptor)

    def fetch(self, level: NativeLevel, tiles: list[int] | NDArray[np.int64]) -> list[memoryview | OSError]:
        """Return the bytes of each tile, `level.room` bytes in front, or why there are none.

        Called from several threads; what it returns lasts until the same thread fetches again.

        Raises:
            TileReadError: the file was written to since it was opened.
        """
        file = self._file  # a reference of this thread: the file is closed when the last one is gone
        if file is None:
            raise ValueError(f"{self.name}: the slide was closed before all its tiles were read")
        counts, offsets, room = level.counts[tiles].tolist(), level.offsets[tiles].tolist(), level.room
        memory = spare_memory("compressed", sum(counts) + room * len(counts)).data
        data: list[memoryview | OSError] = []
        end = 0
        for count, offset in zip(counts, offsets, strict=True):
            begin, end = end, end + room + count
            try:
                got = os.preadv(file.descriptor, [memory[begin + room : end]], offset)
            except OSError as error:
                data.append(error)
            else:
                data.append(memory[begin : begin + room + got])
        if FileIdentity.of(file.descriptor) != self._identity:
            raise TileReadError(self.name, "the file was changed while it was read", "Run this slide again.")
        return data

    def close(self) -> None:
        """Let go of the file; reads that run in other threads end first."""
        self._file = None


class _OpenFile:
    """A file descriptor that is closed when nobody holds it any more."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def __del__(self) -> None:
        os.close(self.descriptor)


def native_tiles(slide: BaseSlide) -> NativeTiles | None:
    """Return the compressed tiles of a slide in a TIFF file, None where no level can be read that way."""
    try:
        with TiffFile(slide.path) as tiff:
            levels = () if tiff.is_ndpi else tuple(_level(tiff, slide, n) for n in range(len(slide.levels)))
            if not any(levels):
                return None
            native = NativeTiles(slide.name, levels, tiff.duplicate())
    except (TiffProblemError, OSError):
        return None
    native.levels = tuple(one if one is not None and _agrees(native, one, slide) else None for one in levels)
    if any(native.levels):
        return native
    native.close()
    return None


def _level(tiff: TiffFile, slide: BaseSlide, number: int) -> NativeLevel | None:
    """Return the tiles of a level; None where it is unclear which directory holds it, or it is of another kind."""
    level = slide.levels[number]
    candidates = [d for d in tiff.every() if (d.width, d.height) == (level.width, level.height)]
    if len(candidates) != 1 or not _is_plain(candidates[0]):
        return None
    directory = candidates[0]
    pieces = pieces_expected(directory)
    offsets, counts = (values[:pieces].astype(np.int64) for values in directory.places)
    if number and not counts.all():
        return None  # OpenSlide fills such gaps from sharper levels
    tables = directory.numbers(JPEG_TABLES).tobytes()
    rgb = directory.number(PHOTOMETRIC, _RGB) == _RGB
    return NativeLevel(
        number=number,
        width=level.width,
        height=level.height,
        tile_width=directory.number(TILE_WIDTH, 0),
        tile_height=directory.number(TILE_HEIGHT, 0),
        offsets=offsets,
        counts=counts,
        tables=tables.removesuffix(_END) if tables.startswith(_START) else _START,
        colour=_ADOBE + (b"\0" if rgb else b"\1"),
    )


def _is_plain(directory: Directory) -> bool:
    bits = directory.numbers(BITS)
    return (
        directory.tiled
        and directory.number(COMPRESSION, 1) == _JPEG
        and directory.number(PHOTOMETRIC, _RGB) in (_RGB, _YCBCR)
        and directory.samples == 3
        and directory.number(PLANAR, 1) == 1
        and bool(len(bits) and (bits == 8).all())
    )


def _agrees(native: NativeTiles, level: NativeLevel, slide: BaseSlide) -> bool:
    """Say whether the fullest tile, and on level 0 the last one, look as the slide's own reader shows them."""
    full = level.counts.nonzero()[0]
    tiles = [int(level.counts.argmax()), int(full[-1])] if len(full) else []
    compared = 0
    for tile in tiles[:1] if level.number else tiles:
        try:
            (data,) = native.fetch(level, [tile])
            if isinstance(data, OSError):
                continue
            ours = level.decode(data)
            wanted, ours = _reference(slide, level, tile, ours)
        except (ValueError, TileReadError):
            continue  # damaged: says nothing about the others
        if not _alike(ours, wanted, exact=slide.levels[level.number].downsample == (1.0, 1.0)):
            return False
        compared += 1
    return compared > 0


def _reference(
    slide: BaseSlide, level: NativeLevel, tile: int, ours: NDArray[np.uint8]
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return the reader's pixels of a tile, and ours, both without what lies beyond the picture."""
    x, y = tile % level.across * level.tile_width, tile // level.across * level.tile_height
    width, height = min(level.tile_width, level.width - x), min(level.tile_height, level.height - y)
    dx, dy = slide.levels[level.number].downsample
    return slide.read(round(x * dx), round(y * dy), width, height, level=level.number), ours[:height, :width]


def _alike(one: NDArray[np.uint8], other: NDArray[np.uint8], *, exact: bool) -> bool:
    if exact:
        return int(np.abs(one.astype(np.int16) - other).max()) <= _SAME
    return bool(np.abs(_box_means(one) - _box_means(other)).max() <= _ALIKE)


def _box_means(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    height, width = (max(1, side // _BOX) for side in pixels.shape[:2])
    tall, wide = min(_BOX, pixels.shape[0]), min(_BOX, pixels.shape[1])
    boxes = pixels[: height * tall, : width * wide].reshape(height, tall, width, wide, 3)
    return np.asarray(boxes.mean((1, 3)), np.float64)


_spare = threading.local()


def spare_memory(purpose: str, size: int) -> NDArray[np.uint8]:
    """Return this thread's bytes for a purpose: new memory for each tile would cost more than the copies."""
    memory: NDArray[np.uint8] | None = getattr(_spare, purpose, None)
    if memory is None or memory.size < size:
        memory = np.empty(size, np.uint8)
        setattr(_spare, purpose, memory)
    return memory[:size]
