"""A slide that lies in memory: a real reader, and the one most tests use."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi.geometry import downsample_of, level_from_level0
from wsi.mpp import Mpp
from wsi.mpp import resolve as resolve_mpp
from wsi.readers.base import WHITE, BaseSlide, Facts
from wsi.slide import Level

OnRead = Callable[[int, int, int, int, int], None]


class MemorySlide(BaseSlide):
    """A pyramid of arrays.

    Args:
        levels: RGB arrays (H, W, 3) uint8, sharpest first; one array stands for a single level.
        mpp: µm per level-0 px; one number, (x, y), or None for a slide that does not say.
        name: the file name to go by.
        objective_power: 20 for 20x.
        vendor: the maker.
        bounds: the scanned box (x, y, width, height), level-0 px.
        on_read: called with (x, y, width, height, level) before each read, in the reading thread; it may sleep
            (slow storage) or raise (a damaged tile: a `TileReadError` stays, anything else becomes one).
        icc: the colour profile.

    Raises:
        ValueError: a level is no RGB array or has another shape than level 0.
    """

    def __init__(
        self,
        levels: NDArray[np.uint8] | Sequence[NDArray[np.uint8]],
        *,
        mpp: float | tuple[float, float] | None = None,
        name: str = "memory",
        objective_power: float | None = None,
        vendor: str | None = None,
        bounds: tuple[int, int, int, int] | None = None,
        on_read: OnRead | None = None,
        icc: bytes | None = None,
    ) -> None:
        self._arrays = [levels] if isinstance(levels, np.ndarray) else list(levels)
        self._on_read = on_read
        value, problem = _mpp(mpp, objective_power)
        super().__init__(
            Facts(
                path=Path(name),
                name=name,
                reader="memory",
                levels=_levels(self._arrays),
                vendor=vendor,
                mpp=value,
                mpp_problem=problem,
                objective_power=objective_power,
                bounds=bounds,
                icc=icc,
            )
        )

    def __reduce__(self) -> tuple[Any, ...]:
        """Refuse to travel: its pixels would have to."""
        raise TypeError(f"{self.name}: a slide in memory cannot be sent to another process")

    @classmethod
    def pyramid(
        cls,
        image: NDArray[np.uint8],
        downsamples: Sequence[int] = (1, 4, 16),
        *,
        mpp: float | tuple[float, float] | None = None,
        name: str = "memory",
        on_read: OnRead | None = None,
    ) -> MemorySlide:
        """Return a slide whose levels are area means of `image`; sides are cut to whole multiples."""
        arrays = []
        for k in downsamples:
            height, width = image.shape[0] // k, image.shape[1] // k
            blocks = image[: height * k, : width * k].reshape(height, k, width, k, 3)
            arrays.append(image if k == 1 else (blocks.mean((1, 3)) + 0.5).astype(np.uint8))
        return cls(arrays, mpp=mpp, name=name, on_read=on_read)

    def _read(self, x: int, y: int, width: int, height: int, level: int) -> NDArray[np.uint8]:
        if self._on_read is not None:
            self._on_read(x, y, width, height, level)
        dx, dy = self.levels[level].downsample
        return crop_on_white(self._arrays[level], level_from_level0(x, dx), level_from_level0(y, dy), width, height)


def crop_on_white(image: NDArray[np.uint8], x: int, y: int, width: int, height: int) -> NDArray[np.uint8]:
    """Return a copy (height, width, 3) of `image` from (x, y), in its own pixels; white where there is none."""
    rows, columns = image.shape[:2]
    top, left = max(y, 0), max(x, 0)
    part = image[top : max(y + height, 0), left : max(x + width, 0)]
    if part.shape[:2] == (height, width):
        return part.copy()
    out = np.full((height, width, 3), WHITE, np.uint8)
    if part.size and top < rows and left < columns:
        out[top - y : top - y + part.shape[0], left - x : left - x + part.shape[1]] = part
    return out


def _levels(arrays: list[NDArray[np.uint8]]) -> tuple[Level, ...]:
    levels = []
    for array in arrays:
        if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8:
            raise ValueError(f"a level must be (H, W, 3) uint8, not {array.shape} {array.dtype}")
        size = array.shape[1], array.shape[0]
        downsample = downsample_of((arrays[0].shape[1], arrays[0].shape[0]), size)
        if downsample is None:
            raise ValueError(f"a level of {size[0]} x {size[1]} px has another shape than level 0")
        levels.append(Level(*size, downsample))
    if not levels:
        raise ValueError("a slide needs at least one level")
    return tuple(levels)


def _mpp(given: float | tuple[float, float] | None, power: float | None) -> tuple[Mpp | None, str | None]:
    pair: tuple[float | None, float | None] = (None, None)
    if isinstance(given, tuple):
        pair = given
    elif given is not None:
        pair = given, given
    return resolve_mpp(pair, "memory", power)
