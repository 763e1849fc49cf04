"""What all readers share: the facts about a slide, and white outside of it."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from wsi.errors import COPY_AGAIN, TileReadError
from wsi.file_identity import FileIdentity
from wsi.icc import ColorProfile, ToSrgb, profile_of
from wsi.mpp import Mpp
from wsi.ranges import RemoteError
from wsi.slide import Level
from wsi.sources import ByteSource, Identity, fetch_error
from wsi.thread_clock import set_aside

if TYPE_CHECKING:
    from wsi.readers.direct import NativeTiles
    from wsi.staging import Held

WHITE = 255
_KEPT = ("mpp", "mpp_problem", "convert", "native", "held", "bands")
"""What may be decided about a slide after it was opened."""


@dataclass(frozen=True)
class Facts:
    """What is known of a slide without its pixels; see `wsi.slide.Slide` for the meaning of each."""

    path: Path
    name: str
    reader: str
    levels: tuple[Level, ...]
    vendor: str | None = None
    mpp: Mpp | None = None
    mpp_problem: str | None = None
    objective_power: float | None = None
    bounds: tuple[int, int, int, int] | None = None
    icc: bytes | None = None


class BaseSlide(ABC):
    """A slide; readers say how a region is read (`_read`) and what is to be closed (`_close`)."""

    source: ByteSource | None = None
    """Its open file, where the reader works on one."""

    def __init__(self, facts: Facts) -> None:
        self._facts = facts
        self._closed = False
        self._identity: Identity | None = _identity(facts.path)
        self.path = facts.path
        self.name = facts.name
        self.reader = facts.reader
        self.vendor = facts.vendor
        self.levels = facts.levels
        self.size = (facts.levels[0].width, facts.levels[0].height)
        self.mpp = facts.mpp
        self.mpp_problem = facts.mpp_problem
        self.objective_power = facts.objective_power
        self.bounds = facts.bounds
        self.convert: ToSrgb | None = None
        self.native: NativeTiles | None = None
        """The compressed tiles of the file, where they can be read without `read`."""
        self.bands: tuple[int | None, ...] = ()
        """Per level the rows of a band, where it is stored in bands as wide as itself; one is decoded whole."""
        self.held: Held | None = None
        """What keeps the file on this disk until the slide is closed, where it is a copy of one that lies elsewhere."""

    @cached_property
    def profile(self) -> ColorProfile | None:
        """The colour profile of the file, None where it has none."""
        return profile_of(self._facts.icc)

    @abstractmethod
    def _read(self, x: int, y: int, width: int, height: int, level: int) -> NDArray[np.uint8]:
        """As `read`, with arguments that were checked. Raises TileReadError, or what the library raises."""

    def _close(self) -> None:  # noqa: B027  # nothing to do is a fine default
        """Let go of the file."""

    def read(self, x: int, y: int, width: int, height: int, *, level: int = 0) -> NDArray[np.uint8]:
        """Return RGB, shape (height, width, 3), uint8; see `wsi.slide.Slide.read`."""
        if self._closed:
            raise ValueError(f"{self.name}: the slide was closed before all its tiles were read")
        if width <= 0 or height <= 0 or not 0 <= level < len(self.levels):
            raise ValueError(f"{self.name}: cannot read {width} x {height} px of level {level}")
        try:
            return self._read(x, y, width, height, level)
        except TileReadError:
            raise
        except Exception as error:  # a library's own error types are many and unnamed: this is the border
            raise self._failed(x, y, width, height, level, error) from error.with_traceback(None)

    def _failed(self, x: int, y: int, width: int, height: int, level: int, error: Exception) -> TileReadError:
        if isinstance(error, RemoteError):
            return fetch_error(error)
        cause = str(error) or type(error).__name__
        what = f"cannot read {width} x {height} px at ({x}, {y}) of level {level} ({self.reader}: {cause})"
        return TileReadError(self.name, what, COPY_AGAIN)

    def close(self) -> None:
        """Let go of the file; later reads are refused."""
        if not self._closed:
            self._closed = True
            if self.native is not None:
                self.native.close()
            self._close()
            if self.held is not None:
                self.held.let_go()
                self.held = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel to another process as the way to open the file there: a handle never crosses."""
        if self._identity is None:
            raise TypeError(f"{self.name}: a slide that is no file cannot be sent to another process")
        facts = replace(self._facts, path=self.path.absolute())
        return ReopenedSlide, (type(self), facts, self._identity, {name: vars(self)[name] for name in _KEPT})

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        width, height = self.size
        return f"<{self.name}: {width} x {height} px, {len(self.levels)} levels, {self.reader}>"


class ReopenedSlide(BaseSlide):
    """A slide that came from another process; the file is opened when the first pixel is asked for.

    Whoever only hands it on never runs the library that reads it.

    Args:
        reader: opens the file with the reader that was chosen.
        facts: of the slide; the path is absolute.
        identity: of the file that was looked at.
        kept: see `_KEPT`.
    """

    def __init__(
        self, reader: Callable[[Path], BaseSlide], facts: Facts, identity: Identity, kept: dict[str, Any]
    ) -> None:
        super().__init__(facts)
        vars(self).update(kept)
        self._identity = identity
        self._reader = reader
        self._lock = threading.Lock()
        self._slide: BaseSlide | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel on as it came."""
        kept = {name: vars(self)[name] for name in _KEPT}
        return ReopenedSlide, (self._reader, self._facts, self._identity, kept)

    def _read(self, x: int, y: int, width: int, height: int, level: int) -> NDArray[np.uint8]:
        return self._opened()._read(x, y, width, height, level)

    def _opened(self) -> BaseSlide:
        slide = self._slide
        if slide is not None:
            return slide
        with set_aside(), self._lock:  # who waits until it is opened waits for no read
            if self._slide is None:
                slide = self._reader(self.path)
                if slide._identity != self._identity:
                    slide.close()
                    raise TileReadError(self.name, "the file was changed while it was read", "Run this slide again.")
                self._slide = slide
            return self._slide

    def _close(self) -> None:
        with self._lock:
            if self._slide is not None:
                self._slide.close()


def _identity(path: Path) -> FileIdentity | None:
    try:
        return FileIdentity.of(path)
    except OSError:
        return None


def on_white(rgba: NDArray[np.uint8], *, premultiplied: bool = False) -> NDArray[np.uint8]:
    """Return RGB (H, W, 3) of RGBA (H, W, 4) laid on white.

    What a scanner left out is glass: transparent pixels become white, not black.
    """
    alpha = rgba[..., 3:]
    if alpha.min() == WHITE:
        return np.ascontiguousarray(rgba[..., :3])
    colour = rgba[..., :3].astype(np.uint16)
    opaque = alpha.astype(np.uint16)
    if not premultiplied:
        colour = (colour * opaque + WHITE // 2) // WHITE
    return np.asarray(np.minimum(colour + (WHITE - opaque), WHITE), np.uint8)
