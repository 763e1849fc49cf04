"""Further encoders beside the first: they get the same pixels, which are read once, and each has its own features."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .config import ExtractSettings
from .features import decisive
from .jobfolder import JobFolder, Tiling
from .maps import Encoded, Maps
from .records import current
from .slide_work import SlideWork, finish_slide, passport_name

if TYPE_CHECKING:
    from mil import Encoder


@dataclass
class Beside:
    """One further encoder, and the slides it is at work on.

    Attributes:
        encoder: the encoder.
        passport: how its features are made.
        maps: where its maps go, None where they are not asked for.
    """

    encoder: Encoder
    passport: Mapping[str, Any]
    maps: Maps | None = None
    _works: dict[str, SlideWork] = field(default_factory=dict)

    def output(self, tiling: Tiling, slide_id: str) -> Path:
        """The feature file of a slide."""
        return tiling.features(passport_name(self.passport), slide_id)

    def parts(self, parts: Mapping[str, Any]) -> dict[str, Any]:
        """Return what determines its features of a slide, from what determines those of the first encoder."""
        return {**parts, "encoder": decisive(self.passport)}

    def is_done(self, job: JobFolder, tiling: Tiling, slide_id: str, parts: Mapping[str, Any]) -> bool:
        """Tell whether its features of a slide lie there, made from just these parts."""
        mapped = self.maps is None or self.maps.is_done(job, tiling, slide_id, parts)
        return mapped and current(job, self.output(tiling, slide_id), self.parts(parts)) is not None

    def put(self, work: SlideWork, tiling: Tiling, rows: NDArray[np.int64], found: Encoded, dtype: str) -> None:
        """Keep its features of some tiles of a slide."""
        self.of(work).put(rows, found.values, dtype)
        if self.maps is not None and found.maps is not None:
            self.maps.put(work, tiling, rows, found.maps, dtype)

    def finish(self, work: SlideWork, job: JobFolder, tiling: Tiling, settings: ExtractSettings) -> None:
        """Write its features of a slide that is complete.

        Raises:
            wsi.SlideError: they are no numbers.
        """
        own = self.of(work)
        own.unfetched = work.unfetched  # it may have come after the first tiles
        self._works.pop(work.entry.slide_id)
        finish_slide(own, job, tiling, settings, self.passport, self.encoder.dim)
        if self.maps is not None:
            self.maps.finish(own, job, tiling, settings.dtype)

    def drop(self, slide_id: str) -> None:
        """Give up a slide."""
        self._works.pop(slide_id, None)
        if self.maps is not None:
            self.maps.drop(slide_id)

    def of(self, work: SlideWork) -> SlideWork:
        """Return its own state of a slide: same file, same tiles, same missing tiles, other features."""
        name = work.entry.slide_id
        if name not in self._works:
            self._works[name] = replace(work, parts=self.parts(work.parts), features=None)
        return self._works[name]


def beside(
    encoders: Sequence[Encoder], passport: Callable[[Encoder], Mapping[str, Any]], *, dense: bool
) -> tuple[Beside, ...]:
    """Return the further encoders of a run; `dense` where their maps are asked for."""
    told = [(encoder, passport(encoder)) for encoder in encoders]
    return tuple(Beside(encoder, own, Maps(encoder, own) if dense else None) for encoder, own in told)
