"""Slide + TileGrid → tile images at the asked µm/px."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from wsi.grid import TileGrid
from wsi.resize import resize_area
from wsi.slide import Slide


def read_tile(slide: Slide, grid: TileGrid, i: int) -> NDArray[np.uint8]:
    """Return tile `i` of the grid, RGB, shape (size, size, 3), uint8, at `grid.spec.mpp`.

    Read from the coarsest level that is not coarser than asked; the rest is an area mean. Colours are converted last.
    The slide's reader is asked; `wsi.read_tiles` gives the bytes that a stream gives.

    Raises:
        TileReadError: the region cannot be read.
    """
    x, y = grid.places[i]
    width, height = grid.read_size
    pixels = resize_area(slide.read(x, y, width, height, level=grid.level), grid.spec.size, grid.spec.size)
    return pixels if slide.convert is None else slide.convert(pixels)
