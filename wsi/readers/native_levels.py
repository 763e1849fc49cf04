"""Which tiles of a TIFF file make up which level of a slide, where that is surely understood."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from wsi.jpeg_header import color_marker, shared_part
from wsi.readers.base import BaseSlide
from wsi.readers.codecs import codec_of
from wsi.readers.direct import NativeLevel, NativeTiles
from wsi.slide import Level
from wsi.tiff_directory import (
    BITS,
    COMPRESSION,
    JPEG_TABLES,
    PHOTOMETRIC,
    PLANAR,
    TILE_HEIGHT,
    TILE_WIDTH,
    Directory,
    TiffFile,
    TiffProblemError,
    pieces_expected,
)

_JPEG, _RGB, _YCBCR = 7, 2, 6

_OWN_RULES = {"leica", "philips", "trestle", "ventana"}
"""Makers whose files say elsewhere than in the TIFF tags where tiles lie."""


def find_native_tiles(slide: BaseSlide, *, low_band: bool = False) -> NativeTiles | None:
    """Return the compressed tiles of a slide in a TIFF file, None where no level can be read that way.

    Nothing is decoded: whether they show what the slide's reader shows is not known yet.

    Args:
        slide: open; its file is opened once more.
        low_band: reduce JPEG 2000 by leaving out its finer bands.
    """
    try:
        with TiffFile(slide.source or slide.path) as tiff:
            count = 0 if tiff.is_ndpi else len(slide.levels)
            levels = tuple(_level(tiff, slide, number, low_band=low_band) for number in range(count))
            return NativeTiles(levels, tiff.share()) if any(levels) else None
    except (TiffProblemError, OSError):
        return None


@dataclass(frozen=True)
class _Place:
    """The directory that holds a level, and where on the level its first pixel lies, (left, top) px."""

    directory: Directory
    left: int = 0
    top: int = 0


def _place(tiff: TiffFile, slide: BaseSlide, number: int) -> _Place | None:
    """Return where a level lies in the file; None where that is unclear."""
    level = slide.levels[number]
    tiled = [directory for directory in tiff.every() if directory.tiled]
    if slide.vendor == "leica":
        return _scanned_part(tiled, slide, number)
    found = [one for one in tiled if (one.width, one.height) == (level.width, level.height)]
    if not found and slide.vendor == "philips":
        found = [one for one in tiled if _filled_up(one, level)]
    return _Place(found[0]) if len(found) == 1 else None


def _filled_up(directory: Directory, level: Level) -> bool:
    """Say whether a directory is a level that was filled up to whole tiles, as Philips does."""
    sides = (directory.width, level.width, TILE_WIDTH), (directory.height, level.height, TILE_HEIGHT)
    tiles = (directory.number(tag, 1) for *_, tag in sides)
    return all(stored == -(-shown // tile) * tile for (stored, shown, _), tile in zip(sides, tiles, strict=True))


def _scanned_part(tiled: list[Directory], slide: BaseSlide, number: int) -> _Place | None:
    """Return the directory that holds what was scanned of a canvas, where that is one part (Leica)."""
    if slide.bounds is None:
        return None
    x, y, width, height = slide.bounds
    dx, dy = slide.levels[number].downsample
    near = [one for one in tiled if abs(one.width - width / dx) <= 1 and abs(one.height - height / dy) <= 1]
    return _Place(near[0], int(x / dx), int(y / dy)) if len(near) == 1 else None


def _level(tiff: TiffFile, slide: BaseSlide, number: int, *, low_band: bool) -> NativeLevel | None:
    """Return the tiles of a level; None where it is unclear which directory holds it, or it is of another kind."""
    level = slide.levels[number]
    place = _place(tiff, slide, number)
    if place is None or not _is_plain(place.directory):
        return None
    directory = place.directory
    jpeg = directory.number(COMPRESSION, 1) == _JPEG
    codec = None if jpeg else codec_of(directory, low_band=low_band)
    if codec is None and not (jpeg and _is_plain_jpeg(directory)):
        return None
    pieces = pieces_expected(directory)
    offsets, counts = (values[:pieces].astype(np.int64) for values in directory.places)
    if number and not counts.all() and slide.vendor != "philips":
        return None  # OpenSlide fills such gaps from sharper levels
    tables, colour = _shared(directory) if jpeg else (b"", b"")
    return NativeLevel(
        number=number,
        width=min(level.width, directory.width),
        height=min(level.height, directory.height),
        left=place.left,
        top=place.top,
        tile_width=directory.number(TILE_WIDTH, 0),
        tile_height=directory.number(TILE_HEIGHT, 0),
        offsets=offsets,
        counts=counts,
        tables=tables,
        colour=colour,
        codec=codec,
        placed_by_format=slide.vendor in _OWN_RULES,
    )


def _is_plain(directory: Directory) -> bool:
    bits = directory.numbers(BITS)
    return (
        directory.tiled
        and directory.samples in (3, 4)
        and directory.number(PLANAR, 1) == 1
        and bool(len(bits) and (bits == 8).all())
    )


def _is_plain_jpeg(directory: Directory) -> bool:
    return directory.samples == 3 and directory.number(PHOTOMETRIC, _RGB) in (_RGB, _YCBCR)


def _shared(directory: Directory) -> tuple[bytes, bytes]:
    """Return what JPEG tiles lack: the tables they share, and the marker that names their colors."""
    tables = directory.numbers(JPEG_TABLES).tobytes()
    rgb = directory.number(PHOTOMETRIC, _RGB) == _RGB
    return shared_part(tables), color_marker("rgb" if rgb else "ycbcr")
