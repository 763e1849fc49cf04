"""A part of a level from the file's own tiles, each made small while it is decoded."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from wsi.cuts import NUMBERS, Cutter
from wsi.readers.direct import NativeLevel, NativeTiles

_WHITE = 255
_TOGETHER = 64
"""Tiles whose bytes are fetched at once."""


def read_reduced(
    native: NativeTiles, level: NativeLevel, box: tuple[int, int, int, int], scale: int
) -> NDArray[np.uint8]:
    """Return a part of a level reduced by `scale`, RGB; white where there is no tile.

    Args:
        native: the compressed tiles of the slide.
        level: which of them.
        box: left, top, right, bottom, px of the reduced level; right and bottom are the first ones outside.
        scale: one of `level.scales`; the sides and the place of the level's tiles must be multiples of it.

    Raises:
        ValueError: a tile is damaged.
        OSError: it cannot be read.
    """
    left, top, right, bottom = box
    out = np.full((bottom - top, right - left, 3), _WHITE, np.uint8)
    cutter = Cutter(level, ((right - left) * scale, (bottom - top) * scale), scale)
    corner = np.array([[left * scale - level.left, top * scale - level.top]], np.int64)
    (cuts,) = cutter.blocks(corner, [0, 1])
    begin = 0
    for first in range(0, len(cuts.natives), _TOGETHER):
        ends = cuts.ends[first : first + _TOGETHER]
        for data, end in zip(native.fetch(level, cuts.natives[first : first + _TOGETHER]), ends, strict=True):
            if isinstance(data, OSError):
                raise data
            pixels = level.decode(data, scale)
            for at in range(begin, end, NUMBERS):
                _, y0, y1, x0, x1, down, lower, across, farther = cuts.copies[at : at + NUMBERS]
                out[y0:y1, x0:x1] = pixels[down:lower, across:farther]
            begin = end
    return out
