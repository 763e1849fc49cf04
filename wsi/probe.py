"""Are the pixels there? A look at a bounded number of a slide's tiles, or at all of them.

Directories are checked when a slide is opened; what they point to is not. Here tiles are decoded: the first, the last,
the fullest and some spread over the tissue, level by level. Where one is bad, more are looked at, so that its share is
known; bytes that were never written, and tiles of zeros, are sought on the whole file, for that needs no decoding.
"""

from __future__ import annotations

import os
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wsi.anatomy import Anatomy, TileTable, anatomy, table_of
from wsi.errors import TileReadError
from wsi.grid import TileGrid, tissue_shares
from wsi.readers.base import BaseSlide
from wsi.remote_path import RemotePath
from wsi.slide import Slide
from wsi.sources import open_source
from wsi.tiff_directory import Directory, TiffFile, TiffProblemError
from wsi.tissue import Tissue

_BLOCK = 512
"""Side of what is read at once where native tiles are unknown, px."""
_FULLEST, _ON_TISSUE, _ANYWHERE = 4, 16, 6
_MORE = 200
"""Tiles to be decoded where one of the first is bad."""
_HEADS, _HEAD = 256, 16
"""Tiles whose first bytes are looked at, and how many bytes."""
_MOST_HOLES = 10_000
_INSIDE = 16
"""Side of what is read of a native tile: its decoder must go through all of it anyway."""


@dataclass(frozen=True)
class BadTile:
    """A tile that cannot be read: its column and row on its level, and why."""

    column: int
    row: int
    cause: str


@dataclass(frozen=True, eq=False)
class LevelProbe:
    """What was found on one level.

    Attributes:
        level: its number.
        tiles: native tiles, or blocks of 512 px where these are unknown.
        decoded: how many were decoded.
        bad: how many cannot be read, of those decoded and those known to hold no data.
        share: the estimated share of the level's tiles on tissue that cannot be read; of all where no tissue is known.
        left_out: tiles that the scanner left out: glass.
        never_written: tiles that lie in a part of the file that was never written.
        zeroed: tiles that are all zeros where they should begin; those never written are among them.
        examples: some bad tiles.
        known_bad: (rows, columns) bool, the tiles known to be bad.
        tile_size: width and height of a native tile, level-0 px.
    """

    level: int
    tiles: int
    decoded: int
    bad: int
    share: float
    left_out: int = 0
    never_written: int = 0
    zeroed: int = 0
    examples: tuple[BadTile, ...] = ()
    known_bad: NDArray[np.bool_] = field(default_factory=lambda: np.zeros((0, 0), bool), repr=False)
    tile_size: tuple[float, float] = (1.0, 1.0)

    @property
    def complete(self) -> bool:
        """Whether every tile was decoded."""
        return self.decoded + self.left_out >= self.tiles

    def share_of(self, grid: TileGrid) -> float:
        """Return the share of a grid's tiles that touch a bad tile: counted where all are known, else estimated.

        Where not all native tiles were looked at, each is bad with the chance `share`.
        """
        if not len(grid):
            return 0.0
        ends = grid.xy + np.array(grid.footprint_xy)
        (x0, y0), (x1, y1) = (grid.xy // self.tile_size).astype(int).T, -(-ends // self.tile_size).astype(int).T
        rows, columns = self.known_bad.shape
        x1, y1 = np.minimum(x1, columns), np.minimum(y1, rows)
        summed = np.pad(self.known_bad.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
        hit = summed[y1, x1] - summed[y0, x1] - summed[y1, x0] + summed[y0, x0] > 0
        known = float(hit.mean())
        return known if self.complete else max(known, float((1 - (1 - self.share) ** ((x1 - x0) * (y1 - y0))).mean()))


@dataclass(frozen=True)
class Probe:
    """What was found on a slide.

    Attributes:
        levels: level by level, sharpest first.
        complete: whether every tile was decoded.
        in_time: whether all that should be decoded was.
    """

    levels: tuple[LevelProbe, ...]
    complete: bool
    in_time: bool

    @property
    def decoded(self) -> int:
        """Tiles that were decoded."""
        return sum(level.decoded for level in self.levels)


def probe(slide: Slide, tissue: Tissue | None = None, *, deep: bool = False, seconds: float = 30.0) -> Probe:
    """Decode some of a slide's tiles, or all, and say which cannot be read.

    Args:
        slide: the slide.
        tissue: where its tissue is; tiles there are preferred, and only they count for `LevelProbe.share`.
        deep: decode every tile, however long it takes.
        seconds: time for decoding where not all tiles are; each level has its part of it.
    """
    form = anatomy(slide)
    each = seconds / len(slide.levels)
    levels, late = [], False
    for number in range(len(slide.levels)):
        look = _Look(slide, form, number, tissue)
        levels.append(look.run(deep, float("inf") if deep else time.monotonic() + each))
        late |= look.late
    return Probe(tuple(levels), all(level.complete for level in levels), not late)


def zeros_in(path: Path) -> str | None:
    """Say how much of a TIFF file that cannot be opened is zeros, None where nothing is: a copy that stopped."""
    try:
        with TiffFile(path) as tiff:
            return next((text for one in tiff.every() if (text := _zeros_of(path, one))), None)
    except (TiffProblemError, OSError, KeyError):
        return None


def _zeros_of(path: Path, directory: Directory) -> str | None:
    table = table_of(directory)
    if table is None or table.compression == "none":
        return None
    zeroed = int(_begins_with_zeros(path, table, np.flatnonzero(table.counts).tolist()).sum())
    size = f"{directory.width} x {directory.height}"
    return f"{zeroed:,} of {len(table.counts):,} tiles of the {size} image are zeros" if zeroed else None


@dataclass
class _Look:
    """One level, and what is known of its tiles so far."""

    slide: Slide
    form: Anatomy
    number: int
    tissue: Tissue | None
    late: bool = False
    _decoded: set[int] = field(default_factory=set)
    _failed: dict[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        tables = self.form.tables
        self._table = tables[self.number] if self.number < len(tables) else None
        level = self.slide.levels[self.number]
        self._downsample = level.downsample
        self._tile = self._table.tile if self._table else (_BLOCK, _BLOCK)
        self._across = -(-level.width // self._tile[0])
        self._count = self._across * -(-level.height // self._tile[1])
        self._there = np.ones(self._count, bool) if self._table is None else self._table.counts > 0
        self._inside = self._on_tissue()

    def run(self, deep: bool, until: float) -> LevelProbe:
        unwritten = self._unwritten()
        zeroed = unwritten | self._zeroed(everywhere=bool(unwritten.any()))
        decode = _decoder(self.slide, self.number, self._table)
        self._decode(np.flatnonzero(self._there) if deep else self._sample(), decode, until)
        if self._failed and not deep:
            zeroed |= self._zeroed(everywhere=True)
            self._decode(_spread(np.flatnonzero(self._there & self._inside), _MORE), decode, until)
        bad = zeroed.copy()
        bad[list(self._failed)] = True
        return LevelProbe(
            level=self.number,
            tiles=self._count,
            decoded=len(self._decoded),
            bad=int(bad.sum()),
            share=self._share(zeroed),
            left_out=int((~self._there).sum()),
            never_written=int(unwritten.sum()),
            zeroed=int(zeroed.sum()),
            examples=tuple(self._examples(bad, unwritten)),
            known_bad=bad.reshape(-1, self._across),
            tile_size=(self._tile[0] * self._downsample[0], self._tile[1] * self._downsample[1]),
        )

    def _on_tissue(self) -> NDArray[np.bool_]:
        if self.tissue is None or not self.tissue.mask.any():
            return np.ones(self._count, bool)
        dx, dy = self._downsample
        index = np.arange(self._count)
        xy = np.stack([index % self._across * self._tile[0] * dx, index // self._across * self._tile[1] * dy], axis=1)
        inside = tissue_shares(self.tissue, xy, (round(self._tile[0] * dx), round(self._tile[1] * dy))) > 0
        return inside if (inside & self._there).any() else np.ones(self._count, bool)

    def _sample(self) -> list[int]:
        there = np.flatnonzero(self._there)
        if not len(there):
            return []
        chosen = {int(there[0]), int(there[-1])}
        if self._table is not None:
            chosen |= set(np.argsort(self._table.counts)[-_FULLEST:].tolist()) & set(there.tolist())
        chosen |= set(_spread(np.flatnonzero(self._there & self._inside), _ON_TISSUE))
        return sorted(chosen | set(_spread(there, _ANYWHERE)))

    def _decode(self, tiles: list[int] | NDArray[np.int64], decode: Callable[[int], str | None], until: float) -> None:
        for tile in map(int, tiles):
            if tile in self._decoded:
                continue
            if time.monotonic() > until:
                self.late = True
                return
            self._decoded.add(tile)
            problem = decode(tile)
            if problem is not None:
                self._failed[tile] = problem

    def _unwritten(self) -> NDArray[np.bool_]:
        """Return which tiles touch a hole of the file: a copy that stopped, onto a file made in full size before."""
        if self._table is None or self._table.compression == "none":
            return np.zeros(self._count, bool)
        holes = np.array(list(_holes(self.slide.path)), np.int64).reshape(-1, 2)
        if not len(holes):
            return np.zeros(self._count, bool)
        first = np.searchsorted(holes[:, 1], self._table.offsets, side="right")
        starts = np.append(holes[:, 0], np.iinfo(np.int64).max)
        return np.asarray((starts[first] < self._table.offsets + self._table.counts) & self._there)

    def _zeroed(self, *, everywhere: bool) -> NDArray[np.bool_]:
        """Return which tiles begin with zeros, as no compressed tile does; all are looked at where one does."""
        if self._table is None or self._table.compression == "none":
            return np.zeros(self._count, bool)
        there = np.flatnonzero(self._there)
        tiles = there.tolist() if everywhere else _spread(there, _HEADS)
        zeroed = _begins_with_zeros(self.slide.path, self._table, tiles)
        return zeroed if everywhere or not zeroed.any() else self._zeroed(everywhere=True)

    def _share(self, zeroed: NDArray[np.bool_]) -> float:
        inside = self._inside & self._there
        looked = [tile for tile in self._decoded if inside[tile]]
        decoded = sum(tile in self._failed for tile in looked) / len(looked) if looked else 0.0
        return max(decoded, float(zeroed[inside].mean()) if inside.any() else 0.0)

    def _examples(self, bad: NDArray[np.bool_], unwritten: NDArray[np.bool_]) -> Iterator[BadTile]:
        for tile in np.flatnonzero(bad)[:5].tolist():
            cause = "never written" if unwritten[tile] else self._failed.get(tile, "zeros where it should begin")
            yield BadTile(tile % self._across, tile // self._across, cause)


def _begins_with_zeros(path: Path, table: TileTable, tiles: list[int]) -> NDArray[np.bool_]:
    """Return which of the tiles begin with zeros, (N,) bool over all tiles."""
    zeroed = np.zeros(len(table.counts), bool)
    heads = [bytearray(min(_HEAD, int(table.counts[tile]))) for tile in tiles]
    source = open_source(path)
    try:
        source.fill([memoryview(head) for head in heads], [int(table.offsets[tile]) for tile in tiles])
    finally:
        source.close()
    zeroed[tiles] = [not any(head) for head in heads]
    return zeroed


def _spread(tiles: NDArray[np.int64], most: int) -> list[int]:
    """Return at most so many of the tiles, evenly spread over them."""
    if len(tiles) <= most:
        return [int(tile) for tile in tiles]
    return [int(tile) for tile in tiles[np.linspace(0, len(tiles) - 1, most).astype(int)]]


def _holes(path: Path) -> Iterator[tuple[int, int]]:
    """Yield where the parts of a file begin and end that were never written, as far as the file system tells."""
    if isinstance(path, RemotePath):
        return  # its server fills them with zeros
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        end = 0
        for _ in range(_MOST_HOLES):
            try:
                start = os.lseek(file.fileno(), end, os.SEEK_HOLE)
                end = os.lseek(file.fileno(), start, os.SEEK_DATA) if start < size else size
            except OSError as error:
                if start < size and error.errno == 6:  # ENXIO: no data behind it
                    yield start, size
                return
            if start >= size:
                return
            yield start, end


def _decoder(slide: Slide, number: int, table: TileTable | None) -> Callable[[int], str | None]:
    """Return a function from a tile's index to why it cannot be read, None where it can: as the stream reads it."""
    native = slide.native if isinstance(slide, BaseSlide) else None
    level = native.levels[number] if native is not None else None
    if native is None or level is None:
        if table is not None and table.compression == "deflate":
            return lambda tile: _read(slide, number, table, tile) or _broken_deflate(slide, table, tile)
        return lambda tile: _read(slide, number, table, tile)

    def decode(tile: int) -> str | None:
        try:
            (data,) = native.fetch(level, [tile])
            if isinstance(data, OSError):
                return f"cannot be read ({data.strerror})"
            level.decode(data)
        except (ValueError, TileReadError) as error:
            return getattr(error, "what", None) or str(error)
        return None

    return decode


def _read(slide: Slide, number: int, table: TileTable | None, tile: int) -> str | None:
    """Read a little of a native tile, or a whole block where native tiles are unknown."""
    level = slide.levels[number]
    width, height = table.tile if table else (_BLOCK, _BLOCK)
    across = -(-level.width // width)
    x, y = tile % across * width, tile // across * height
    width, height = min(width, level.width - x), min(height, level.height - y)
    if table is not None:  # well inside, so that rounding does not touch the neighbours
        x, y = x + max(0, width - _INSIDE) // 2, y + max(0, height - _INSIDE) // 2
        width, height = min(width, _INSIDE), min(height, _INSIDE)
    dx, dy = level.downsample
    try:
        slide.read(round(x * dx), round(y * dy), width, height, level=number)
    except TileReadError as error:
        return error.what
    return None


def _broken_deflate(slide: Slide, table: TileTable, tile: int) -> str | None:
    """Say what is wrong with a deflate stream: libtiff stops where it has pixels enough, and checks no checksum."""
    count, offset = int(table.counts[tile]), int(table.offsets[tile])
    with slide.path.open("rb") as file:
        file.seek(offset)
        data = file.read(count)
    stream = zlib.decompressobj()
    try:
        stream.decompress(data, 16 * table.tile[0] * table.tile[1])
    except zlib.error as error:
        return f"its deflate stream is damaged ({error}), and readers show wrong pixels without a word"
    return None if stream.eof else "its deflate stream has no end, and readers show wrong pixels without a word"
