"""Tiles and their values as the browser takes them: one small block of bytes, colored there.

Little-endian: uint32 N, int32 width and height of a tile, int32 step in x and y (0 where tiles do not lie in rows and
columns), int32 reserved, then x of all tiles, y of all tiles (int32), then their values (float32; left out in a grid).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

_SLACK = 2
"""Level-0 pixels by which a tile may lie beside its row: places are rounded."""


@dataclass(frozen=True, eq=False)
class Placed:
    """Tiles of a slide.

    Attributes:
        xy: (N, 2) int64, level-0 pixels, top-left corners.
        footprint: (width, height) of a tile in level-0 pixels.
    """

    xy: NDArray[np.int64]
    footprint: tuple[int, int]

    def __len__(self) -> int:
        return len(self.xy)

    @property
    def step(self) -> tuple[int, int]:
        """Distance of two neighbors in x and y, level-0 px; 0 where the tiles lie in no rows and columns."""
        return step_of(self.xy[:, 0], self.footprint[0]), step_of(self.xy[:, 1], self.footprint[1])


def step_of(places: NDArray[np.int64], side: int) -> int:
    """Return the step of places along one axis: their least distance, where all lie on multiples of it.

    Args:
        places: (N,).
        side: of a tile, which is the step where there is but one place.
    """
    found = np.unique(places)
    gaps = np.diff(found)
    if not len(gaps):
        return int(side)
    least = int(gaps.min())
    if least <= _SLACK:
        return 0
    count = np.rint((found[-1] - found[0]) / least)
    step = (found[-1] - found[0]) / count  # the mean is nearer to the true step than one rounded gap
    off = (found - found[0]) - np.rint((found - found[0]) / step) * step
    return round(step) if np.abs(off).max() <= _SLACK else 0


def pack(tiles: Placed, values: ArrayLike | None = None) -> bytes:
    """Return the block of bytes.

    Raises:
        ValueError: there is not one value for each tile.
    """
    step = tiles.step if len(tiles) else (0, 0)
    regular = step if min(step) > 0 else (0, 0)
    head = np.array([len(tiles), *tiles.footprint, *regular, 0], "<i4")
    parts = [head.tobytes(), np.ascontiguousarray(tiles.xy.T, "<i4").tobytes()]
    if values is not None:
        column = np.asarray(values, "<f4").ravel()
        if len(column) != len(tiles):
            raise ValueError(f"{len(column)} values for {len(tiles)} tiles")
        parts.append(column.tobytes())
    return b"".join(parts)
