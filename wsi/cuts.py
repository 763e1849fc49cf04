"""What is copied from where to where, so that tiles are cut from a file's own tiles: index arithmetic, no pixels.

"Native" is a tile as it lies in the file. Pixels are those of the level read from, or of that level reduced by `scale`
where the name says scaled.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from wsi.readers.direct import NativeLevel

Ints = NDArray[np.int64]

NUMBERS = 9
"""Per copy."""


@dataclass(frozen=True)
class Cuts:
    """The copies that make the tiles of one block.

    Attributes:
        natives: (N,) the native tiles needed, in the order of the file.
        copies: nine numbers per copy, native tile after native tile: tile of the block, its top, bottom, left, right,
            the native tile's top, bottom, left, right; scaled px. One flat list, for thousands of small ones would
            keep the garbage collector busy.
        ends: (N,) where in `copies` those of each native tile end.
        whole: (N,) the tile of the block that each native tile is, pixel for pixel; -1 where it is none.
        unfilled: the tiles of the block that lie in part where there are no pixels.
    """

    natives: Ints
    copies: list[int]
    ends: list[int]
    whole: list[int]
    unfilled: list[int]


class Cutter:
    """Cuts tiles of one size from one level.

    Args:
        level: where the native tiles lie.
        read_size: width and height of each tile, px of the level.
        scale: by how much native tiles are reduced while they are decoded.
    """

    def __init__(self, level: NativeLevel, read_size: tuple[int, int], scale: int) -> None:
        self._level, self._read_size, self._scale = level, read_size, scale
        scaled = read_size[0] // scale, read_size[1] // scale
        self._fits = scaled == (level.tile_width // scale, level.tile_height // scale)

    def blocks(self, xy: Ints, bounds: list[int]) -> list[Cuts]:
        """Return the cuts of several blocks; together they cost hardly more than one.

        Args:
            xy: (N, 2), the left upper corners of all their tiles, px of the level.
            bounds: where in `xy` each block begins and the last one ends.
        """
        level, scale = self._level, self._scale
        xs, ys = xy.T
        columns, left, right = _spans(xs, self._read_size[0], level.tile_width, level.width)
        lines, top, bottom = _spans(ys, self._read_size[1], level.tile_height, level.height)
        tile, i, j = np.nonzero((bottom > top)[:, :, None] & (right > left)[:, None, :])
        native = lines[tile, i] * level.across + columns[tile, j]
        there = level.counts[native] > 0
        tile, i, j, native = tile[there], i[there], j[there], native[there]
        block = np.repeat(np.arange(len(bounds) - 1), np.diff(bounds))[tile]
        order = np.lexsort((native, level.offsets[native], block))
        tile, i, j, native, block = tile[order], i[order], j[order], native[order], block[order]
        top, bottom, left, right = top[tile, i], bottom[tile, i], left[tile, j], right[tile, j]
        y, x = ys[tile], xs[tile]
        down, across = lines[tile, i] * level.tile_height, columns[tile, j] * level.tile_width
        edges = [top - y, bottom - y, left - x, right - x, top - down, bottom - down, left - across, right - across]
        first = np.asarray(bounds)[block]
        copies = np.column_stack([tile - first, -(-np.stack(edges, 1) // scale)])
        covered = (bottom - top) * (right - left)
        return self._split(bounds, block, native, copies, tile, covered)

    def _split(
        self, bounds: list[int], block: Ints, native: Ints, copies: Ints, tile: Ints, covered: Ints
    ) -> list[Cuts]:
        """Return what belongs to each block; all but `bounds` have one row per copy, block after block."""
        change = (native[1:] != native[:-1]) | (block[1:] != block[:-1])
        begins = np.flatnonzero(np.concatenate([[True], change])) if len(native) else native
        ends = np.append(begins[1:], len(native))
        pixels = self._read_size[0] * self._read_size[1]
        alone = (ends - begins == 1) & (covered[begins] == pixels) if self._fits else np.zeros(len(begins), bool)
        whole = np.where(alone, copies[begins, 0], -1).tolist()
        flat = copies.ravel().tolist()
        unfilled = np.bincount(tile, covered, bounds[-1]) < pixels
        at = np.searchsorted(block[begins], np.arange(len(bounds))).tolist()
        first = [*(NUMBERS * begins).tolist(), len(flat)]
        return [
            Cuts(
                native[begins[a:b]],
                flat[first[a] : first[b]],
                [end - first[a] for end in first[a + 1 : b + 1]],
                whole[a:b],
                np.flatnonzero(unfilled[begin:end]).tolist(),
            )
            for (a, b), (begin, end) in zip(pairwise(at), pairwise(bounds), strict=True)
        ]


def _spans(start: Ints, length: int, tile: int, end: int) -> tuple[Ints, Ints, Ints]:
    """Return, along one axis, the native tiles that each cut touches and from where to where; empty spans are none."""
    most = (length - 1) // tile + 2
    number = start[:, None] // tile + np.arange(most)
    first = np.maximum(np.maximum(start[:, None], 0), number * tile)
    last = np.minimum(np.minimum(start[:, None] + length, end), (number + 1) * tile)
    return number, first, last
