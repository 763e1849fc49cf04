"""What `stain.tables` computes, as machine code: nine look-ups a pixel where both amounts are positive.

Blocks of pixels are all looked up the quick way, and the few that it may not take are noted; those are then done anew.
Two loops without a branch are half as fast again as one that decides for each pixel.

Needs numba. Other threads run meanwhile, a block's notes are all that is allocated, and a pixel's result depends on
nothing but the pixel. Indices are unsigned, for numba looks whether a signed one counts from the end. What is
written is other memory than the pixels, for some of these are read again.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numba import njit
from numpy.typing import NDArray

from .tables import FIELD, QUICK_FIELD, ROUGH_FIELD, Tables

Words = NDArray[np.uint64]
Pixels = NDArray[np.uint8]
Floats = NDArray[np.float32]
Parts = tuple[np.uint64, np.uint64, np.uint64]

_BLOCK = 1024
"""Pixels whose results are still at hand when some of them are done anew."""
_0, _1, _2, _3, _4, _5, _6 = (np.uint64(number) for number in range(7))
_GREEN, _BLUE = np.uint64(256), np.uint64(512)
"""Where the rows of these channels begin in a table of all three."""
_PAIR = np.uint32(3 * 256)
"""Where the next pair of signs begins in `terms`."""
_QUICK_MASK = np.uint64((1 << QUICK_FIELD) - 1)
_QUICK_0, _QUICK_1, _QUICK_2 = (np.uint64(2 * ROUGH_FIELD + k * QUICK_FIELD) for k in range(3))
_MASK = np.uint64((1 << FIELD) - 1)
_FIELD_1, _FIELD_2 = np.uint64(FIELD), np.uint64(2 * FIELD)


def change(tables: Tables, pixels: Pixels, out: Pixels) -> None:
    """Write changed pixels (..., 3) to `out`, contiguous, of the same shape."""
    flat = np.ascontiguousarray(pixels).reshape(-1)
    _change(flat, out.reshape(-1), *_words(tables), tables.levels)


def change_normalized(tables: Tables, pixels: Pixels, levels: Floats, out: Floats) -> None:
    """Write changed pixels (B, H, W, 3) to `out` (B, 3, H, W), contiguous; `levels` (3, 256) of each byte."""
    batch, height, width, _ = pixels.shape
    flat = np.ascontiguousarray(pixels).reshape(batch, height * width * 3)
    by_byte = np.ascontiguousarray(levels, dtype=np.float32)
    values = _values(tables, by_byte.tobytes())
    _change_normalized(flat, out.reshape(batch, 3, height * width), *_words(tables), values, by_byte)


@lru_cache(maxsize=16)
def _values(tables: Tables, by_byte: bytes) -> Floats:
    """Return what a network takes of each place, (3, 16384): it would cost a tile or two to make it for each batch."""
    found: Floats = np.take(np.frombuffer(by_byte, np.float32).reshape(3, 256), tables.levels, axis=1)
    return found


def _words(tables: Tables) -> tuple[Words, np.uint64, Words, Words, Pixels]:
    """Return flat tables of whole numbers without a sign."""
    quick, signs, terms = (words.reshape(-1).view(np.uint64) for words in (tables.quick, tables.signs, tables.terms))
    return quick, np.uint64(tables.outside), signs, terms, tables.reach


@njit(nogil=True, cache=True, inline="always")
def _sure_places(pixels: Pixels, at: np.uint64, signs: Words, terms: Words) -> Parts:
    """Return where in `reach` the three results of any pixel stand."""
    red, green, blue = pixels[at], pixels[at + _1], pixels[at + _2]
    both = np.int64(signs[red] + signs[_GREEN + green] + signs[_BLUE + blue])
    second = np.int64(np.int32(both))
    row = _PAIR * (np.uint32(both > second) + np.uint32(2) * np.uint32(second > 0))
    word = terms[row + red] + terms[row + np.uint32(_GREEN) + green] + terms[row + np.uint32(_BLUE) + blue]
    return word & _MASK, (word >> _FIELD_1) & _MASK, word >> _FIELD_2


@njit(nogil=True, cache=True)
def _change(
    pixels: Pixels,
    out: Pixels,
    quick: Words,
    outside: np.uint64,
    signs: Words,
    terms: Words,
    reach: Pixels,
    levels: Pixels,
) -> None:
    noted = np.empty(_BLOCK, np.uint16)
    for start in range(0, pixels.shape[0], 3 * _BLOCK):
        block, into = pixels[start : start + 3 * _BLOCK], out[start : start + 3 * _BLOCK]
        count, notes = np.uint64(block.shape[0] // 3), _0
        for k in range(count // _2):  # two at once: less is spent on counting
            i = _6 * k
            word = quick[block[i]] + quick[_GREEN + block[i + _1]] + quick[_BLUE + block[i + _2]]
            noted[notes] = _2 * k
            notes += np.uint64((word & outside) != _0)
            into[i] = levels[(word >> _QUICK_0) & _QUICK_MASK]
            into[i + _1] = levels[(word >> _QUICK_1) & _QUICK_MASK]
            into[i + _2] = levels[word >> _QUICK_2]
            word = quick[block[i + _3]] + quick[_GREEN + block[i + _4]] + quick[_BLUE + block[i + _5]]
            noted[notes] = _2 * k + _1
            notes += np.uint64((word & outside) != _0)
            into[i + _3] = levels[(word >> _QUICK_0) & _QUICK_MASK]
            into[i + _4] = levels[(word >> _QUICK_1) & _QUICK_MASK]
            into[i + _5] = levels[word >> _QUICK_2]
        if count & _1:
            noted[notes] = count - _1
            notes += _1
        for k in range(notes):
            i = _3 * np.uint64(noted[k])
            a, b, c = _sure_places(block, i, signs, terms)
            into[i] = reach[a]
            into[i + _1] = reach[b]
            into[i + _2] = reach[c]


@njit(nogil=True, cache=True)
def _change_normalized(
    pixels: Pixels,
    out: Floats,
    quick: Words,
    outside: np.uint64,
    signs: Words,
    terms: Words,
    reach: Pixels,
    values: Floats,
    by_byte: Floats,
) -> None:
    noted = np.empty(_BLOCK, np.uint16)
    first, second, third = values[0], values[1], values[2]
    for n in range(pixels.shape[0]):
        for start in range(0, out.shape[2], _BLOCK):
            end = start + _BLOCK
            block = pixels[n, 3 * start : 3 * end]
            one, two, three = out[n, 0, start:end], out[n, 1, start:end], out[n, 2, start:end]
            count, notes = np.uint64(one.shape[0]), _0
            for k in range(count // _2):
                i = _2 * k
                word = quick[block[_3 * i]] + quick[_GREEN + block[_3 * i + _1]] + quick[_BLUE + block[_3 * i + _2]]
                noted[notes] = i
                notes += np.uint64((word & outside) != _0)
                one[i] = first[(word >> _QUICK_0) & _QUICK_MASK]
                two[i] = second[(word >> _QUICK_1) & _QUICK_MASK]
                three[i] = third[word >> _QUICK_2]
                j = i + _1
                word = quick[block[_3 * j]] + quick[_GREEN + block[_3 * j + _1]] + quick[_BLUE + block[_3 * j + _2]]
                noted[notes] = j
                notes += np.uint64((word & outside) != _0)
                one[j] = first[(word >> _QUICK_0) & _QUICK_MASK]
                two[j] = second[(word >> _QUICK_1) & _QUICK_MASK]
                three[j] = third[word >> _QUICK_2]
            if count & _1:
                noted[notes] = count - _1
                notes += _1
            for k in range(notes):
                i = np.uint64(noted[k])
                a, b, c = _sure_places(block, _3 * i, signs, terms)
                one[i], two[i], three[i] = by_byte[0, reach[a]], by_byte[1, reach[b]], by_byte[2, reach[c]]
