"""The whole slide as a small picture, whatever its pyramid holds, and however large a single level is."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from wsi.bands import rows_of_bands
from wsi.cores import available_cores
from wsi.errors import FetchError, TileReadError
from wsi.geometry import best_level, clipped_box
from wsi.readers.base import BaseSlide
from wsi.readers.codecs import Jpeg2000
from wsi.readers.direct import SCALES, NativeLevel, NativeTiles
from wsi.reduced import read_reduced
from wsi.resize import area_means, resize_area, weights
from wsi.slide import Slide

if TYPE_CHECKING:
    from wsi.tissue import TissueSettings

_PIECE = 1024
"""Side of what is read at once through the slide's reader, px of the level."""
_REDUCED_PIECE = 4096
"""The same of the file's own tiles, which are decoded small."""
_BAND_PIXELS = 4 * 2**20
"""What is read at once of a level that is stored in bands as wide as itself, px of it."""
_SMALL = 256
"""Side of what is not read in parts where it cannot be read whole, px of the level: about a tile of the file."""
_MANY = 500
"""Reads that have failed, from which on nothing is read in parts any more: it would take minutes and tell no more."""
_MOST_UNREAD = 0.5
"""Share of what was scanned that may be unreadable."""
_MUCH_FINER = 4
"""From how many px of the level for one of the picture on the file's own tiles are taken: cheaper by far, and at less
the level is small."""
_MOST_CANVAS = 24_000_000
"""The most pixels that a picture has where only a part of the canvas was scanned."""
_GLASS = 255
_HARDLY = 1e-6
"""Less of a pixel than this is rounding."""

Pixels = NDArray[np.uint8]


class Box(NamedTuple):
    """A part of the picture, px of it; right and bottom are the first ones outside."""

    left: int
    top: int
    right: int
    bottom: int

    def of(self, pixels: Pixels, whole: Box) -> Pixels:
        """Return what of the pixels of `whole` shows this part, to be written to."""
        return pixels[self.top - whole.top : self.bottom - whole.top, self.left - whole.left : self.right - whole.left]


def thumbnail(slide: Slide, settings: TissueSettings) -> tuple[Pixels, tuple[float, float]]:
    """Return the whole canvas as a small picture, and level-0 px per pixel of it, (x, y).

    Read by pieces, so that a single huge level never lies in memory whole. Where the scanner states what it scanned,
    only that is read, and as fine as if there were nothing else; the rest is white.
    """
    shown = scanned_thumbnail(slide, settings)
    return shown.pixels, shown.scale


class Thumbnail(NamedTuple):
    """A slide as a small picture.

    Attributes:
        pixels: (h, w, 3) uint8; white where nothing was scanned, and where it cannot be read.
        scale: level-0 px per pixel, (x, y).
        scanned: what of it was scanned.
        unread: (h, w) bool, what of that cannot be read.
    """

    pixels: Pixels
    scale: tuple[float, float]
    scanned: Box
    unread: NDArray[np.bool_]


def scanned_thumbnail(slide: Slide, settings: TissueSettings) -> Thumbnail:
    """Return the picture, and what is known of its parts.

    Raises:
        TileReadError: most of the slide cannot be read.
    """
    width, height = _size(slide, settings)
    ratio = slide.size[0] / width, slide.size[1] / height
    level = best_level([one.downsample for one in slide.levels], ratio)
    scanned = _scanned(slide, ratio, (width, height))
    out = np.full((height, width, 3), _GLASS, np.uint8)
    convert = slide.convert
    reader = PatientReader(slide, ratio, (width, height), scanned)
    read, piece = _reading(slide, level, ratio, reader)

    def fill(box: Box) -> None:
        pixels = read(box)
        out[box.top : box.bottom, box.left : box.right] = pixels if convert is None else convert(pixels)

    boxes = _pieces(scanned, piece)
    if len(boxes) <= 4:
        for box in boxes:
            fill(box)
    else:
        with ThreadPoolExecutor(available_cores()) as pool:  # a single huge level: decoding is all of the time
            for _ in pool.map(fill, boxes):
                pass
    out[reader.unread] = _GLASS
    return Thumbnail(out, ratio, scanned, reader.unread)


def _pieces(box: Box, piece: tuple[int, int]) -> list[Box]:
    """Return a box cut into pieces of so many px in x and in y, row by row."""
    wide, tall = piece
    return [
        Box(left, top, min(left + wide, box.right), min(top + tall, box.bottom))
        for top in range(box.top, box.bottom, tall)
        for left in range(box.left, box.right, wide)
    ]


def _reading(
    slide: Slide, level: int, ratio: tuple[float, float], reader: PatientReader
) -> tuple[Callable[[Box], Pixels], tuple[int, int]]:
    """Return how a part of the picture is best read, and how much is read at once, px of the picture in x and y."""
    downsample = slide.levels[level].downsample
    finer = ratio[0] / downsample[0], ratio[1] / downsample[1]
    by_tiles = max(1, int(_REDUCED_PIECE / max(finer)))
    native = slide.native if isinstance(slide, BaseSlide) else None
    own = native.levels[level] if native is not None else None
    if native is None or own is None or min(finer) < _MUCH_FINER:
        return partial(reader.read, level=level), reader.piece(level)
    own, scale = _coarse(own, min(finer))
    whole = slide.levels[level].width // scale, slide.levels[level].height // scale
    steps = finer[0] / scale, finer[1] / scale

    def from_tiles(box: Box) -> Pixels:
        try:
            return _means_of_tiles(native, own, scale, steps, whole, box)
        except (ValueError, OSError):  # a damaged tile: what the slide's reader makes of it counts
            return reader.by_pieces(box, _pieces(box, reader.piece(level)), level)

    return from_tiles, (by_tiles, by_tiles)


class PatientReader:
    """Reads parts of the picture through the slide's reader, around what cannot be read.

    What a level does not give is taken from the next sharper one; what none gives is `unread`.

    Args:
        slide: the slide.
        ratio: level-0 px per px of the picture, (x, y).
        size: of the picture, px.
        scanned: what of it was scanned.
    """

    def __init__(self, slide: Slide, ratio: tuple[float, float], size: tuple[int, int], scanned: Box) -> None:
        self._slide, self._ratio = slide, ratio
        self._most = _MOST_UNREAD * (scanned.right - scanned.left) * (scanned.bottom - scanned.top)
        self._lock = threading.Lock()
        self._failed = 0
        self.unread = np.zeros(size[::-1], bool)

    def piece(self, level: int) -> tuple[int, int]:
        """Return how much of a level is best read at once, px of the picture in x and y."""
        fx, fy = self._finer(level)
        if rows_of_bands(self._slide, level) is not None:
            width = self._slide.levels[level].width
            return self.unread.shape[1], max(1, int(_BAND_PIXELS / width / fy))
        side = max(1, int(_PIECE / max(fx, fy)))
        return side, side

    def read(self, box: Box, level: int) -> Pixels:
        """Return a part of the picture; what of it cannot be read is white, and noted.

        Raises:
            TileReadError: with this, most of the picture cannot be read.
            FetchError: the network does not give it.
        """
        try:
            return self._read(box, level)
        except FetchError:
            raise
        except TileReadError as error:
            return self._around(box, level, error)

    def by_pieces(self, box: Box, pieces: list[Box], level: int) -> Pixels:
        """Return a part of the picture, read piece by piece."""
        out = np.empty((box.bottom - box.top, box.right - box.left, 3), np.uint8)
        for piece in pieces:
            piece.of(out, box)[...] = self.read(piece, level)
        return out

    def _read(self, box: Box, level: int) -> Pixels:
        dx, dy = self._slide.levels[level].downsample
        x0, x1 = (round(v * self._ratio[0]) for v in (box.left, box.right))
        y0, y1 = (round(v * self._ratio[1]) for v in (box.top, box.bottom))
        size = max(1, round((x1 - x0) / dx)), max(1, round((y1 - y0) / dy))
        return resize_area(self._slide.read(x0, y0, *size, level=level), box.right - box.left, box.bottom - box.top)

    def _around(self, box: Box, level: int, error: TileReadError) -> Pixels:
        self._failed += 1
        halves = [box] if self._failed > _MANY else self._halves(box, level)
        if len(halves) > 1:
            return self.by_pieces(box, halves, level)
        sharper = self._sharper(level)
        if sharper is not None:
            return self.by_pieces(box, _pieces(box, self.piece(sharper)), sharper)
        with self._lock:
            self.unread[box.top : box.bottom, box.left : box.right] = True
            if self.unread.sum() > self._most:
                raise error
        return np.full((box.bottom - box.top, box.right - box.left, 3), _GLASS, np.uint8)

    def _halves(self, box: Box, level: int) -> list[Box]:
        """Return a box cut in two along its longer side; whole where it is no larger than what fails together."""
        fx, fy = self._finer(level)
        band = rows_of_bands(self._slide, level)
        wide = (box.right - box.left) * fx if band is None else 0.0
        tall = (box.bottom - box.top) * fy
        if max(wide, tall) <= max(_SMALL, band or 0):
            return [box]
        if wide > tall:
            middle = (box.left + box.right) // 2
            return [box] if middle == box.left else [box._replace(right=middle), box._replace(left=middle)]
        middle = (box.top + box.bottom) // 2
        return [box] if middle == box.top else [box._replace(bottom=middle), box._replace(top=middle)]

    def _sharper(self, level: int) -> int | None:
        """Return the next sharper level, None where there is none."""
        width = self._slide.levels[level].width
        wider = [number for number, one in enumerate(self._slide.levels) if one.width > width]
        return min(wider, key=lambda number: self._slide.levels[number].width, default=None)

    def _finer(self, level: int) -> tuple[float, float]:
        dx, dy = self._slide.levels[level].downsample
        return self._ratio[0] / dx, self._ratio[1] / dy


def _coarse(level: NativeLevel, finer: float) -> tuple[NativeLevel, int]:
    """Return a level as it is best decoded for a picture `finer` times as small, and by how much it is reduced.

    Tissue is told from stain over many cells: that the low band of JPEG 2000 is no area mean does not matter here.
    """
    if isinstance(level.codec, Jpeg2000):
        level = replace(level, codec=replace(level.codec, scales=SCALES))
    sides = level.tile_width, level.tile_height, level.left, level.top
    fits = [scale for scale in level.scales if finer >= 2 * scale and not any(side % scale for side in sides)]
    return level, max(fits, default=1)


def _means_of_tiles(
    native: NativeTiles,
    level: NativeLevel,
    scale: int,
    steps: tuple[float, float],
    whole: tuple[int, int],
    box: Box,
) -> Pixels:
    """Return a part of the picture, each pixel the mean of the area that it covers.

    Args:
        native: the compressed tiles of the slide.
        level: which of them.
        scale: by how much they are reduced.
        steps: reduced px per px of the picture, (x, y).
        whole: width and height of the reduced level, without pixels that lie in it in part only.
        box: px of the picture.

    Raises:
        ValueError: a tile is damaged.
        OSError: it cannot be read.
    """
    left, right, across = _axis(box.left, box.right, steps[0], whole[0])
    top, bottom, down = _axis(box.top, box.bottom, steps[1], whole[1])
    return area_means(read_reduced(native, level, (left, top, right, bottom), scale), down, across)


def _axis(begin: int, end: int, step: float, whole: int) -> tuple[int, int, Any]:
    """Return, along one axis, the first and the last reduced px, and the weights with which they are summed."""
    first, last = int(begin * step), min(whole, math.ceil(end * step - _HARDLY))
    return first, last, weights(last - first, end - begin, begin * step - first, end * step - first)


def _scanned(slide: Slide, ratio: tuple[float, float], size: tuple[int, int]) -> Box:
    """Return the scanned box in pixels of a picture of the canvas."""
    box = clipped_box(slide.bounds, slide.size)
    if box is None:
        return Box(0, 0, *size)
    left, top = int(box[0] / ratio[0]), int(box[1] / ratio[1])
    right, bottom = math.ceil((box[0] + box[2]) / ratio[0]), math.ceil((box[1] + box[3]) / ratio[1])
    return Box(left, top, min(right, size[0]), min(bottom, size[1]))


def _size(slide: Slide, settings: TissueSettings) -> tuple[int, int]:
    """Return width and height of the picture: as fine as what was scanned asks for, not the empty canvas around it."""
    width, height = slide.size
    box = clipped_box(slide.bounds, slide.size)
    longest = max(slide.size if box is None else box[2:])
    wanted = longest * slide.mpp.x / settings.mpp if slide.mpp else settings.max_side / 2
    side = min(max(wanted, settings.min_side), settings.max_side, longest)
    if box is not None:
        side *= min(1.0, math.sqrt(_MOST_CANVAS / (width * height)) * longest / side)
    return max(1, round(width * side / longest)), max(1, round(height * side / longest))
