"""The slide: a readable image pyramid, whoever reads it. `open_slide` finds the reader."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from wsi.mpp import Mpp

__all__ = ["Level", "Mpp", "Slide", "is_slide_file", "open_slide"]


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

    def read(self, x: int, y: int, width: int, height: int, *, level: int = 0) -> NDArray[np.uint8]:
        """Return RGB, shape (height, width, 3), uint8; white outside the slide and where nothing was scanned.

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


def open_slide(path: str | Path, *, slide_mpp: float | None = None, manifest_mpp: float | None = None) -> Slide:
    """Open a slide with the reader that can read it, chosen by the file's content.

    OpenSlide serves what it fully supports. OME-TIFF, whose levels it does not see, and TIFF that it refuses (untiled,
    other compressions) are read with tifffile. A TIFF's directories are checked before any pixel is asked for.

    Args:
        path: the file. Only regular files are opened.
        slide_mpp: µm/px, used only where the file's own value is missing or refused.
        manifest_mpp: µm/px of this very slide; used always.

    Returns:
        The slide. A missing pixel size is no error here: `mpp` is None and `mpp_problem` says why.

    Raises:
        UnreadableSlideError: not a slide, cut short, damaged, or of a kind that no reader takes.
        NotBrightfieldError: one grey channel, or several that are not RGB.
    """
    from wsi.opening import open_path

    return open_path(Path(path), slide_mpp=slide_mpp, manifest_mpp=manifest_mpp)


def is_slide_file(path: str | Path) -> bool:
    """Say whether a search through a folder should take this file for a slide: a cheap look, no pixels.

    True for regular files with a slide's extension (also damaged ones: they deserve an error, not silence) and for
    TIFF and DICOM content without extension. False for hidden files and for pictures. Of a DICOM slide every file
    counts; `wsi.series_uid` tells which of them are one slide.
    """
    from wsi.opening import looks_like_slide

    return looks_like_slide(Path(path))
