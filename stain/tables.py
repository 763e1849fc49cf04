"""Replacing two stains as sums of whole numbers from small tables: quick, and the same bytes everywhere.

A pixel I with amounts c = max(0, pinv(V) density(I)) becomes I * exp(-c change), see `macenko.normalize`. Where it is
known which of the two amounts are positive, the logarithm of the result is a sum of three terms, one for each channel
of the pixel. So there are four sets of terms, one for each pair of signs, and a word of 64 bits holds the terms of all
three results; added up, its parts are places in a table of the exponential. Sums of whole numbers are exact: one pixel
or a million at once, numpy, torch or machine code (`stain.compiled`), the bytes are the same.

Against float64 the error is at most one grey level: three terms, each rounded to half a `STEP`, move a result by less
than half a level before it is rounded to a byte. Where no amount is positive a pixel keeps its bytes: glass stays.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import array_api_compat as compat
import numpy as np
from numpy.typing import NDArray

from .density import Array, density_table
from .errors import ParametersError

Words = NDArray[np.int64]
Floats = NDArray[np.float64]

PLACES: Final = 1 << 14
"""Entries of the table of the exponential."""

STEP: Final = 0.0012
"""Step of the logarithm between two of them."""

FIELD: Final = 21
"""Bits of each result in a sum of `terms`."""

QUICK_FIELD: Final = 14
"""Bits of each result in a sum of `quick`."""

ROUGH_FIELD: Final = 11
"""Bits of each amount in a sum of `quick`."""

_FINE: Final = 1 << 20
_SLACK: Final = 16
"""Rough steps by which an amount may be larger than `quick` knows it: three shares were rounded down."""

_UNSEEN: Final = 5334
"""Steps from which on a result rounds to 0: exp(-6.4) * 255 is 0.42."""


@dataclass(frozen=True, eq=False)
class Tables:
    """How the pixels of one slide are changed.

    Attributes:
        signs: (3, 256) int64, of each channel and value: its share of the first amount in the upper 32 bits, of the
            second in the lower 32.
        terms: (4, 3, 256) int64, for each pair of signs (first positive + 2 * second positive), channel and value: its
            share of the three results, 21 bits each, red lowest.
        low: what a part of a sum of `terms` shows for the first entry of `levels`.
        levels: (16384,) uint8, the result at each place.
        reach: uint8, the result at whatever a part of a sum of `terms` may show: `levels`, its ends drawn out.
        quick: (3, 256) int64, both amounts roughly in the 22 lowest bits, and above them, in 14 bits each, the terms of
            two positive amounts.
        outside: bits of a sum of `quick` that are all 0 only where both amounts are positive and no result lies outside
            `levels`; its upper parts are then what `terms` would give.
    """

    signs: Words
    terms: Words
    low: int
    levels: NDArray[np.uint8]
    reach: NDArray[np.uint8]
    quick: Words
    outside: int


def make_tables(white: tuple[float, float, float], unmix: Floats, change: Floats) -> Tables:
    """Return the tables of one slide.

    Args:
        white: the slide's white point (R, G, B) in grey levels.
        unmix: (3, 2), densities to amounts.
        change: (2, 3), by how much one unit of each stain changes the density of R, G, B.

    Raises:
        ParametersError: the two stains are all but one, so that amounts of them are as good as infinite.
    """
    shares = density_table(white)[:, :, None] * unmix[:, None, :]  # (channel, value, amount)
    _check(shares, change)
    terms = np.stack([_terms(shares * positive, change) for positive in ((0, 0), (1, 0), (0, 1), (1, 1))])
    rough = np.abs(shares).max(axis=1).sum(axis=0) / (2 ** (ROUGH_FIELD - 1) - 24) + 1e-6
    bits, low = _reach(rough, change)
    least = min(int(terms.min(axis=2).sum(axis=1).min()), low)
    for channel in range(3):  # black stays black, however much all else lightens it
        terms[:, channel, 0, channel] += _UNSEEN - least
    most = int(terms.max(axis=2).sum(axis=1).max())
    fields = terms.copy()
    fields[:, 0] -= least
    levels = np.rint(np.minimum(np.exp(-(np.arange(PLACES) + low) * STEP), 1.0) * 255.0).astype(np.uint8)
    reach = np.zeros(most - least + 1, np.uint8)
    reach[: low - least] = 255
    reach[low - least : low - least + PLACES] = levels[: most - low + 1]
    for channel in range(3):  # black enough to stay black within the quick way's reach, and no more: places are few
        terms[3, channel, 0, channel] += least - low
    less = (shares - 4 / _FINE) / rough  # so that `signs`, rounded, tell no less
    quick, outside = _quick(terms[3], less, bits, low)
    fine = np.rint(shares * _FINE).astype(np.int64)
    return Tables(
        signs=(fine[..., 0] << 32) + fine[..., 1],
        terms=_packed(fields, FIELD),
        low=low - least,
        levels=levels,
        reach=reach,
        quick=quick,
        outside=outside,
    )


@dataclass(frozen=True, eq=False)
class Placed:
    """What of `Tables` is looked up array by array, as arrays of one library on one device.

    Attributes:
        signs: (3, 256) int64.
        terms: (3, 1024) int64: of each channel, the four pairs of signs one behind the other.
        low: as in `Tables`.
        levels: (16384,) uint8.
    """

    signs: Array
    terms: Array
    low: int
    levels: Array


def placed(tables: Tables, xp: Any, device: Any) -> Placed:
    """Copy tables to a device, 46 kB."""
    rows = np.ascontiguousarray(np.moveaxis(tables.terms, 0, 1)).reshape(3, -1)
    signs, terms, levels = (xp.asarray(table, device=device) for table in (tables.signs, rows, tables.levels))
    return Placed(signs, terms, tables.low, levels)


def change_piece(tables: Tables, xp: Any, piece: Array) -> Array:
    """Return changed pixels of (N, 3) uint8: what `stain.compiled` does, one array at a time."""
    there = placed(tables, xp, compat.device(piece))
    values = [xp.astype(piece[:, channel], xp.int64) for channel in range(3)]
    return xp.stack([xp.take(there.levels, place, axis=0) for place in places(there, xp, values)], axis=-1)


def places(tables: Placed, xp: Any, values: list[Array]) -> list[Array]:
    """Return where in `levels` the three results stand, (N,) int64 each.

    Args:
        tables: on the device of `values`.
        xp: their array namespace.
        values: of red, green and blue, (N,) int32 or int64.
    """
    both = _sum(xp, tables.signs, values)
    second = ((both + (1 << 31)) & ((1 << 32) - 1)) - (1 << 31)
    kind = values[0].dtype
    pair = xp.astype(both > second, kind) + 2 * xp.astype(second > 0, kind)
    words = _sum(xp, tables.terms, [pair * 256 + value for value in values])
    spots = (((words >> (FIELD * k)) & ((1 << FIELD) - 1)) - tables.low for k in range(3))
    return [xp.clip(spot, 0, PLACES - 1) for spot in spots]


def _sum(xp: Any, table: Array, index: list[Array]) -> Array:
    """Add up what each channel's row of a table has at its places."""
    red, green, blue = (xp.take(table[channel, :], at, axis=0) for channel, at in enumerate(index))
    return red + green + blue


def _check(shares: Floats, change: Floats) -> None:
    """Refuse what does not fit into the words, before machine code, which checks no bounds, looks it up.

    Raises:
        ParametersError: see `make_tables`.
    """
    amounts = np.abs(shares).max(axis=1).sum(axis=0)  # the largest of any pixel
    furthest = (amounts @ np.abs(change)).max()
    if not (amounts.max() < 2**31 / _FINE - 1 and 2 * furthest / STEP < 2**FIELD - 3 * PLACES):
        raise ParametersError(
            "two stains so much alike, or amounts so far apart, are none that a fit gives. Fit the slide anew."
        )


def _terms(shares: Floats, change: Floats) -> Words:
    """Return what each channel and value adds to the three results, in steps: (3, 256, 3); black itself nothing."""
    terms = shares @ change
    own = np.concatenate([[0.0], np.log(255.0 / np.arange(1.0, 256.0))])
    for channel in range(3):
        terms[channel, :, channel] += own
    return np.rint(terms / STEP).astype(np.int64)


def _reach(rough: Floats, change: Floats) -> tuple[int, int]:
    """Return how far the quick way reaches, and the place of the lowest result.

    Args:
        rough: (2,), the steps in which `quick` knows the amounts.
        change: (2, 3), as for `make_tables`.

    Returns:
        n, so that amounts below 2^n rough steps are taken quickly (0: none is), and the place, in steps.
    """
    for bits in range(ROUGH_FIELD - 1, 3, -1):
        most = (2**bits + _SLACK) * rough[:, None] * change  # (amount, result); the least is 0
        low = np.minimum(most, 0.0).sum(axis=0).min() / STEP
        high = np.maximum(most, 0.0).sum(axis=0).max() / STEP + _UNSEEN - low
        if high - low < PLACES - 16:
            return bits, int(np.floor(low)) - 2
    return 0, -2


def _quick(terms: Words, amounts: Floats, bits: int, low: int) -> tuple[Words, int]:
    """Return `Tables.quick` and `Tables.outside`; `amounts` (3, 256, 2) in rough steps, none too large."""
    if bits == 0:
        return np.ones((3, 256), np.int64), 3
    fields = terms.copy()
    fields[0] -= low
    # Rounded down: what is not negative as a sum is surely positive. Results stand above the amounts: what is too large
    # of them falls out of the word, and a negative amount, which borrows from what is above it, shows itself.
    shares = np.floor(amounts).astype(np.int64)
    words = (_packed(fields, QUICK_FIELD) << (2 * ROUGH_FIELD)) + (shares[..., 0] << ROUGH_FIELD) + shares[..., 1]
    above = (1 << ROUGH_FIELD) - (1 << bits)
    return words, (above << ROUGH_FIELD) | above


def _packed(fields: Words, bits: int) -> Words:
    """Put the last axis, three numbers, into one word; negative ones borrow from the next, which sums undo."""
    words: Words = fields[..., 0] + (fields[..., 1] << bits) + (fields[..., 2] << (2 * bits))
    return words
