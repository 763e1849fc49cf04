"""Tiles of a feature file read again from their slide: as people see them, or as the encoder saw them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

import stain
import wsi

from .augmenting import NONE, augmentation
from .features import FeatureFile
from .manifest import SlideEntry

_TOGETHER = 32


@dataclass(frozen=True)
class SlideTiles:
    """Tiles in the order of the rows of a feature file, a few at a time; may be gone through again.

    Attributes:
        entry: the slide.
        file: its features, which say how it was read.
        rows: which of them; None for all.
        normalized: with the stain normalization that the encoder saw, and the colors, where these were changed.
    """

    entry: SlideEntry
    file: FeatureFile
    rows: Sequence[int] | None = None
    normalized: bool = True

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        """Yield (b, S, S, 3).

        Raises:
            wsi.SlideError: the slide is gone, unreadable, or another one than was encoded.
        """
        xy = self.file.xy if self.rows is None else self.file.xy[np.asarray(self.rows, np.int64)]
        params = self._params("stain_params") if self.normalized else None
        with opened(self.entry, self.file) as (slide, grid):
            row_of = {(int(x), int(y)): row for row, (x, y) in enumerate(grid.xy)}
            for start in range(0, len(xy), _TOGETHER):
                part = [(int(x), int(y)) for x, y in xy[start : start + _TOGETHER]]
                absent = [place for place in part if place not in row_of]
                if absent:
                    what = f"it has no tile at {absent[0]}: this is another slide than the one encoded"
                    raise wsi.SlideError(slide.name, what)
                pixels = wsi.read_tiles(slide, grid, [row_of[place] for place in part])
                pixels = pixels if params is None else np.asarray(params.apply(pixels))
                yield self._augmented(pixels, part) if self.normalized else pixels

    def all(self) -> NDArray[np.uint8]:
        """Return them together, (n, S, S, 3)."""
        side = int(self.file.attributes["patch_size"])
        parts = list(self)
        return np.concatenate(parts) if parts else np.zeros((0, side, side, 3), np.uint8)

    def _augmented(self, pixels: NDArray[np.uint8], places: Sequence[tuple[int, int]]) -> NDArray[np.uint8]:
        """Return tiles with their colors changed as they were for the encoder."""
        how = augmentation(str(self.file.passport.get("augment", NONE)))
        stains = self._params("augment_stains")
        if how is None or stains is None:
            return pixels
        return how.change(pixels, stains, str(self.file.attributes["slide_sha256"]), places)

    def _params(self, name: str) -> stain.StainParams | None:
        told = self.file.attributes.get(name)
        return None if told is None else stain.StainParams.from_json(json.loads(str(told)))


@contextmanager
def opened(entry: SlideEntry, file: FeatureFile) -> Iterator[tuple[wsi.Slide, wsi.TileGrid]]:
    """Open a slide as it was opened when its features were made, with the grid of all its tiles.

    Raises:
        wsi.SlideError: the slide is gone or unreadable.
    """
    a = file.attributes
    mpp, source = float(a["mpp_x"]), str(a["mpp_source"])
    given: dict[str, Any] = {"manifest": {"manifest_mpp": mpp}, "--slide-mpp": {"slide_mpp": mpp}}.get(source, {})
    low_band = file.passport.get("jpeg2000") == "low-band"
    spec = wsi.TileSpec(size=int(a["patch_size"]), mpp=float(a["tile_mpp"]), overlap=int(a["overlap"]))
    icc = str(file.passport.get("icc", "none"))
    with wsi.open_slide(entry.path, icc=icc, low_band=low_band, **given) as slide:
        yield slide, wsi.tile_grid(slide, None, spec, allow_upsampling=True)
