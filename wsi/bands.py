"""Levels stored in bands as wide as themselves (TIFF in strips): a row of tiles is read at once.

So each band is decoded once; tile by tile it would be decoded for every tile of the row, unless all were kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi.errors import TileReadError
from wsi.geometry import level_from_level0
from wsi.grid import TileGrid
from wsi.readers.base import BaseSlide
from wsi.request import Place, ReadRequest
from wsi.resize import resize_area
from wsi.slide import Slide

_BYTES = 256 * 2**20
"""The most that a row of tiles takes before it is resized; of a longer one parts are read."""
_DECODING = 4
"""How many times its pixels a band takes while it is decoded: compressed, unpacked, as pixels, and the one before."""


def rows_of_bands(slide: Slide, level: int) -> int | None:
    """Return the rows of a band of a level, None where it is not stored in bands."""
    bands = slide.bands if isinstance(slide, BaseSlide) else ()
    return bands[level] if level < len(bands) else None


class BandPlan:
    """One request per row of tiles.

    Args:
        slide: the slide; its level that `grid` is read from is stored in bands.
        grid: what to cut.
    """

    def __init__(self, slide: Slide, grid: TileGrid) -> None:
        self._slide, self._grid = slide, grid
        self._dx, self._dy = slide.levels[grid.level].downsample
        self._left = [level_from_level0(x, self._dx) for x, _ in grid.places]
        self._rows = list(self._in_rows())
        self.most_rows = max((len(rows) for rows in self._rows), default=1)
        width, height = grid.read_size
        longest = max((self._span(rows) for rows in self._rows), default=0)
        band = 3 * slide.levels[grid.level].width * (rows_of_bands(slide, grid.level) or 1)
        self.scratch_bytes = 3 * longest * height + _DECODING * band + 8 * width * height

    def requests(self) -> Iterator[ReadRequest]:
        """Yield one request per row of tiles, from top to bottom."""
        return (ReadRequest(rows) for rows in self._rows)

    def read(self, request: ReadRequest, place: Place) -> Mapping[int, TileReadError]:
        """Read a row of tiles. A band that cannot be read lies below all of them, so all have failed."""
        for row, pixels in zip(request.rows, self.tiles(request.rows), strict=True):
            place(row)[...] = pixels
        return {}

    def tiles(self, rows: tuple[int, ...]) -> Iterator[NDArray[np.uint8]]:
        """Yield tiles that lie side by side, as `wsi.read_tile` gives each.

        Raises:
            TileReadError: they cannot be read.
        """
        grid, size = self._grid, self._grid.spec.size
        width, height = grid.read_size
        first = min(rows, key=self._left.__getitem__)
        x, y = grid.places[first]
        strip = self._slide.read(x, y, self._span(rows), height, level=grid.level)
        for row in rows:
            left = self._left[row] - self._left[first]
            pixels = resize_area(np.ascontiguousarray(strip[:, left : left + width]), size, size)
            yield pixels if self._slide.convert is None else self._slide.convert(pixels)

    def close(self) -> None:
        """Close the slide: for whoever opened it for this plan."""
        self._slide.close()

    def _span(self, rows: Any) -> int:
        """Return the width of the region of some tiles, px of the level."""
        lefts = [self._left[row] for row in rows]
        return int(max(lefts) + self._grid.read_size[0] - min(lefts))

    def _in_rows(self) -> Iterator[tuple[int, ...]]:
        """Yield the tiles that lie side by side, those of the long rows in several parts."""
        tops = [level_from_level0(y, self._dy) for _, y in self._grid.places]
        longest = max(self._grid.read_size[0], _BYTES // (3 * self._grid.read_size[1]))
        part: list[int] = []
        for row in sorted(range(len(tops)), key=lambda row: (tops[row], self._left[row])):
            if part and (tops[row] != tops[part[0]] or self._span((part[0], row)) > longest):
                yield tuple(part)
                part = []
            part.append(row)
        if part:
            yield tuple(part)
