"""Slides whose levels are cut into tiles: which tiles a region needs, and those decoded last."""

from __future__ import annotations

import threading
from abc import abstractmethod
from collections import OrderedDict

import numpy as np
from numpy.typing import NDArray

from wsi.geometry import level_from_level0
from wsi.readers.base import WHITE, BaseSlide, Facts

_CACHE_BYTES = 64 * 2**20


class MosaicSlide(BaseSlide):
    """A slide of which single tiles are read; readers say how one is decoded (`_load`).

    Args:
        facts: of the slide.
        tiles: width and height of a tile, px, per level.
    """

    def __init__(self, facts: Facts, tiles: tuple[tuple[int, int], ...]) -> None:
        super().__init__(facts)
        self._tiles = tiles
        self._cache = _Cache(_CACHE_BYTES)

    @abstractmethod
    def _load(self, level: int, column: int, row: int) -> NDArray[np.uint8] | None:
        """Return a tile's pixels (h, w, 3), None where the scanner left it out. Called from several threads."""

    def _read(self, x: int, y: int, width: int, height: int, level: int) -> NDArray[np.uint8]:
        plane, (wide, tall) = self.levels[level], self._tiles[level]
        left, top = (level_from_level0(a, d) for a, d in zip((x, y), plane.downsample, strict=True))
        out = np.full((height, width, 3), WHITE, np.uint8)
        right, bottom = min(left + width, plane.width), min(top + height, plane.height)
        for row in range(max(top, 0) // tall, -(-bottom // tall)):
            for column in range(max(left, 0) // wide, -(-right // wide)):
                tile = self._tile(level, column, row)
                x0, y0 = column * wide, row * tall
                a, b = max(left, x0), max(top, y0)
                c, d = min(right, x0 + wide), min(bottom, y0 + tall)
                if tile is not None and c > a and d > b:
                    out[b - top : d - top, a - left : c - left] = tile[b - y0 : d - y0, a - x0 : c - x0]
        return out

    def _tile(self, level: int, column: int, row: int) -> NDArray[np.uint8] | None:
        key = level, column, row
        tile = self._cache.get(key)
        if tile is None:
            tile = self._load(level, column, row)
            if tile is not None:
                self._cache.put(key, tile)
        return tile


class _Cache:
    """The tiles decoded last, by bytes."""

    def __init__(self, limit: int) -> None:
        self._limit, self._used = limit, 0
        self._tiles: OrderedDict[tuple[int, int, int], NDArray[np.uint8]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: tuple[int, int, int]) -> NDArray[np.uint8] | None:
        with self._lock:
            tile = self._tiles.get(key)
            if tile is not None:
                self._tiles.move_to_end(key)
            return tile

    def put(self, key: tuple[int, int, int], tile: NDArray[np.uint8]) -> None:
        with self._lock:
            if key in self._tiles:
                return
            self._tiles[key] = tile
            self._used += tile.nbytes
            while self._used > self._limit and len(self._tiles) > 1:
                self._used -= self._tiles.popitem(last=False)[1].nbytes
