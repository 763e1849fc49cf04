"""Slides whose levels are cut into tiles: which tiles a region needs, and those decoded last."""

from __future__ import annotations

import threading
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from wsi.geometry import level_from_level0
from wsi.readers.base import WHITE, BaseSlide, Facts

_CACHE_BYTES = 64 * 2**20
"""Of tiles that are kept; one is kept however large it is."""
_DECODING_BYTES = 96 * 2**20
"""Of tiles that are decoded at once, by what they come to; one at a time where each is larger."""
_WIDE = 4096
"""Width of a level, px, from which on tiles as wide as the level are no good to be read piece by piece."""


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
        self.bands = tuple(
            tall if wide >= level.width > _WIDE else None
            for level, (wide, tall) in zip(self.levels, tiles, strict=True)
        )

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
        wide, tall = self._tiles[level]
        return self._cache.of((level, column, row), 3 * wide * tall, lambda: self._load(level, column, row))


_Key = tuple[int, int, int]
_Tile = NDArray[np.uint8]


class _Cache:
    """The tiles decoded last, by bytes; one that several threads want is decoded by one of them."""

    def __init__(self, limit: int) -> None:
        self._limit, self._used = limit, 0
        self._tiles: OrderedDict[_Key, _Tile] = OrderedDict()
        self._decoding: dict[_Key, int] = {}
        self._changed = threading.Condition()

    def of(self, key: _Key, size: int, load: Callable[[], _Tile | None]) -> _Tile | None:
        """Return a tile that is kept, or what `load` gives, which is kept then.

        Args:
            key: of the tile.
            size: its bytes, about.
            load: decodes it; None where there is none.
        """
        with self._changed:
            self._changed.wait_for(lambda: key in self._tiles or self._may_begin(key, size))
            tile = self._tiles.get(key)
            if tile is not None:
                self._tiles.move_to_end(key)
                return tile
            self._decoding[key] = size
            self._make_room(size)
        try:
            tile = load()
        finally:
            with self._changed:
                del self._decoding[key]
                if tile is not None:
                    self._make_room(tile.nbytes)
                    self._tiles[key] = tile
                    self._used += tile.nbytes
                self._changed.notify_all()
        return tile

    def _may_begin(self, key: _Key, size: int) -> bool:
        if key in self._decoding:
            return False
        return not self._decoding or sum(self._decoding.values()) + size <= _DECODING_BYTES

    def _make_room(self, size: int) -> None:
        while self._tiles and self._used + size > self._limit:
            self._used -= self._tiles.popitem(last=False)[1].nbytes
