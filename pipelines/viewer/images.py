"""Pixels → the JPEGs that the browser gets."""

from __future__ import annotations

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from .pyramid import Zoomed

_QUALITY = 85
_SMALL = 160
"""Longest side of a cut-out, px."""
_THUMBNAIL = 256
_LONGEST = 1 << 14
"""Longest side of what is cut out, level-0 px."""


def jpeg(pixels: NDArray[np.uint8]) -> bytes:
    """Return the bytes of a picture (H, W, 3)."""
    data: bytes = simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality=_QUALITY, colorsubsampling="420")
    return data


def crop(opened: Zoomed, box: tuple[int, int, int, int]) -> bytes | None:
    """Return a small picture of (x, y, width, height), level-0 px; None where that is no place of the slide."""
    x, y, width, height = box
    slide_width, slide_height = opened.slide.size
    if not (0 < width <= _LONGEST and 0 < height <= _LONGEST and 0 <= x < slide_width and 0 <= y < slide_height):
        return None
    down = 1
    while max(width, height) / down > 2 * _SMALL:
        down *= 2
    sides = max(1, -(-width // down)), max(1, -(-height // down))
    return jpeg(opened.region(x // down, y // down, *sides, down))


def thumbnail(opened: Zoomed) -> bytes:
    """Return a picture of the whole slide."""
    down = 1
    while max(opened.slide.size) / down > _THUMBNAIL:
        down *= 2
    sides = (max(1, -(-side // down)) for side in opened.slide.size)
    width, height = sides
    return jpeg(opened.region(0, 0, width, height, down))
