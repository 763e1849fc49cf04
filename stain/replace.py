"""Tables applied to batches, by machine code or array by array: the bytes are the same."""

from __future__ import annotations

import threading
from typing import Any, Final

import array_api_compat as compat
import numpy as np
from numpy.typing import NDArray

from .density import Array, check_pixels, map_pixels
from .tables import Tables, change_piece

_MANY: Final = 1 << 26
"""Pixels after which numba, where it is installed, has paid for the seconds that its import takes."""


def apply_tables(tables: Tables, pixels: Array, out: Array | None = None) -> Array:
    """Return changed pixels (..., 3) uint8, of the same library, device and shape; in `out` where that is given."""
    check_pixels(pixels)
    compiled = _way.compiled(pixels)
    if compiled is not None and pixels.ndim > 1:
        made = compat.array_namespace(pixels).empty_like(pixels) if out is None else out
        if np.asarray(made).flags.c_contiguous:
            compiled.change(tables, np.asarray(pixels), np.asarray(made))  # on the host they share their memory
            return made
    return put(map_pixels(pixels, lambda xp, piece: change_piece(tables, xp, piece)), out)


def apply_tables_normalized(
    tables: Tables, pixels: Array, levels: NDArray[np.float32], out: Array | None = None
) -> Array:
    """Return changed pixels as the planes that a network takes, in one pass.

    Args:
        tables: of the slide.
        pixels: (B, H, W, 3) uint8.
        levels: (3, 256) float32, what each value of R, G, B becomes.
        out: where to, (B, 3, H, W) float32, contiguous; none makes it.

    Returns:
        (B, 3, H, W) float32, of the same library and device: `levels` of the bytes that `apply_tables` gives.
    """
    xp = check_pixels(pixels)
    compiled = _way.compiled(pixels)
    if compiled is not None:
        batch, height, width, _ = pixels.shape
        made = xp.empty((batch, 3, height, width), dtype=xp.float32) if out is None else out
        if np.asarray(made).flags.c_contiguous:
            compiled.change_normalized(tables, np.asarray(pixels), levels, np.asarray(made))
            return made
    return put(planes_of(apply_tables(tables, pixels), levels), out)


def put(values: Array, out: Array | None) -> Array:
    """Return values, in `out` where that is given."""
    if out is None:
        return values
    out[...] = values
    return out


def planes_of(pixels: Array, levels: NDArray[np.float32]) -> Array:
    """Return pixels (B, H, W, 3) uint8 as (B, 3, H, W) float32, each value replaced by its level (3, 256)."""
    xp = check_pixels(pixels)
    device = compat.device(pixels)
    planes = []
    for channel, row in enumerate(levels):
        index = xp.reshape(xp.astype(pixels[..., channel], xp.int64), (-1,))
        values = xp.take(xp.asarray(row, dtype=xp.float32, device=device), index, axis=0)
        planes.append(xp.reshape(values, tuple(pixels.shape[:-1])))
    return xp.stack(planes, axis=1)


class _Way:
    """Whether machine code does it: once enough pixels came, on the host, where numba is installed."""

    def __init__(self) -> None:
        self.module: Any = None
        self.left = _MANY
        self.lock = threading.Lock()

    def compiled(self, pixels: Array) -> Any:
        """Return the module `stain.compiled`, or None."""
        if not (compat.is_numpy_array(pixels) or str(compat.device(pixels)) == "cpu"):
            return None
        self.left -= int(np.prod(pixels.shape[:-1], dtype=np.int64))  # threads may miss one another's count: a hint
        if self.left < 0 and self.module is None and self.lock.acquire(blocking=False):
            try:
                from . import compiled
            except ImportError:  # it was not installed; the lock is kept, so that no one tries again
                return None
            self.module = compiled
        return self.module


_way = _Way()
