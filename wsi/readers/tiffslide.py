"""Slides through tiffslide: the last to be asked, and a second opinion on what the other readers show."""

from __future__ import annotations

import contextlib
import threading
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi import mpp as pixel_size
from wsi.errors import UnreadableSlideError
from wsi.geometry import downsample_of, level_from_level0
from wsi.readers.base import BaseSlide, Facts
from wsi.readers.memory import crop_on_white
from wsi.slide import Level

_ICC = 34675


class TiffslideSlide(BaseSlide):
    """A slide that tiffslide reads. What it is known to get wrong is refused.

    It hands out 16-bit pixels, CMYK as if it were RGBA, and levels in the file's order.

    Raises:
        UnreadableSlideError: tiffslide does not take it, or would show it wrongly.
    """

    def __init__(self, path: Path, *, slide_mpp: float | None = None, manifest_mpp: float | None = None) -> None:
        with warnings.catch_warnings(), contextlib.ExitStack() as on_error:
            warnings.simplefilter("ignore")
            try:
                import tiffslide

                handle = on_error.enter_context(tiffslide.TiffSlide(path))
                properties = dict(handle.properties)
                profile = handle.ts_tifffile.pages.first.tags.valueof(_ICC)
                sizes = tuple(handle.level_dimensions)
                sample = handle.read_region((0, 0), len(sizes) - 1, (1, 1), as_array=True)
            except Exception as error:  # the border: about forty kinds
                what = f"tiffslide cannot open it ({error})"
                raise UnreadableSlideError(path.name, what) from error.with_traceback(None)
            _check(path, sizes, sample)
            on_error.pop_all()
        power = pixel_size.parse_number(properties.get("tiffslide.objective-power"))
        stated = tuple(pixel_size.parse_number(properties.get(f"tiffslide.mpp-{axis}")) for axis in "xy")
        value, problem = pixel_size.resolve(
            (stated[0], stated[1]), "tiffslide.mpp-x", power, slide_mpp=slide_mpp, manifest_mpp=manifest_mpp
        )
        downsamples = (downsample_of(sizes[0], size) for size in sizes)
        levels = {i: Level(*size, d) for i, (size, d) in enumerate(zip(sizes, downsamples, strict=True)) if d}
        super().__init__(
            Facts(
                path=path,
                name=path.name,
                reader=f"tiffslide {version('tiffslide')}",
                levels=tuple(levels.values()),
                vendor=properties.get("tiffslide.vendor"),
                mpp=value,
                mpp_problem=problem,
                objective_power=power,
                icc=profile,
            )
        )
        self._native = tuple(levels)
        self._handle = handle
        self._lock = threading.Lock()  # a close during a read trips the library's assertions

    def _read(self, x: int, y: int, width: int, height: int, level: int) -> NDArray[np.uint8]:
        plane, (dx, dy) = self.levels[level], self.levels[level].downsample
        left, top = level_from_level0(x, dx), level_from_level0(y, dy)
        a, b = min(max(left, 0), plane.width), min(max(top, 0), plane.height)
        c, d = max(min(left + width, plane.width), a), max(min(top + height, plane.height), b)
        inside: NDArray[np.uint8] = np.empty((0, 0, 3), np.uint8)
        if c > a and d > b:  # only what lies on the slide: outside it tiffslide is black
            where = (round(a * dx), round(b * dy)), self._native[level], (c - a, d - b)
            with self._lock:
                region = self._handle.read_region(*where, as_array=True)
            inside = np.asarray(region, np.uint8)
        return crop_on_white(inside, left - a, top - b, width, height)

    def _close(self) -> None:
        with self._lock:
            self._handle.close()


def _check(path: Path, sizes: tuple[tuple[int, int], ...], sample: NDArray[Any]) -> None:
    if sample.dtype != np.uint8 or sample.shape[-1] != 3:
        raise UnreadableSlideError(path.name, f"tiffslide gives {sample.dtype} pixels of {sample.shape[-1]} channels")
    if list(sizes) != sorted(sizes, key=lambda s: -s[0] * s[1]):
        raise UnreadableSlideError(path.name, "tiffslide sees the levels in the wrong order")
