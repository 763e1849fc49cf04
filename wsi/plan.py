"""What is read in which order: requests, each of which gives one or several tiles of a grid.

The stream knows only this face. A reader that decodes whole blocks plans requests of several tiles behind it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from wsi.grid import TileGrid
from wsi.slide import Slide
from wsi.tiles import read_tile

Place = Callable[[int], NDArray[np.uint8]]
"""Give the row of a tile in its grid, get the (S, S, 3) view to write it to. Ask only when the pixels are there."""


@dataclass(frozen=True)
class ReadRequest:
    """One read: the rows of the grid that it gives."""

    rows: tuple[int, ...]


class ReadPlan(Protocol):
    """How the tiles of one slide are read."""

    most_rows: int
    """The most tiles that one request gives."""

    scratch_bytes: int
    """What one request needs in memory while it runs, besides the tiles it gives."""

    def requests(self) -> Iterator[ReadRequest]:
        """Yield the requests; together they give each row of the grid once."""

    def read(self, request: ReadRequest, place: Place) -> None:
        """Read the tiles of a request and write each to `place(row)`; called from several threads.

        Raises:
            SlideError: the tiles that were not placed yet cannot be read.
        """


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

    def read(self, request: ReadRequest, place: Place) -> None:
        """Read one tile."""
        (row,) = request.rows
        pixels = read_tile(self._slide, self._grid, row)
        place(row)[...] = pixels


def read_plan(slide: Slide, grid: TileGrid) -> ReadPlan:
    """Return how the tiles of a grid are best read from a slide."""
    return TilePlan(slide, grid)
