"""Feature maps of tiles beside their features: a zarr group for each slide, written while the slide is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

import wsi

from .errors import UsageError
from .features import coords_attributes, decisive
from .formats.maps_store import VERSION, MapWriter, check_zarr
from .jobfolder import JobFolder, Tiling
from .records import current, forget, seal
from .slide_work import SlideWork, passport_name
from .staining import Change

if TYPE_CHECKING:
    from mil import Encoder


@dataclass(frozen=True)
class Encoded:
    """What an encoder gives for a batch: features (B, D), and maps (B, h, w, C) where they are asked for."""

    values: NDArray[np.float32]
    maps: NDArray[np.float32] | None = None

    def of(self, mine: NDArray[np.bool_]) -> Encoded:
        """Return those of some tiles."""
        return Encoded(self.values[mine], None if self.maps is None else self.maps[mine])


@dataclass
class Maps:
    """The maps of one encoder, and the slides that are under way.

    Attributes:
        encoder: the encoder.
        passport: how its features are made.
    """

    encoder: Encoder
    passport: Mapping[str, Any]
    _writers: dict[str, MapWriter] = field(default_factory=dict)

    def store(self, tiling: Tiling, slide_id: str) -> Path:
        """The zarr group of a slide."""
        return tiling.maps(passport_name(self.passport), slide_id)

    def is_done(self, job: JobFolder, tiling: Tiling, slide_id: str, parts: Mapping[str, Any]) -> bool:
        """Tell whether the maps of a slide lie there, made from just these parts."""
        return current(job, self._output(tiling, slide_id), self._parts(parts)) is not None

    def put(
        self, work: SlideWork, tiling: Tiling, rows: NDArray[np.int64], maps: NDArray[np.float32], dtype: str
    ) -> None:
        """Write the maps of some tiles of a slide."""
        self._writer(work, tiling, dtype).put(rows, maps)

    def finish(self, work: SlideWork, job: JobFolder, tiling: Tiling, dtype: str) -> None:
        """Finish the store of a slide whose features are written.

        Raises:
            wsi.SlideError: a map holds what is no number.
        """
        name, writer = work.entry.slide_id, self._writer(work, tiling, dtype)
        if writer.bad is not None:
            x, y = work.grid.xy[writer.bad]
            raise wsi.SlideError(
                name,
                f"the map of the tile at ({x}, {y}) holds values that are no finite {dtype}",
                "Try --set dtype=float32; if it stays, the weights are damaged: check them.",
            )
        kept, output = np.flatnonzero(work.done), self._output(tiling, name)
        forget(job, output)
        attributes = coords_attributes(name, work.grid, work.slide.bounds)
        files = writer.close(kept, work.grid.xy[kept], attributes, self.passport)
        self._writers.pop(name)
        seal(job, output, self._parts(work.parts), companions=files[1:])

    def drop(self, slide_id: str) -> None:
        """Give up a slide: nothing of it stays."""
        if slide_id in self._writers:
            self._writers.pop(slide_id).drop()

    def close(self) -> None:
        """Give up all slides that are not finished."""
        for slide_id in list(self._writers):
            self.drop(slide_id)

    def _output(self, tiling: Tiling, slide_id: str) -> Path:
        """The file whose record says that the store is whole."""
        return self.store(tiling, slide_id) / "zarr.json"

    def _parts(self, parts: Mapping[str, Any]) -> dict[str, Any]:
        return {**parts, "encoder": decisive(self.passport), "maps": VERSION}

    def _writer(self, work: SlideWork, tiling: Tiling, dtype: str) -> MapWriter:
        name = work.entry.slide_id
        if name not in self._writers:
            shape = _shape(self.encoder)
            self._writers[name] = MapWriter(self.store(tiling, name), len(work.grid.xy), shape, dtype)
        return self._writers[name]


def encode(encoder: Encoder, pixels: NDArray[Any], maps: Maps | None, change: Change | None = None) -> Encoded:
    """Encode a batch, with maps where they are asked for: in one pass.

    Args:
        encoder: the encoder.
        pixels: as it takes them.
        maps: of this encoder, where they are asked for.
        change: what is done to them on its device; for encoders that take that.
    """
    more = {} if change is None else {"change": change}
    if maps is None:
        return Encoded(encoder(pixels, **more))
    return Encoded(*encoder.with_map(pixels, **more))  # type: ignore[attr-defined] # asked for by `check_maps`


def check_maps(encoders: Sequence[Encoder]) -> None:
    """Refuse to make maps where that cannot be.

    Raises:
        UsageError: an encoder has no map.
        EnvironmentFault: zarr is not installed.
    """
    check_zarr()
    for encoder in encoders:
        if not hasattr(encoder, "with_map"):
            raise UsageError(
                f"--dense: the encoder {encoder.id} gives one vector per tile and has no map. Choose a network, e.g. "
                "--encoder resnet18 --weights FILE, or leave --dense out."
            )


def map_bytes(encoder: Encoder, dtype: str) -> int:
    """Return what the map of one tile takes on the disk."""
    return int(np.prod(_shape(encoder))) * np.dtype(dtype).itemsize


def _shape(encoder: Encoder) -> tuple[int, ...]:
    shape: tuple[int, ...] = encoder.map_shape  # type: ignore[attr-defined]
    return shape
