"""Tiles straight from a TIFF file: one read for the compressed bytes, libjpeg-turbo for the pixels.

What is no JPEG is decoded by one of `codecs`. `native_levels` says what of a file is surely understood, and `vote`
compares it at opening with what the slide's own reader shows.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from wsi.jpeg_header import START, has_end, read_header
from wsi.readers.codecs import WORKING_BYTES, Codec
from wsi.sources import ByteSource

SCALES = (8, 4, 2, 1)
"""By what libjpeg can reduce while it decodes."""


@dataclass
class NativeLevel:
    """The compressed tiles of one level, row by row.

    Attributes:
        number: the level of the slide.
        width: of what the tiles show, px of the level; `height` likewise.
        tile_width: of a tile, px; `tile_height` likewise.
        offsets: (N,) int64, where each tile lies in the file.
        counts: (N,) int64, its bytes; 0 where the scanner left the tile out.
        tables: the JPEG tables that all tiles share, without the end marker.
        colour: the Adobe marker for streams that do not name their colours.
        left: where on the level the first tile lies, px; `top` likewise. What lies before it is white.
        codec: decodes tiles that are no JPEG; None for JPEG.
        placed_by_format: whether a format's own rules say where the tiles lie, which other readers may not know.
    """

    number: int
    width: int
    height: int
    tile_width: int
    tile_height: int
    offsets: NDArray[np.int64]
    counts: NDArray[np.int64]
    tables: bytes = b""
    colour: bytes = b""
    left: int = 0
    top: int = 0
    codec: Codec | None = None
    placed_by_format: bool = False
    _seen: tuple[bytes, bytes] | None = field(default=None, init=False)

    @property
    def across(self) -> int:
        """Tiles per row of tiles."""
        return -(-self.width // self.tile_width)

    def origin(self, tile: int) -> tuple[int, int]:
        """Return where a tile lies, (x, y) px of this level."""
        x, y = tile % self.across * self.tile_width, tile // self.across * self.tile_height
        return self.left + x, self.top + y

    def extent(self, tile: int) -> tuple[int, int]:
        """Return (width, height) px of a tile without what lies beyond the picture."""
        x, y = self.origin(tile)
        right, bottom = self.left + self.width, self.top + self.height
        return min(self.tile_width, right - x), min(self.tile_height, bottom - y)

    @property
    def room(self) -> int:
        """Bytes to be left free in front of a tile's own, where what it lacks is put."""
        return len(self.tables) + len(self.colour)

    @property
    def scales(self) -> tuple[int, ...]:
        """By what tiles can be reduced while they are decoded, most first."""
        return SCALES if self.codec is None else self.codec.scales

    def working_bytes(self, scale: int) -> int:
        """Return what decoding one tile takes in memory."""
        pixels = self.tile_width * self.tile_height
        return 3 * pixels // scale**2 if self.codec is None else WORKING_BYTES * pixels

    def decode(self, data: memoryview, scale: int = 1, into: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
        """Return the pixels of a tile, reduced by `scale`: a view that lasts until this thread decodes again.

        Args:
            data: `room` bytes to be written to, then the tile as it lies in the file.
            scale: one of `scales`.
            into: where to put the pixels instead, contiguous and as large as they are.

        Raises:
            ValueError: the bytes are no whole tile of the size that the tags state.
        """
        if self.codec is not None:
            return _put(self.codec.decode(data, scale), into)
        room, seen = self.room, self._seen  # the tiles of a level differ in their pixels, rarely in their headers
        if seen is None or data[room : room + len(seen[0])] != seen[0]:
            seen = self._seen = self._look_at(bytes(data[room:]))
        if not has_end(memoryview(data)[room:]):
            raise ValueError("the JPEG has no end: it is cut short or overwritten")
        begin = room + len(START) - len(seen[1])
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

    Args:
        levels: of the slide.
        source: its open file, closed with this.
    """

    def __init__(self, levels: tuple[NativeLevel | None, ...], source: ByteSource) -> None:
        self.path = source.path
        self.name = source.path.name
        self.levels = levels
        self._source = source

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel to another process as the way to open the file there."""
        return NativeTiles, (self.levels, self._source)

    def fetch(self, level: NativeLevel, tiles: list[int] | NDArray[np.int64]) -> list[memoryview | OSError]:
        """Return the bytes of each tile, `level.room` bytes in front, or why there are none.

        Called from several threads; what it returns lasts until the same thread fetches again.

        Raises:
            TileReadError: the file was written to since it was opened, or lies elsewhere and does not come.
        """
        counts, offsets, room = level.counts[tiles].tolist(), level.offsets[tiles].tolist(), level.room
        memory = spare_memory("compressed", sum(counts) + room * len(counts)).data
        begins, end = [], 0
        for count in counts:
            begins.append(end)
            end += room + count
        views = [memory[begin + room : begin + room + count] for begin, count in zip(begins, counts, strict=True)]
        got = self._source.fill(views, offsets)
        return [
            memory[begin : begin + room + read] if isinstance(read, int) else read
            for begin, read in zip(begins, got, strict=True)
        ]

    def close(self) -> None:
        """Let go of the file; reads that run in other threads end first."""
        self._source.close()


def _put(pixels: NDArray[np.uint8], into: NDArray[np.uint8] | None) -> NDArray[np.uint8]:
    if into is None:
        return pixels
    into[...] = pixels
    return into


_spare = threading.local()


def spare_memory(purpose: str, size: int) -> NDArray[np.uint8]:
    """Return this thread's bytes for a purpose: new memory for each tile would cost more than the copies."""
    memory: NDArray[np.uint8] | None = getattr(_spare, purpose, None)
    if memory is None or memory.size < size:
        memory = np.empty(size, np.uint8)
        setattr(_spare, purpose, memory)
    return memory[:size]
