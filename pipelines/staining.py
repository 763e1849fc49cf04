"""Batches of tiles → normalized, each tile by the stain of its own slide, on the host or where the encoder is."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

import stain
import wsi
from stain.device import OnDevice

if TYPE_CHECKING:
    from mil import Encoder

Pixels = NDArray[Any]
Change = Callable[[Any, int, Any], Any]
"""What an encoder's device does to tiles, see `mil.encoders.timm_encoder`."""


class Slab:
    """Memory that batch after batch is written to: fresh memory would cost as much as normalizing."""

    def __init__(self) -> None:
        self._bytes = np.empty(0, np.uint8)

    def __call__(self, shape: tuple[int, ...], dtype: type[np.generic]) -> Pixels:
        """Return room for an array; what was returned before is given up."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        if len(self._bytes) < size:
            self._bytes = np.empty(size, np.uint8)
        return self._bytes[:size].view(dtype).reshape(shape)


class Staining:
    """Normalizes the tiles of a batch that could be read.

    Args:
        params_of: place of a slide in the stream → its stain.
        encoders: all that get the pixels. Where there is one, its own table may be applied in the same pass; where all
            compute on a device that takes it, tiles are normalized there, in front of the network. With none, tiles
            stay bytes on the host.
    """

    def __init__(self, params_of: Callable[[int], stain.StainParams], encoders: Sequence[Encoder]) -> None:
        self._params_of, self._slab = params_of, Slab()
        self._levels = getattr(encoders[0], "levels", None) if len(encoders) == 1 else None
        self._side = getattr(encoders[0], "input_size", 0) if encoders else 0
        there = bool(encoders) and all(getattr(one, "takes_change", False) for one in encoders)
        self._there = OnDevice(params_of) if there else None

    def __call__(self, batch: wsi.TileBatch, good: NDArray[np.int64]) -> tuple[Pixels, Change | None]:
        """Return the tiles `good` of a batch: (B, S, S, 3) uint8, or (B, 3, S, S) float32 as the encoder takes them.

        Returns:
            The tiles, normalized; or as they were read, and what is to be done to them on the device.
        """
        pixels, slides = whole(batch, good), batch.slide[good]
        if self._there is not None:
            return pixels, _change(self._there, slides)
        ordinals = np.unique(slides)
        if len(ordinals) == 1:
            return self._stained(int(ordinals[0]), pixels, self._slab), None
        parts = [(mine, self._stained(int(n), pixels[mine], Slab())) for n in ordinals for mine in [slides == n]]
        out = np.empty((len(pixels), *parts[0][1].shape[1:]), parts[0][1].dtype)
        for mine, part in parts:
            out[mine] = part
        return out, None

    def _stained(self, ordinal: int, pixels: Pixels, slab: Slab) -> Pixels:
        params = self._params_of(ordinal)
        normalized: Pixels
        if self._levels is None or pixels.shape[1] != self._side:
            normalized = params.apply(pixels, slab(pixels.shape, np.uint8))
        else:
            shape = (len(pixels), 3, *pixels.shape[1:3])
            normalized = params.apply_normalized(pixels, self._levels, slab(shape, np.float32))
        return normalized


def _change(there: OnDevice, slides: NDArray[np.int64]) -> Change:
    """Return what an encoder does to tiles of these slides, in the order of the batch, on its device."""

    def change(tiles: Any, row: int, levels: Any) -> Any:
        mine = slides[row : row + len(tiles)]
        filled = np.pad(mine, (0, len(tiles) - len(mine)), mode="edge")  # what a pass is filled up with is thrown away
        return there(tiles, filled, levels)

    return change


def whole(batch: wsi.TileBatch, good: NDArray[np.int64]) -> Pixels:
    """Return the tiles `good` of a batch, which are all in most cases."""
    pixels: Pixels = batch.pixels if len(good) == len(batch.ok) else batch.pixels[good]
    return pixels
