"""How tiles are best read: one by one or row by row through the slide's reader, or block by block from the file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from wsi.bands import BandPlan, rows_of_bands
from wsi.blocks import BlockPlan
from wsi.errors import TileReadError
from wsi.grid import TileGrid
from wsi.icc import ToSrgb
from wsi.readers.base import BaseSlide
from wsi.request import Place, ReadPlan, ReadRequest
from wsi.slide import Slide
from wsi.tiles import read_tile


class TilePlan:
    """One request per tile, row by row: what any reader can do."""

    most_rows = 1

    def __init__(self, slide: Slide, grid: TileGrid) -> None:
        self._slide, self._grid = slide, grid
        width, height = grid.read_size
        self.scratch_bytes = 8 * width * height

    def requests(self) -> Iterator[ReadRequest]:
        """Yield one request per tile."""
        return (ReadRequest((row,)) for row in range(len(self._grid)))

    def read(self, request: ReadRequest, place: Place) -> Mapping[int, TileReadError]:
        """Read one tile."""
        (row,) = request.rows
        pixels = read_tile(self._slide, self._grid, row)
        place(row)[...] = pixels
        return {}

    def close(self) -> None:
        """Close the slide: for whoever opened it for this plan."""
        self._slide.close()


class ConvertedPlan:
    """Another plan whose tiles are turned into other colours once they are there."""

    def __init__(self, plan: ReadPlan, convert: ToSrgb) -> None:
        self._plan, self._convert = plan, convert
        self.most_rows, self.scratch_bytes = plan.most_rows, plan.scratch_bytes

    def requests(self) -> Iterator[ReadRequest]:
        """Yield the other plan's requests."""
        return self._plan.requests()

    def read(self, request: ReadRequest, place: Place) -> Mapping[int, TileReadError]:
        """Read as the other plan does, then convert each tile that was read."""
        placed: dict[int, NDArray[np.uint8]] = {}

        def keep(row: int) -> NDArray[np.uint8]:
            placed[row] = place(row)
            return placed[row]

        failed = self._plan.read(request, keep)
        for row, pixels in placed.items():
            if row not in failed:
                pixels[...] = self._convert(pixels)
        return failed


def read_plan(slide: Slide, grid: TileGrid) -> ReadPlan:
    """Return how the tiles of a grid are best read from a slide."""
    native = slide.native if isinstance(slide, BaseSlide) else None
    if native is None or native.levels[grid.level] is None:
        return TilePlan(slide, grid) if rows_of_bands(slide, grid.level) is None else BandPlan(slide, grid)
    plan = BlockPlan(native, grid, slide.levels[grid.level].downsample)
    return plan if slide.convert is None else ConvertedPlan(plan, slide.convert)


def read_tiles(slide: Slide, grid: TileGrid, rows: Sequence[int]) -> NDArray[np.uint8]:
    """Return some tiles of a grid in the order of `rows`, (n, S, S, 3): the bytes that `wsi.stream` gives.

    Raises:
        TileReadError: one of them cannot be read.
    """
    chosen = np.asarray(rows, np.int64)
    tiles = np.empty((len(chosen), grid.spec.size, grid.spec.size, 3), np.uint8)
    plan = read_plan(slide, replace(grid, xy=grid.xy[chosen], tissue_share=grid.tissue_share[chosen]))
    for request in plan.requests():
        for problem in plan.read(request, tiles.__getitem__).values():
            raise problem
    return tiles
