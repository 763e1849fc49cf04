"""Batches of tiles → normalized, each tile by the stain of its own slide."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

import stain
import wsi

if TYPE_CHECKING:
    from mil import Encoder

Pixels = NDArray[Any]


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
        encoder: the only one that gets the pixels, whose own table may be applied in the same pass; None for several.
    """

    def __init__(self, params_of: Callable[[int], stain.StainParams], encoder: Encoder | None) -> None:
        self._params_of, self._slab = params_of, Slab()
        self._levels = getattr(encoder, "levels", None)
        self._side = getattr(encoder, "input_size", 0)

    def __call__(self, batch: wsi.TileBatch, good: NDArray[np.int64]) -> Pixels:
        """Return the tiles `good` of a batch: (B, S, S, 3) uint8, or (B, 3, S, S) float32 as the encoder takes them."""
        pixels, slides = whole(batch, good), batch.slide[good]
        ordinals = np.unique(slides)
        if len(ordinals) == 1:
            return self._stained(int(ordinals[0]), pixels, self._slab)
        parts = [(mine, self._stained(int(n), pixels[mine], Slab())) for n in ordinals for mine in [slides == n]]
        out = np.empty((len(pixels), *parts[0][1].shape[1:]), parts[0][1].dtype)
        for mine, part in parts:
            out[mine] = part
        return out

    def _stained(self, ordinal: int, pixels: Pixels, slab: Slab) -> Pixels:
        params = self._params_of(ordinal)
        normalized: Pixels
        if self._levels is None or pixels.shape[1] != self._side:
            normalized = params.apply(pixels, slab(pixels.shape, np.uint8))
        else:
            shape = (len(pixels), 3, *pixels.shape[1:3])
            normalized = params.apply_normalized(pixels, self._levels, slab(shape, np.float32))
        return normalized


def whole(batch: wsi.TileBatch, good: NDArray[np.int64]) -> Pixels:
    """Return the tiles `good` of a batch, which are all in most cases."""
    pixels: Pixels = batch.pixels if len(good) == len(batch.ok) else batch.pixels[good]
    return pixels
