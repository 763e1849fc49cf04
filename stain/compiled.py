"""What `stain.tables` computes, as machine code: one pass, nine look-ups a pixel where both amounts are positive.

Needs numba. Other threads run meanwhile, nothing is allocated, and a pixel's result depends on nothing but the pixel.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from .tables import FIELD, PLACES, QUICK_FIELD, Tables

Words = NDArray[np.uint64]
Pixels = NDArray[np.uint8]
Floats = NDArray[np.float32]

_QUICK_MASK = np.uint64((1 << QUICK_FIELD) - 1)
_QUICK_1, _QUICK_2 = np.uint64(QUICK_FIELD), np.uint64(2 * QUICK_FIELD)
_FIELD = np.int64(FIELD)
_FIELD_MASK = np.int64((1 << FIELD) - 1)
_LAST = np.int64(PLACES - 1)


def change(tables: Tables, pixels: Pixels, out: Pixels) -> None:
    """Write changed pixels (..., 3) to `out`, contiguous, of the same shape."""
    flat = np.ascontiguousarray(pixels).reshape(-1, 3)
    _change(flat, out.reshape(-1, 3), *_words(tables), tables.levels)


def change_normalized(tables: Tables, pixels: Pixels, levels: Floats, out: Floats) -> None:
    """Write changed pixels (B, H, W, 3) to `out` (B, 3, H, W), contiguous; `levels` (3, 256) of each byte."""
    batch, height, width, _ = pixels.shape
    flat = np.ascontiguousarray(pixels).reshape(batch, height * width, 3)
    values = np.ascontiguousarray(levels[:, tables.levels])
    _change_normalized(flat, out.reshape(batch, 3, height * width), *_words(tables), values)


def _words(tables: Tables) -> tuple[Words, np.uint64, NDArray[np.int64], NDArray[np.int64], np.int64]:
    outside = np.int64(tables.outside).view(np.uint64)
    return tables.quick.view(np.uint64), outside, tables.signs, tables.terms, np.int64(tables.low)


@njit(nogil=True, cache=True)
def _places(
    red: np.uint8, green: np.uint8, blue: np.uint8, signs: NDArray[np.int64], terms: NDArray[np.int64], low: np.int64
) -> np.uint64:
    """Return the places of the three results, packed as a sum of `quick` is."""
    both = signs[0, red] + signs[1, green] + signs[2, blue]
    second = np.int64(np.int32(both))
    pair = np.int64(both > second) + 2 * np.int64(second > 0)
    word = terms[pair, 0, red] + terms[pair, 1, green] + terms[pair, 2, blue]
    a = min(max((word & _FIELD_MASK) - low, 0), _LAST)
    b = min(max(((word >> _FIELD) & _FIELD_MASK) - low, 0), _LAST)
    c = min(max((word >> (_FIELD + _FIELD)) - low, 0), _LAST)
    return np.uint64(a) | (np.uint64(b) << _QUICK_1) | (np.uint64(c) << _QUICK_2)


@njit(nogil=True, cache=True)
def _change(
    pixels: Pixels,
    out: Pixels,
    quick: Words,
    outside: np.uint64,
    signs: NDArray[np.int64],
    terms: NDArray[np.int64],
    low: np.int64,
    levels: NDArray[np.uint8],
) -> None:
    reds, greens, blues = quick[0], quick[1], quick[2]
    count = pixels.shape[0]
    for k in range(count // 2):  # two at once: one test for both is a tenth faster
        i = 2 * k
        j = i + 1
        word = reds[pixels[i, 0]] + greens[pixels[i, 1]] + blues[pixels[i, 2]]
        next_ = reds[pixels[j, 0]] + greens[pixels[j, 1]] + blues[pixels[j, 2]]
        if (word | next_) & outside:
            word = _places(pixels[i, 0], pixels[i, 1], pixels[i, 2], signs, terms, low)
            next_ = _places(pixels[j, 0], pixels[j, 1], pixels[j, 2], signs, terms, low)
        out[i, 0] = levels[word & _QUICK_MASK]
        out[i, 1] = levels[(word >> _QUICK_1) & _QUICK_MASK]
        out[i, 2] = levels[(word >> _QUICK_2) & _QUICK_MASK]
        out[j, 0] = levels[next_ & _QUICK_MASK]
        out[j, 1] = levels[(next_ >> _QUICK_1) & _QUICK_MASK]
        out[j, 2] = levels[(next_ >> _QUICK_2) & _QUICK_MASK]
    if count % 2:
        i = count - 1
        word = _places(pixels[i, 0], pixels[i, 1], pixels[i, 2], signs, terms, low)
        out[i, 0] = levels[word & _QUICK_MASK]
        out[i, 1] = levels[(word >> _QUICK_1) & _QUICK_MASK]
        out[i, 2] = levels[(word >> _QUICK_2) & _QUICK_MASK]


@njit(nogil=True, cache=True)
def _change_normalized(
    pixels: Pixels,
    out: Floats,
    quick: Words,
    outside: np.uint64,
    signs: NDArray[np.int64],
    terms: NDArray[np.int64],
    low: np.int64,
    values: Floats,
) -> None:
    reds, greens, blues = quick[0], quick[1], quick[2]
    first, second, third = values[0], values[1], values[2]
    for n in range(pixels.shape[0]):
        tile, one, two, three = pixels[n], out[n, 0], out[n, 1], out[n, 2]
        count = tile.shape[0]
        for k in range(count // 2):
            i = 2 * k
            j = i + 1
            word = reds[tile[i, 0]] + greens[tile[i, 1]] + blues[tile[i, 2]]
            next_ = reds[tile[j, 0]] + greens[tile[j, 1]] + blues[tile[j, 2]]
            if (word | next_) & outside:
                word = _places(tile[i, 0], tile[i, 1], tile[i, 2], signs, terms, low)
                next_ = _places(tile[j, 0], tile[j, 1], tile[j, 2], signs, terms, low)
            one[i] = first[word & _QUICK_MASK]
            one[j] = first[next_ & _QUICK_MASK]
            two[i] = second[(word >> _QUICK_1) & _QUICK_MASK]
            two[j] = second[(next_ >> _QUICK_1) & _QUICK_MASK]
            three[i] = third[(word >> _QUICK_2) & _QUICK_MASK]
            three[j] = third[(next_ >> _QUICK_2) & _QUICK_MASK]
        if count % 2:
            i = count - 1
            word = _places(tile[i, 0], tile[i, 1], tile[i, 2], signs, terms, low)
            one[i] = first[word & _QUICK_MASK]
            two[i] = second[(word >> _QUICK_1) & _QUICK_MASK]
            three[i] = third[(word >> _QUICK_2) & _QUICK_MASK]
