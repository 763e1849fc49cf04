"""Tables applied to batches, by machine code or array by array: the bytes are the same."""

from __future__ import annotations

import threading
from typing import Any, Final

import array_api_compat as compat
import numpy as np
from numpy.typing import NDArray

from .density import Array, check_pixels, map_pixels
from .errors import PixelFormatError
from .tables import Tables, change_piece

_MANY: Final = 1 << 26
"""Pixels after which numba, where it is installed, has paid for the seconds that its import takes."""


def apply_tables(tables: Tables, pixels: Array, out: Array | None = None) -> Array:
    """Return changed pixels (..., 3) uint8, of the same library, device and shape; in `out` where that is given.

    Raises:
        PixelFormatError: not uint8 RGB, or `out` has another shape or type.
    """
    xp = check_pixels(pixels)
    check_out(out, tuple(pixels.shape), "uint8")
    compiled = _way.compiled(pixels)
    if compiled is not None and pixels.ndim > 1:
        made = xp.empty_like(pixels) if out is None else out
        into = np.asarray(made)  # on the host they share their memory
        if into.flags.c_contiguous:
            compiled.change(tables, _beside(pixels, into), into)
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

    Raises:
        PixelFormatError: not tiles of uint8 RGB, or `levels` or `out` has another shape or type.
    """
    xp = check_pixels(pixels)
    check_planes(pixels, levels, out)
    compiled = _way.compiled(pixels)
    if compiled is not None:
        batch, height, width, _ = pixels.shape
        made = xp.empty((batch, 3, height, width), dtype=xp.float32) if out is None else out
        into = np.asarray(made)
        if into.flags.c_contiguous:
            compiled.change_normalized(tables, _beside(pixels, into), levels, into)
            return made
    return put(planes_of(apply_tables(tables, pixels), levels), out)


def check_planes(pixels: Array, levels: NDArray[np.float32], out: Array | None) -> None:
    """Refuse what cannot be laid out as planes, before machine code writes past the end of it.

    Raises:
        PixelFormatError: see `apply_tables_normalized`.
    """
    check_pixels(pixels)
    if pixels.ndim != 4:
        raise PixelFormatError(f"pixels have shape {tuple(pixels.shape)}, not (B, H, W, 3).")
    if np.shape(levels) != (3, 256):
        raise PixelFormatError(f"levels have shape {np.shape(levels)}, not (3, 256): one of each byte and channel.")
    batch, height, width, _ = pixels.shape
    check_out(out, (batch, 3, height, width), "float32")


def check_out(out: Array | None, shape: tuple[int, ...], dtype: str) -> None:
    """Refuse memory of another shape or type: a cast would be silent, and machine code checks no bounds.

    Raises:
        PixelFormatError: `out` does not take the result.
    """
    if out is None:
        return
    if not (compat.is_numpy_array(out) or compat.is_torch_array(out)):
        raise PixelFormatError(f"out is {type(out).__name__}, not a numpy or torch array.")
    got = str(out.dtype).rpartition(".")[2]  # "torch.uint8" and "uint8" are one
    if (tuple(out.shape), got) != (shape, dtype):
        raise PixelFormatError(f"out has type {got} and shape {tuple(out.shape)}, not {dtype} and {shape}.")


def _beside(pixels: Array, out: NDArray[Any]) -> NDArray[np.uint8]:
    """Return pixels that stay while `out` is written: machine code reads some of them twice."""
    host = np.asarray(pixels)
    return host.copy() if np.may_share_memory(host, out) else host


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
