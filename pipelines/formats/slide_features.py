"""The features of one slide between two formats: what every tool knows of them, each in one unit."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import CheckFailedError

_FARTHEST = 2**31
"""No slide has so many pixels on a side."""


@dataclass(frozen=True)
class Given:
    """What the user says of slides, where files do not.

    Attributes:
        mpp: µm per level-0 pixel.
        footprint: side of a tile in level-0 pixels.
        tile: side of a tile in px as the encoder saw it.
        encoder: name of the encoder that made the features; of a file with several, the one to take.
    """

    mpp: float | None = None
    footprint: int | None = None
    tile: int | None = None
    encoder: str | None = None


@dataclass(frozen=True)
class SlideFeatures:
    """The features of one slide.

    Attributes:
        slide_id: name of the slide.
        features: (N, D).
        xy: (N, 2) int64, level-0 pixels of the full canvas, top-left corners.
        footprint: (width, height) of a tile in level-0 pixels.
        tile: side of a tile in px as the encoder saw it.
        mpp: (x, y) µm per level-0 pixel, None where nobody says.
        overlap: px of the tile that neighbors share.
        slide_size: (width, height) of the canvas in level-0 pixels, (0, 0) where nobody says.
        passport: how the features were made, as far as that is known.
        notes: what was supposed on the way.
    """

    slide_id: str
    features: NDArray[Any]
    xy: NDArray[np.int64]
    footprint: tuple[int, int]
    tile: int
    mpp: tuple[float, float] | None
    passport: dict[str, Any]
    overlap: int = 0
    slide_size: tuple[int, int] = (0, 0)
    notes: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        """Refuse what does not fit together."""
        if self.features.ndim != 2 or self.xy.shape != (len(self.features), 2):
            raise CheckFailedError(
                f"{self.slide_id}: {self.features.shape} features and {self.xy.shape} coordinates do not fit together."
            )
        if len(self.xy) and (self.features.shape[1] == 0 or self.features.dtype.kind not in "fiu"):
            raise CheckFailedError(
                f"{self.slide_id}: no features: {self.features.shape[1]} columns of {self.features.dtype}."
            )

    @property
    def encoder(self) -> str:
        """Name of the encoder."""
        return str(self.passport.get("id") or "unknown")

    @property
    def tile_mpp(self) -> float | None:
        """µm per pixel of the tile."""
        return None if self.mpp is None else self.footprint[0] * self.mpp[0] / self.tile

    @property
    def cohort_mpp(self) -> float:
        """µm per pixel of the tiles as the whole cohort has it: the true one may vary with the scanner."""
        said = self.passport.get("tile", {}).get("mpp")
        return float(said or nominal(self.needs_mpp("a folder of tiles")[0] * self.footprint[0] / self.tile))

    def needs_mpp(self, what: str) -> tuple[float, float]:
        """Return the µm/px, for formats that cannot do without.

        Raises:
            CheckFailedError: nobody says it.
        """
        if self.mpp is None:
            raise CheckFailedError(
                f"{self.slide_id}: {what} needs the slide's µm/px, which its file does not say. "
                "Give it with --slide-mpp, or a column mpp in --slides CSV."
            )
        return self.mpp


def nominal(mpp: float) -> float:
    """Return the µm/px that people mean by the nearest magnification: 0.25 for all of "40x", by TRIDENT's bins."""
    bins = ((0.16, 80), (0.20, 60), (0.30, 40), (0.60, 20), (1.20, 10), (2.40, 5))
    return next((10 / magnification for limit, magnification in bins if mpp < limit), mpp)


def foreign_passport(tool: str, encoder: str | None, dim: int, dtype: str, **more: Any) -> dict[str, Any]:
    """Return what can be said of features that another tool made; what is not known is None."""
    return {
        "id": encoder or "unknown",
        "kind": "converted",
        "made_by": tool,
        "weights_sha256": None,
        "dim": dim,
        "stored_dtype": dtype,
        **more,
    }


def two_dimensional(features: NDArray[Any], name: str) -> NDArray[Any]:
    """Return (N, D) of the shapes that tools write: (N, D), (1, N, D), and (0,) for an empty slide.

    Raises:
        CheckFailedError: another shape, e.g. one vector for the whole slide.
    """
    if features.ndim == 3 and len(features) == 1:
        features = features[0]
    if features.shape == (0,):
        features = features.reshape(0, 0)
    if features.ndim != 2:
        raise CheckFailedError(f"{name}: {features.shape} is no list of tiles; features of whole slides are not taken.")
    return features


def places(coords: NDArray[Any], name: str) -> NDArray[np.int64]:
    """Return where tiles lie, (N, 2) level-0 pixels, of numbers of any kind.

    Raises:
        CheckFailedError: values that are no places on any slide.
    """
    values = np.asarray(coords).reshape(-1, 2)
    if values.dtype.kind not in "fiu" or not (np.abs(values.astype(np.float64)) < _FARTHEST).all():  # nor NaN
        raise CheckFailedError(f"{name}: its coordinates are no pixels of a slide.")
    whole: NDArray[np.int64] = np.rint(values).astype(np.int64)
    return whole


def square(side: Any) -> tuple[int, int]:
    """Return width and height of a square tile."""
    return int(side), int(side)
