"""Slide file → tissue → grid → tiles. Needs numpy, no torch; nothing heavy is loaded before it is used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wsi.companions import files_of
    from wsi.cores import available_cores
    from wsi.dicom_series import series_uid
    from wsi.drawn import read_tissue
    from wsi.errors import (
        FetchError,
        GridError,
        ImplausibleMppError,
        MaskError,
        MissingMppError,
        MppError,
        NotBrightfieldError,
        SlideError,
        TileReadError,
        TooCoarseError,
        UnreadableSlideError,
    )
    from wsi.grid import TileGrid, TileSpec, tile_grid
    from wsi.mpp import Mpp
    from wsi.opening import is_slide_file, open_slide
    from wsi.plan import read_tiles
    from wsi.prefetch import StreamRecord, TileBatch, TileStream, stream
    from wsi.quality import Quality, QualitySettings, check_quality
    from wsi.readers.memory import MemorySlide
    from wsi.slide import Level, Slide
    from wsi.tiles import read_tile
    from wsi.tissue import Tissue, TissueSettings, find_tissue

_HOME = {
    "companions": ("files_of",),
    "cores": ("available_cores",),
    "dicom_series": ("series_uid",),
    "drawn": ("read_tissue",),
    "errors": (
        "GridError",
        "ImplausibleMppError",
        "MaskError",
        "MissingMppError",
        "MppError",
        "NotBrightfieldError",
        "SlideError",
        "FetchError",
        "TileReadError",
        "TooCoarseError",
        "UnreadableSlideError",
    ),
    "grid": ("TileGrid", "TileSpec", "tile_grid"),
    "plan": ("read_tiles",),
    "prefetch": ("StreamRecord", "TileBatch", "TileStream", "stream"),
    "quality": ("Quality", "QualitySettings", "check_quality"),
    "readers.memory": ("MemorySlide",),
    "opening": ("is_slide_file", "open_slide"),
    "mpp": ("Mpp",),
    "slide": ("Level", "Slide"),
    "tiles": ("read_tile",),
    "tissue": ("Tissue", "TissueSettings", "find_tissue"),
}
_WHERE = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "FetchError",
    "GridError",
    "ImplausibleMppError",
    "Level",
    "MaskError",
    "MemorySlide",
    "MissingMppError",
    "Mpp",
    "MppError",
    "NotBrightfieldError",
    "Quality",
    "QualitySettings",
    "Slide",
    "SlideError",
    "StreamRecord",
    "TileBatch",
    "TileGrid",
    "TileReadError",
    "TileSpec",
    "TileStream",
    "Tissue",
    "TissueSettings",
    "TooCoarseError",
    "UnreadableSlideError",
    "available_cores",
    "check_quality",
    "files_of",
    "find_tissue",
    "is_slide_file",
    "open_slide",
    "read_tile",
    "read_tiles",
    "read_tissue",
    "series_uid",
    "stream",
    "tile_grid",
]


def __getattr__(name: str) -> Any:
    """Import a public name on first use."""
    if name not in _WHERE:
        raise AttributeError(f"module 'wsi' has no attribute {name!r}")
    value = getattr(import_module(f"wsi.{_WHERE[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
