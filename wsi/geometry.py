"""Level 0 to level n and back, and which level serves a resolution: pure arithmetic, no files.

`x, y` are level-0 pixels unless the name says otherwise; a downsample is level-0 pixels per level pixel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

TOLERANCE = 0.01
"""How far a tile's width may be from `size * mpp`, as a share; also how much coarser a level may be."""


def level_from_level0(x: float, downsample: float) -> int:
    """Return the level pixel whose left edge lies nearest to level-0 pixel `x`."""
    return math.floor(x / downsample + 0.5)


def footprint(size: int, mpp: float, slide_mpp: float) -> int:
    """Return the side on level 0, in whole pixels, of a tile of `size` px at `mpp` µm/px."""
    return round(size * mpp / slide_mpp)


def width_error(pixels: float, slide_mpp: float, size: int, mpp: float) -> float:
    """Return how far `pixels` level-0 pixels are from `size * mpp` µm, as a share of the latter."""
    return abs(pixels * slide_mpp / (size * mpp) - 1)


def best_level(downsamples: Sequence[tuple[float, float]], wanted: tuple[float, float]) -> int:
    """Return the coarsest level that is not coarser than asked, in both axes, within `TOLERANCE`.

    Args:
        downsamples: per level (x, y), level 0 first; need not be sorted.
        wanted: level-0 pixels per asked pixel, (x, y).
    """
    best, coarsest = 0, 0.0
    for level, (dx, dy) in enumerate(downsamples):
        fits = dx <= wanted[0] * (1 + TOLERANCE) and dy <= wanted[1] * (1 + TOLERANCE)
        if fits and dx * dy > coarsest:
            best, coarsest = level, dx * dy
    return best


def clipped_box(box: tuple[int, int, int, int] | None, size: tuple[int, int]) -> tuple[int, int, int, int] | None:
    """Return the part of a box (x, y, width, height) that lies on a canvas, None where there is none."""
    if box is None:
        return None
    left, top = max(box[0], 0), max(box[1], 0)
    right, bottom = min(box[0] + box[2], size[0]), min(box[1] + box[3], size[1])
    return (left, top, right - left, bottom - top) if right > left and bottom > top else None


def downsample_of(size0: tuple[int, int], size: tuple[int, int]) -> tuple[float, float] | None:
    """Return level-0 pixels per pixel of a level, (x, y), from the two sizes in pixels.

    Sizes of levels are rounded, so the ratio of two sizes is a little off; where one whole factor explains both
    sides, it is taken. None where the level has another shape than level 0 and so shows another region.
    """
    ratio = size0[0] / size[0], size0[1] / size[1]
    mean = math.sqrt(ratio[0] * ratio[1])
    whole = round(mean)
    if whole and all(abs(big / whole - small) < 1 for big, small in zip(size0, size, strict=True)):
        return float(whole), float(whole)
    if any(abs(big / mean - small) > 1 + 0.02 * small for big, small in zip(size0, size, strict=True)):
        return None
    return ratio
