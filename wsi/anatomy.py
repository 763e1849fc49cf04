"""What a slide's file is made of: container, compression, native tiles. No pixel is decoded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wsi.dicom_header import SYNTAX, read_dicom_header
from wsi.slide import Level, Slide
from wsi.tiff_directory import COMPRESSION, TILE_HEIGHT, TILE_WIDTH, Directory, TiffFile, TiffProblemError

_TIFF_COMPRESSIONS = {
    1: "none",
    5: "LZW",
    6: "JPEG (old style)",
    7: "JPEG",
    8: "deflate",
    32773: "PackBits",
    32946: "deflate",
    33003: "JPEG 2000",
    33005: "JPEG 2000",
    34712: "JPEG 2000",
    34892: "JPEG",
    34934: "JPEG XR",
    22610: "JPEG XR",
    34925: "LZMA",
    34926: "zstd",
    50000: "zstd",
    50001: "WebP",
    50002: "JPEG XL",
    52546: "JPEG XL",
}
"""Source: TIFF 6.0, libtiff's `tiff.h`, Aperio's 33003 and 33005."""

_TRANSFER_SYNTAXES = {
    "1.2.840.10008.1.2": "none",
    "1.2.840.10008.1.2.1": "none",
    "1.2.840.10008.1.2.4.50": "JPEG",
    "1.2.840.10008.1.2.4.51": "JPEG",
    "1.2.840.10008.1.2.4.80": "JPEG-LS",
    "1.2.840.10008.1.2.4.90": "JPEG 2000",
    "1.2.840.10008.1.2.4.91": "JPEG 2000",
    "1.2.840.10008.1.2.5": "RLE",
}
"""Source: DICOM PS3.6, annex A."""


@dataclass(frozen=True)
class TileTable:
    """Where the compressed tiles of one level lie in a TIFF file, row by row.

    Attributes:
        tile: width and height of a tile, px.
        across: tiles per row.
        offsets: (N,) int64, bytes.
        counts: (N,) int64, bytes; 0 where the scanner left the tile out.
        compression: of each tile, `none` for plain pixels: there, zeros are black and no sign of damage.
    """

    tile: tuple[int, int]
    across: int
    offsets: NDArray[np.int64]
    counts: NDArray[np.int64]
    compression: str


@dataclass(frozen=True)
class Anatomy:
    """What a file is made of.

    Attributes:
        container: `TIFF`, `DICOM`, `MIRAX` … the file's kind.
        compression: of level 0, None where unknown.
        tile: native tile of level 0 in px, None where the pixels lie in strips, or where it is unknown.
        tables: per level, where its tiles lie; None for a level of another kind.
    """

    container: str
    compression: str | None = None
    tile: tuple[int, int] | None = None
    tables: tuple[TileTable | None, ...] = ()


def anatomy(slide: Slide) -> Anatomy:
    """Look at what the file of a slide is made of."""
    try:
        with TiffFile(getattr(slide, "source", None) or slide.path) as tiff:
            return _of_tiff(tiff, slide)
    except (TiffProblemError, OSError, KeyError):
        return _of_openslide(slide.path)


def _of_tiff(tiff: TiffFile, slide: Slide) -> Anatomy:
    homes = [_home(tiff, level) for level in slide.levels]
    first = homes[0]
    container = "NDPI" if tiff.is_ndpi else "OME-TIFF" if _is_ome(tiff) else "BigTIFF" if tiff.big else "TIFF"
    tables = tuple(None if home is None or tiff.is_ndpi else table_of(home) for home in homes)
    if first is None:
        return Anatomy(container, tables=tables)
    tile = (first.number(TILE_WIDTH, 0), first.number(TILE_HEIGHT, 0)) if first.tiled else None
    return Anatomy(container, _compression(first), tile, tables)


def _is_ome(tiff: TiffFile) -> bool:
    return "<OME" in tiff.directories[0].description[:4096]


def _home(tiff: TiffFile, level: Level) -> Directory | None:
    """Return the directory of a level; None where several are as large."""
    same = [d for d in tiff.every() if (d.width, d.height) == (level.width, level.height)]
    tiled = [d for d in same if d.tiled] or same
    return tiled[0] if len(tiled) == 1 else None


def table_of(directory: Directory) -> TileTable | None:
    """Return where the tiles of an image lie, None where it has none."""
    if not directory.tiled:
        return None
    tile = directory.number(TILE_WIDTH, 0), directory.number(TILE_HEIGHT, 0)
    across, down = -(-directory.width // tile[0]), -(-directory.height // tile[1])
    offsets, counts = (values[: across * down].astype(np.int64) for values in directory.places)
    return TileTable(tile, across, offsets, counts, _compression(directory))


def _compression(directory: Directory) -> str:
    code = directory.number(COMPRESSION, 1)
    return _TIFF_COMPRESSIONS.get(code, f"TIFF {code}")


def _of_openslide(path: Path) -> Anatomy:
    """Ask OpenSlide, for the kinds that only it knows."""
    import openslide

    try:
        with openslide.OpenSlide(path) as handle:
            told = {name: handle.properties.get(name, "") for name in _ASKED}
    except Exception:  # the border; whether it opens is said elsewhere
        header = read_dicom_header(path)
        if header is not None:
            return Anatomy("DICOM", _TRANSFER_SYNTAXES.get(header.text.get(SYNTAX, "")))
        return Anatomy(path.suffix.lower().lstrip(".").upper() or "unknown")
    vendor, width, height, syntax, image_format = (told[name] for name in _ASKED)
    tile = (int(width), int(height)) if width.isdigit() and height.isdigit() else None
    compression = _TRANSFER_SYNTAXES.get(syntax) if vendor == "dicom" else image_format.upper() or None
    return Anatomy(_CONTAINERS.get(vendor, path.suffix.lstrip(".").upper()), compression, tile)


_ASKED = (
    "openslide.vendor",
    "openslide.level[0].tile-width",
    "openslide.level[0].tile-height",
    "dicom.TransferSyntaxUID",
    "mirax.LAYER_0_LEVEL_0_SECTION.IMAGE_FORMAT",
)
"""All that is asked for: the other properties may name a patient."""

_CONTAINERS = {"dicom": "DICOM", "mirax": "MIRAX", "hamamatsu": "VMS", "zeiss": "CZI"}
