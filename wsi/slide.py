"""The slide: a readable image pyramid, whoever reads it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from wsi.icc import ColorProfile, ToSrgb
from wsi.mpp import Mpp


@dataclass(frozen=True)
class Level:
    """One level of the pyramid.

    Attributes:
        width: in pixels of this level.
        height: in pixels of this level.
        downsample: level-0 pixels per pixel of this level, (x, y).
    """

    width: int
    height: int
    downsample: tuple[float, float]


@runtime_checkable
class Slide(Protocol):
    """A readable image pyramid. Level 0 is the sharpest; x grows right, y grows down."""

    @property
    def path(self) -> Path:
        """The file; for a slide in memory, a name."""

    @property
    def name(self) -> str:
        """The file's name, with its extension."""

    @property
    def reader(self) -> str:
        """The library that reads it, with its version, e.g. `openslide 4.0.1`."""

    @property
    def vendor(self) -> str | None:
        """The scanner's maker in OpenSlide's words, None where unknown."""

    @property
    def levels(self) -> tuple[Level, ...]:
        """The pyramid, sharpest first; never empty."""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of level 0, in pixels: the full canvas."""

    @property
    def mpp(self) -> Mpp | None:
        """µm per level-0 pixel, None where nothing usable is known."""

    @property
    def mpp_problem(self) -> str | None:
        """Why the file's own µm/px is not used, None where it is."""

    @property
    def objective_power(self) -> float | None:
        """20 for a 20x scan, None where the file does not say."""

    @property
    def bounds(self) -> tuple[int, int, int, int] | None:
        """The box (x, y, width, height) that was scanned, level-0 px, None where the file does not say."""

    @property
    def profile(self) -> ColorProfile | None:
        """The colour profile of the file, None where it has none."""

    @property
    def convert(self) -> ToSrgb | None:
        """What tiles and thumbnails go through once they are cut and resized, None where they stay as they are."""

    def read(self, x: int, y: int, width: int, height: int, *, level: int = 0) -> NDArray[np.uint8]:
        """Return RGB, shape (height, width, 3), uint8; white outside the slide and where nothing was scanned.

        The colours are those of the file; see `convert`.
        `x`, `y` are level-0 pixels; `width`, `height` are pixels of `level`. May be called from several threads.

        Raises:
            TileReadError: the region cannot be read; other regions may still be.
        """

    def close(self) -> None:
        """Let go of the file; reads that run in other threads end first."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
