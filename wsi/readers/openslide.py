"""Slides through OpenSlide: most scanners' formats.

An OpenSlide handle refuses everything after its first error, for all threads. So an error opens a new handle, and the
read is tried once more there: a damaged tile costs itself and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import openslide
from numpy.typing import NDArray

from wsi import mpp as pixel_size
from wsi.errors import TileReadError, UnreadableSlideError
from wsi.file_identity import FileIdentity
from wsi.geometry import downsample_of
from wsi.readers.base import BaseSlide, Facts, on_white
from wsi.slide import Level

_PROPERTIES = (
    openslide.PROPERTY_NAME_VENDOR,
    openslide.PROPERTY_NAME_OBJECTIVE_POWER,
    "openslide.mpp-x",
    "openslide.mpp-y",
    "aperio.MPP",
    "openslide.bounds-x",
    "openslide.bounds-y",
    "openslide.bounds-width",
    "openslide.bounds-height",
)
"""All that is ever asked for: the others may name a patient, and some cannot even be decoded."""


class OpenSlideSlide(BaseSlide):
    """A slide that OpenSlide reads.

    Raises:
        UnreadableSlideError: OpenSlide does not take the file, in its own words.
    """

    def __init__(self, path: Path, *, slide_mpp: float | None = None, manifest_mpp: float | None = None) -> None:
        identity = FileIdentity.of(path)
        handle = _open(path)
        properties = {name: handle.properties[name] for name in _PROPERTIES if name in handle.properties}
        levels = _levels(handle.level_dimensions)
        self._native = tuple(levels)
        power = pixel_size.parse_number(properties.get(openslide.PROPERTY_NAME_OBJECTIVE_POWER))
        stated = tuple(_stated(properties, axis) for axis in "xy")
        value, problem = pixel_size.resolve(
            (stated[0], stated[1]), "openslide.mpp-x", power, slide_mpp=slide_mpp, manifest_mpp=manifest_mpp
        )
        super().__init__(
            Facts(
                path=path,
                name=path.name,
                reader=f"openslide {openslide.__library_version__}",
                levels=tuple(levels.values()),
                vendor=properties.get(openslide.PROPERTY_NAME_VENDOR),
                mpp=value,
                mpp_problem=problem,
                objective_power=power,
                bounds=_bounds(properties),
                icc=getattr(handle, "_profile", None),  # the public face would decode it, damaged or not
            )
        )
        self._identity = identity
        self._handle: openslide.OpenSlide | None = handle

    def _read(self, x: int, y: int, width: int, height: int, level: int) -> NDArray[np.uint8]:
        handle = self._handle  # a thread's own reference: the library closes it when the last one is gone
        where = (x, y), self._native[level], (width, height)
        if handle is not None:
            try:
                return on_white(np.asarray(handle.read_region(*where)))
            except openslide.OpenSlideError:
                pass
        if FileIdentity.of(self.path) != self._identity:
            raise TileReadError(self.name, "the file was changed while it was read", "Run this slide again.")
        fresh = _open(self.path)
        pixels = on_white(np.asarray(fresh.read_region(*where)))
        self._handle = fresh if not self._closed else None
        return pixels

    def _close(self) -> None:
        self._handle = None


def _stated(properties: Mapping[str, str], axis: str) -> float | None:
    """Return µm/px as the file states them; a hexadecimal number, which OpenSlide believes, no scanner writes."""
    if "x" in properties.get("aperio.MPP", "").lower():
        return None
    return pixel_size.parse_number(properties.get(f"openslide.mpp-{axis}"))


def _open(path: Path) -> openslide.OpenSlide:
    try:
        return openslide.OpenSlide(path)
    except Exception as error:  # the border: whatever the library raises
        raise UnreadableSlideError(path.name, f"OpenSlide cannot open it ({error})") from error.with_traceback(None)


def _levels(sizes: tuple[tuple[int, int], ...]) -> dict[int, Level]:
    """Return OpenSlide's level numbers with our levels; one of another shape shows another region and is left out."""
    kept = {}
    for number, size in enumerate(sizes):
        downsample = downsample_of(sizes[0], size)
        if downsample is not None:
            kept[number] = Level(*size, downsample)
    return kept


def _bounds(properties: dict[str, str]) -> tuple[int, int, int, int] | None:
    try:
        x, y, width, height = (int(properties[f"openslide.bounds-{k}"]) for k in ("x", "y", "width", "height"))
    except (KeyError, ValueError):
        return None
    return x, y, width, height
