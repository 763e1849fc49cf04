"""Tiles normalized where a network takes them, in front of it: on a device, a batch may hold tiles of several slides.

`normalized` makes what a network takes of bytes that lie on a device: stains are replaced by the very tables that the
host uses, so the bytes in between are the same; each is then replaced by what mean and standard deviation make of it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Final

import array_api_compat as compat
import numpy as np
from numpy.typing import NDArray

from . import macenko
from .density import Array, check_pixels
from .errors import PixelFormatError
from .macenko import StainMatrix
from .normalize import StainParams
from .tables import Placed, placed, places

_PIECE: Final = 1 << 22
"""Pixels changed at once: what lies between takes some 70 bytes of each, hence 300 MB whatever the batch."""

_KEPT: Final = 64
"""Slides whose tables stay on a device; a batch rarely holds tiles of more than ten."""


def normalized(tables: Placed, tiles: Array, levels: Array | None = None) -> Array:
    """Replace two stains, and lay tiles out as a network takes them.

    Args:
        tables: of the slide, on the device of the tiles.
        tiles: (B, H, W, 3) uint8.
        levels: (3, 256) on that device, what each value of R, G, B becomes; its type is that of the result. None leaves
            bytes.

    Returns:
        (B, 3, H, W) of the type of `levels`, in memory with the channel last; without them (B, H, W, 3) uint8.
    """
    xp = check_pixels(tiles)
    values = tables.levels if levels is None else xp.take(levels, xp.astype(tables.levels, xp.int32), axis=1)
    pixels = xp.reshape(tiles, (-1, 3))
    out = xp.empty(tuple(pixels.shape), dtype=values.dtype, device=compat.device(tiles))
    for start in range(0, pixels.shape[0], _PIECE):
        piece = xp.astype(pixels[start : start + _PIECE, :], xp.int32)
        for channel, place in enumerate(places(tables, xp, [piece[:, k] for k in range(3)])):
            row = values if levels is None else values[channel, :]
            out[start : start + _PIECE, channel] = xp.take(row, place, axis=0)
    return _planar(xp, xp.reshape(out, tuple(tiles.shape)), levels)


class OnDevice:
    """Normalizes tiles of several slides where they lie. The tables of a slide go there once.

    Args:
        params_of: a slide's number → its parameters.
    """

    def __init__(self, params_of: Callable[[int], StainParams]) -> None:
        self._params_of = params_of
        self._there: OrderedDict[tuple[StainParams, str], Placed] = OrderedDict()

    def __call__(self, tiles: Array, slides: NDArray[np.int64], levels: Array | None = None) -> Array:
        """Return tiles as `normalized` does, each by the stain of its own slide.

        Args:
            tiles: (B, H, W, 3) uint8, on any device.
            slides: (B,) number of each tile's slide, on the host.
            levels: as for `normalized`.

        Raises:
            PixelFormatError: not tiles of uint8 RGB, or not one slide for each.
        """
        xp = check_pixels(tiles)
        if tiles.ndim != 4 or len(slides) != tiles.shape[0]:
            raise PixelFormatError(f"tiles of shape {tuple(tiles.shape)} need one slide each, not {len(slides)}.")
        numbers = np.unique(slides)
        if len(numbers) == 1:
            return self._of(int(numbers[0]), xp, tiles, levels)
        kind = tiles.dtype if levels is None else levels.dtype
        out = _planar(xp, xp.empty(tuple(tiles.shape), dtype=kind, device=compat.device(tiles)), levels)
        for number in numbers:
            mine = xp.asarray(np.flatnonzero(slides == number), device=compat.device(tiles))
            out[mine] = self._of(int(number), xp, xp.take(tiles, mine, axis=0), levels)
        return out

    def _of(self, number: int, xp: Any, tiles: Array, levels: Array | None) -> Array:
        params = self._params_of(number)
        if isinstance(params.source, StainMatrix):
            return normalized(self._tables(params, xp, tiles), tiles, levels)
        changed = params.apply(tiles)
        if levels is None:
            return changed
        index = xp.reshape(xp.astype(changed, xp.int32), (-1, 3))
        rows = [xp.take(levels[k, :], index[:, k], axis=0) for k in range(3)]
        return _planar(xp, xp.reshape(xp.stack(rows, axis=-1), tuple(tiles.shape)), levels)

    def _tables(self, params: StainParams, xp: Any, tiles: Array) -> Placed:
        """Return the tables of a slide, there already or sent now."""
        assert isinstance(params.source, StainMatrix)
        assert isinstance(params.target, StainMatrix)
        device = compat.device(tiles)
        # Not by the slide's number: a run that goes through its slides a second time counts anew.
        key = (params, str(device))
        if key not in self._there:
            self._there[key] = placed(macenko.tables_of(params.white, params.source, params.target), xp, device)
            if len(self._there) > _KEPT:
                self._there.popitem(last=False)
        self._there.move_to_end(key)
        return self._there[key]


def _planar(xp: Any, tiles: Array, levels: Array | None) -> Array:
    """Return (B, H, W, 3) as (B, 3, H, W) where it is for a network; memory stays as it is."""
    return tiles if levels is None else xp.permute_dims(tiles, (0, 3, 1, 2))
