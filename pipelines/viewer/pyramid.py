"""Any place of a slide at any power of two: what the browser asks for, tile by tile.

Compressed tiles are taken straight from the file where that is possible, and reduced while they are decoded; anything
else is read through the slide's reader. A slide without coarse levels is never read whole for one tile: what is far out
comes from an overview that is made once.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

import wsi
from wsi.readers.direct import NativeLevel, NativeTiles
from wsi.resize import resize_area

SIDE = 256
"""Of a tile, px."""
_MOST_PIXELS = 6 << 20
"""So many pixels of a level are read for one tile, at most: more than 2,048 x 2,048, which is eight times finer."""
_OVERVIEW = 2048
"""Longest side of what may be taken from an overview, px."""
_FIT = 1.01
"""A level counts as just so fine up to 1 %: pyramids are rounded."""

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Pyramid:
    """The levels that the browser sees: level 0 is one tile, each further one is twice as large.

    Attributes:
        width: of the slide, level-0 px; `height` likewise.
    """

    width: int
    height: int

    @property
    def top(self) -> int:
        """Number of the sharpest level, which is the slide itself."""
        return max(0, int(np.ceil(np.log2(max(self.width, self.height) / SIDE))))

    def downsample(self, level: int) -> int:
        """Return level-0 pixels per pixel of a level."""
        return 1 << (self.top - level)

    def size(self, level: int) -> tuple[int, int]:
        """Return width and height of a level."""
        down = self.downsample(level)
        return -(-self.width // down), -(-self.height // down)

    def box(self, level: int, column: int, row: int) -> tuple[int, int, int, int] | None:
        """Return (x, y, width, height) of a tile in px of its level, None where there is no such tile."""
        if not 0 <= level <= self.top or column < 0 or row < 0:
            return None
        width, height = self.size(level)
        x, y = column * SIDE, row * SIDE
        if x >= width or y >= height:
            return None
        return x, y, min(SIDE, width - x), min(SIDE, height - y)


@dataclass
class Zoomed:
    """An open slide, read at powers of two.

    Attributes:
        slide: open as long as this is used.
    """

    slide: wsi.Slide
    _overview: tuple[int, Pixels] | None = field(default=None, init=False)
    _making: threading.Lock = field(default_factory=threading.Lock, init=False)

    @property
    def pyramid(self) -> Pyramid:
        """The levels that the browser sees."""
        return Pyramid(*self.slide.size)

    def tile(self, level: int, column: int, row: int) -> Pixels | None:
        """Return a tile, RGB (h, w, 3), None where there is no such tile.

        Raises:
            wsi.TileReadError: the region cannot be read.
        """
        box = self.pyramid.box(level, column, row)
        return None if box is None else self.region(*box, self.pyramid.downsample(level))

    def region(self, x: int, y: int, width: int, height: int, down: int) -> Pixels:
        """Return RGB (height, width, 3) of a place; all in px of the picture that is `down` times coarser than level 0.

        Raises:
            wsi.TileReadError: the region cannot be read.
        """
        pixels = self._region(x, y, width, height, down)
        return pixels if self.slide.convert is None else self.slide.convert(pixels)

    def _region(self, x: int, y: int, width: int, height: int, down: int) -> Pixels:
        level = self._level_for(down)
        ratio = down / self.slide.levels[level].downsample[0]
        if width * ratio * height * ratio <= _MOST_PIXELS * _FIT:
            return self._read(level, x, y, width, height, down)
        if max(self.slide.size) / down <= _OVERVIEW:
            return self._from_overview(x, y, width, height, down)
        return self._from_quarters(x, y, width, height, down)

    def _level_for(self, down: int) -> int:
        """Return the coarsest level that is not coarser than asked."""
        fine = [n for n, level in enumerate(self.slide.levels) if max(level.downsample) <= down * _FIT]
        return fine[-1] if fine else 0

    def _read(self, level: int, x: int, y: int, width: int, height: int, down: int) -> Pixels:
        facts = self.slide.levels[level]
        tiles: NativeTiles | None = getattr(self.slide, "native", None)
        native = None if tiles is None else tiles.levels[level]
        if tiles is not None and native is not None and all(down % one == 0 for one in facts.downsample):
            ratio = down // int(facts.downsample[0])
            scale = next((one for one in native.scales if ratio % one == 0 and _fits(native, one)), 0)
            rest = ratio // scale if scale else 0
            if rest and rest * width * rest * height <= _MOST_PIXELS and len(set(facts.downsample)) == 1:
                found = _decoded(tiles, native, rest * x, rest * y, rest * width, rest * height, scale)
                if found is not None:
                    return resize_area(found, width, height)
        across, along = (down / one for one in facts.downsample)
        read = round(width * across), round(height * along)
        pixels = self.slide.read(x * down, y * down, max(1, read[0]), max(1, read[1]), level=level)
        return resize_area(pixels, width, height)

    def _from_quarters(self, x: int, y: int, width: int, height: int, down: int) -> Pixels:
        """Put a place together from what is twice as sharp, a quarter at a time."""
        finer = np.full((2 * height, 2 * width, 3), 255, np.uint8)
        for top in range(0, 2 * height, height):
            for left in range(0, 2 * width, width):
                part = self._region(2 * x + left, 2 * y + top, width, height, down // 2)
                finer[top : top + height, left : left + width] = part
        return resize_area(finer, width, height)

    def _from_overview(self, x: int, y: int, width: int, height: int, down: int) -> Pixels:
        made, picture = self._whole()
        step = down // made
        rows = picture[y * step : (y + height) * step, x * step : (x + width) * step]
        cut = np.full((height * step, width * step, 3), 255, np.uint8)
        cut[: rows.shape[0], : rows.shape[1]] = rows
        return resize_area(cut, width, height)

    def _whole(self) -> tuple[int, Pixels]:
        """Return the overview and how much coarser it is, made at the first call."""
        with self._making:
            if self._overview is None:
                down = 1
                while max(self.slide.size) / down > _OVERVIEW:
                    down *= 2
                width, height = (-(-side // down) for side in self.slide.size)
                whole = np.full((height, width, 3), 255, np.uint8)
                for top in range(0, height, SIDE):
                    for left in range(0, width, SIDE):
                        sides = min(SIDE, width - left), min(SIDE, height - top)
                        whole[top : top + sides[1], left : left + sides[0]] = self._from_quarters(
                            left, top, *sides, down
                        )
                self._overview = down, whole
            return self._overview


def _fits(native: NativeLevel, scale: int) -> bool:
    """Say whether the tiles of a file can be put together where they lie, reduced by `scale`."""
    sides = native.tile_width, native.tile_height, native.left, native.top
    return scale in native.scales and all(side % scale == 0 for side in sides)


def _decoded(
    tiles: NativeTiles, native: NativeLevel, x: int, y: int, width: int, height: int, scale: int
) -> Pixels | None:
    """Return a place put together from the file's own tiles, None where one of them cannot be had.

    `x`, `y`, `width` and `height` are px of the level reduced by `scale`.
    """
    out = np.full((height, width, 3), 255, np.uint8)
    side_x, side_y = native.tile_width // scale, native.tile_height // scale
    left, top = native.left // scale, native.top // scale
    columns = range(max(0, (x - left) // side_x), min(native.across, -(-(x + width - left) // side_x)))
    down = -(-native.height // native.tile_height)
    for row in range(max(0, (y - top) // side_y), min(down, -(-(y + height - top) // side_y))):
        for column in columns:
            number = row * native.across + column
            if native.counts[number] == 0:
                continue
            (data,) = tiles.fetch(native, [number])
            if isinstance(data, OSError):
                return None
            try:
                pixels = native.decode(data, scale)
            except ValueError:  # the slide's own reader says what is wrong, or can read it
                return None
            seen = [-(-side // scale) for side in native.extent(number)]
            _paste(out, pixels[: seen[1], : seen[0]], left + column * side_x - x, top + row * side_y - y)
    return out


def _paste(out: Pixels, part: Pixels, x: int, y: int) -> None:
    """Lay a picture into another; what lies beyond its rim is left out."""
    rows, columns = part.shape[:2]
    x0, y0, x1, y1 = max(0, x), max(0, y), min(out.shape[1], x + columns), min(out.shape[0], y + rows)
    if x0 < x1 and y0 < y1:
        out[y0:y1, x0:x1] = part[y0 - y : y1 - y, x0 - x : x1 - x]
