"""Super-blocks: neighbouring tiles are read together, so that each compressed tile of the file is decoded once.

A block is as wide as the least common multiple of the tile step and the file's own tiles, or several of these. So no
compressed tile belongs to two blocks, and no cache and no lock is needed, whatever the number of threads. Where the
multiple is too large, or tiles overlap, only those at the rim are decoded twice.

Words as in `wsi.cuts`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from wsi.cuts import NUMBERS, Cuts, Cutter, Ints
from wsi.errors import COPY_AGAIN, TileReadError
from wsi.grid import TileGrid
from wsi.readers.direct import NativeLevel, NativeTiles, spare_memory
from wsi.request import Place, ReadRequest
from wsi.resize import resize_area

SIDE = 2048
"""The longest side of a block, px; twice that where blocks and native tiles do not fit each other."""
_BYTES = 16 * 2**20
"""The most that the tiles of one block take."""
_WHITE = 255

_TOGETHER = 16
"""Blocks whose index arithmetic is done at once."""


@dataclass(frozen=True)
class _BlockRequest(ReadRequest):
    """One block, and what is cut where."""

    cuts: Cuts


class BlockPlan:
    """One request per super-block, in the order of the file.

    Args:
        native: the compressed tiles of the slide.
        grid: what to cut; its level must be one that `native` has.
        downsample: of that level, (x, y).
        side: see `SIDE`; the pixels do not depend on it.
    """

    def __init__(
        self, native: NativeTiles, grid: TileGrid, downsample: tuple[float, float], *, side: int = SIDE
    ) -> None:
        level = native.levels[grid.level]
        assert level is not None
        self._native, self._level, self._size = native, level, grid.spec.size
        self._xy = np.floor(grid.xy / downsample + 0.5).astype(np.int64)  # as geometry.level_from_level0
        self._xy -= (level.left, level.top)
        self._read_size = grid.read_size
        self.scale = _scale(level, self._xy, grid.read_size, grid.spec.size)
        width, height = (one // self.scale for one in grid.read_size)
        self._scaled = height, width
        self._resized = self._scaled != (self._size, self._size)
        per_block = _tiles_per_block(level, grid, downsample, side, self._scaled)
        self._cutter = Cutter(level, grid.read_size, self.scale)
        self._order, self._bounds = _blocks(level, grid, self._xy, per_block)
        self.most_rows = int(np.diff(self._bounds).max(initial=1))
        self.scratch_bytes = self._most_scratch(per_block, grid, downsample)

    def requests(self) -> Iterator[ReadRequest]:
        """Yield one request per block that has tiles; what is cut where is worked out for several at once."""
        for first in range(0, len(self._bounds) - 1, _TOGETHER):
            bounds = self._bounds[first : first + _TOGETHER + 1]
            rows = self._order[bounds[0] : bounds[-1]]
            places = (bounds - bounds[0]).tolist()
            listed = rows.tolist()
            for cuts, (a, b) in zip(self._cutter.blocks(self._xy[rows], places), pairwise(places), strict=True):
                yield _BlockRequest(tuple(listed[a:b]), cuts)

    def read(self, request: ReadRequest, place: Place) -> Mapping[int, TileReadError]:
        """Decode each native tile of a block once and copy its parts to where they belong."""
        rows = request.rows
        if isinstance(request, _BlockRequest):
            cuts = request.cuts
        else:  # it came from elsewhere
            (cuts,) = self._cutter.blocks(self._xy[list(rows)], [0, len(rows)])
        data = self._native.fetch(self._level, cuts.natives)
        if self._resized:
            shape = len(rows), *self._scaled, 3
            tiles = list(spare_memory("cut", math.prod(shape)).reshape(shape))
        else:
            tiles = [place(row) for row in rows]
        for tile in cuts.unfilled:
            tiles[tile][...] = _WHITE
        failed = {rows[tile]: problem for tile, problem in self._fill(tiles, cuts, data).items()}
        if self._resized:
            for row, pixels in zip(rows, tiles, strict=True):
                if row not in failed:
                    place(row)[...] = resize_area(pixels, self._size, self._size)
        return failed

    def _fill(
        self, tiles: list[NDArray[np.uint8]], cuts: Cuts, data: list[memoryview | OSError]
    ) -> dict[int, TileReadError]:
        """Decode native tile after native tile into the tiles of a block; return those that lack one, and why."""
        failed: dict[int, TileReadError] = {}
        decode, scale, copies = self._level.decode, self.scale, cuts.copies
        begin = 0
        for number, (compressed, end, whole) in enumerate(zip(data, cuts.ends, cuts.whole, strict=True)):
            try:
                if isinstance(compressed, OSError):
                    raise compressed
                pixels = decode(compressed, scale, tiles[whole] if whole >= 0 else None)
            except (ValueError, OSError) as error:
                problem = self._problem(int(cuts.natives[number]), error)
                failed.update(dict.fromkeys(copies[begin:end:NUMBERS], problem))
            else:
                for at in range(begin, end, NUMBERS) if whole < 0 else ():
                    tile, top, bottom, left, right, down, lower, across, farther = copies[at : at + NUMBERS]
                    tiles[tile][top:bottom, left:right] = pixels[down:lower, across:farther]
            begin = end
        return failed

    def _problem(self, native: int, error: Exception) -> TileReadError:
        level = self._level
        x, y = level.origin(native)
        return TileReadError(
            self._native.name,
            f"cannot read the file's own tile at ({x}, {y}) of level {level.number} ({str(error) or type(error)})",
            COPY_AGAIN,
        )

    def _most_scratch(self, per_block: tuple[int, int], grid: TileGrid, downsample: tuple[float, float]) -> int:
        """Return the bytes of the compressed tiles of one block, of one decoded tile, and of what is resized."""
        level = self._level
        natives = math.prod(
            math.ceil(((n - 1) * stride / d + read) / tile) + 1
            for n, stride, d, read, tile in zip(
                per_block,
                grid.stride_xy,
                downsample,
                grid.read_size,
                (level.tile_width, level.tile_height),
                strict=True,
            )
        )
        compressed = min(natives * int(level.counts.max(initial=0)), int(level.counts.sum())) + natives * level.room
        decoded = level.working_bytes(self.scale)
        resized = math.prod(self._scaled) * (3 * self.most_rows + 36) if self._resized else 0
        return compressed + decoded + resized


def _scale(level: NativeLevel, xy: Ints, read_size: tuple[int, int], size: int) -> int:
    """Return by how much tiles are reduced while they are decoded: the most that is not coarser than asked.

    Native tiles and cuts must fall on whole reduced pixels, and so must the asked pixels unless each takes at least two
    of them; else pixels would be mixed that no one asked for.
    """
    edges = (level.tile_width, level.tile_height, *read_size)
    for scale in level.scales:
        fits = all(edge % scale == 0 for edge in edges) and not (xy % scale).any()
        rest = min(read_size) / (size * scale)
        if fits and (rest >= 2 or set(read_size) == {size * scale}):
            return scale
    return 1


def _tiles_per_block(
    level: NativeLevel, grid: TileGrid, downsample: tuple[float, float], side: int, scaled: tuple[int, int]
) -> tuple[int, int]:
    """Return how many tiles a block holds in x and in y."""
    counts = []
    for stride0, d, tile in zip(grid.stride_xy, downsample, (level.tile_width, level.tile_height), strict=True):
        stride = stride0 / d
        common = math.lcm(round(stride), tile)
        if stride.is_integer() and common <= side:
            counts.append(common // round(stride) * (side // common))
        else:
            counts.append(max(1, int(2 * side // stride)))
    per_tile = 3 * max(grid.spec.size**2, math.prod(scaled))
    while counts[0] * counts[1] * per_tile > _BYTES and max(counts) > 1:
        counts[counts.index(max(counts))] = -(-max(counts) // 2)
    return counts[0], counts[1]


def _blocks(level: NativeLevel, grid: TileGrid, xy: Ints, per_block: tuple[int, int]) -> tuple[Ints, Ints]:
    """Return the rows of the grid block after block, and where each block begins and the last ends."""
    if not len(grid):
        return np.zeros(0, np.int64), np.zeros(1, np.int64)
    column, line = (grid.xy // (np.array(grid.stride_xy) * per_block)).T
    _, block = np.unique(line * (column.max() + 1) + column, return_inverse=True)
    native = xy // (level.tile_width, level.tile_height)
    offset = level.offsets[np.clip(native[:, 1] * level.across + native[:, 0], 0, len(level.offsets) - 1)]
    begins = np.full(block.max() + 1, np.iinfo(np.int64).max)
    np.minimum.at(begins, block, offset)
    order = np.lexsort((np.arange(len(block)), block, begins[block]))
    changes = np.flatnonzero(np.diff(block[order])) + 1
    return order, np.concatenate([[0], changes, [len(order)]])
