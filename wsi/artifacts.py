"""Folds, bubbles and the edge of the coverslip on a small picture of a slide, by what they do to light.

A fold is tissue laid double: every channel's optical density doubles and the hue stays. Air and the edge of glass have
stains of no colour; they show as thin dark lines, closed around a bubble, long along an edge.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from wsi import channels
from wsi.strips import by_strips, reach_of

Mask = NDArray[np.bool_]
Picture = NDArray[np.float32]

_FOLD_UM = (16.0, 120.0, 250.0)
"""Folds: half the least width, half the largest, the least length."""
_DOUBLE, _NEARLY = 1.5, 1.25
"""Density over that of the tissue on both sides, at the core of a fold and at its rim."""
_DARK = 1.5
"""Density of a fold over that of the slide's median tissue."""
_ALIKE = 0.06
"""How far the channels' shares of the density may be from those beside; more, and dark epithelium passes for a fold."""
_SOLID = 0.35
"""Optical density, sum of the channels, of tissue that can lie double: strands in fat have none beside them."""
_LINE_UM = 64.0
"""The widest line that counts as thin."""
_CELL_UM = 6.0
"""Blur under which single cells are no lines any more."""
_LINE, _LINE_RIM = 0.3, 0.2
"""Optical density by which a line is darker than both its sides, in the channel that rises least."""
_BUBBLE_UM, _EDGE_UM = 150.0, 2000.0
"""Least diameter of a bubble, least length of an edge."""


def folds(density: Picture, mask: Mask, mpp: float) -> Mask:
    """Return where tissue lies double.

    Args:
        density: optical density (h, w, 3), blurred so that single cells do not stand out.
        mask: (h, w), the tissue.
        mpp: µm per px.

    Source: folds are darker and more saturated at once: Bautista and Yagi, J Pathol Inform 1 (2010); Kothari et al.,
    J Pathol Inform 4 (2013) take saturation minus intensity against the slide's own tissue. In optical density this is
    a plain sum: the density of one layer and of another. What lies on both sides tells the one, the rest must be
    tissue of the same stains, and longer than wide.
    """
    if not mask.any():
        return np.zeros_like(mask)
    usual, step = _beside(density, _FOLD_UM[1] / mpp)
    least = _DARK * float(np.median(channels.total(density)[mask]))

    def work(part: Picture, on: Mask, rows: NDArray[np.int64]) -> tuple[Mask, Mask]:
        beside = usual[rows][:, np.arange(part.shape[1]) // step]
        total, base = channels.total(part), channels.total(beside)
        rise = total / np.maximum(base, 1e-3)
        able = on & (base > _SOLID) & _alike(part - beside, beside) & (total > least)
        return able & (rise > _DOUBLE), able & (rise > _NEARLY)

    double, nearly = by_strips(work, density, mask, np.arange(len(mask)) // step, reach=0)
    core = _open(double, max(1, round(_FOLD_UM[0] / mpp)))
    return _long(np.asarray(ndimage.binary_propagation(core, mask=nearly)), mpp)


def _beside(density: Picture, radius: float) -> tuple[Picture, int]:
    """Return the usual density around pixels, the median of a window that is wider than any fold; and pixels a step."""
    step = max(1, round(radius / 2))
    size = 2 * max(1, round(1.5 * radius / step)) + 1
    return np.stack([ndimage.median_filter(density[::step, ::step, c], size=size) for c in range(3)], -1), step


def _alike(one: Picture, other: Picture) -> Mask:
    """Return where two densities have the same stains in about the same mixture."""
    shares = [part / np.maximum(channels.total(part)[..., None], 1e-3) for part in (one, other)]
    return np.asarray(channels.highest(np.abs(shares[0] - shares[1])) < _ALIKE)


def _long(found: Mask, mpp: float) -> Mask:
    """Keep pieces that are long and not wide; gaps inside them count as theirs."""
    if not found.any():
        return found
    gap = max(1, round(_FOLD_UM[0] / mpp))
    whole = ndimage.binary_closing(np.pad(found, gap + 1), np.ones((3, 3)), iterations=gap)
    labels, count = ndimage.label(whole[gap + 1 : -gap - 1, gap + 1 : -gap - 1], np.ones((3, 3)))
    inner = ndimage.distance_transform_edt(whole)[gap + 1 : -gap - 1, gap + 1 : -gap - 1]
    half = np.asarray(ndimage.maximum(inner, labels, np.arange(count + 1)))
    length = np.bincount(labels.ravel(), minlength=count + 1) / np.maximum(2 * half, 1)
    keep = (half * mpp < _FOLD_UM[1]) & (length * mpp > _FOLD_UM[2]) & (length > 5 * half)
    keep[0] = False
    return np.asarray(keep[labels] & found)


def bubbles_and_edges(density: Picture, mpp: float) -> tuple[Mask, Mask]:
    """Return where air bubbles are, filled, and where the edge of the coverslip runs.

    Args:
        density: optical density (h, w, 3), not blurred.
        mpp: µm per px.

    Source: own; the dark outline is total reflection where glass or mountant ends.
    """
    line = thin_lines(density, mpp)
    labels, _ = ndimage.label(line, np.ones((3, 3)))
    bubbles, edges = np.zeros(line.shape, bool), np.zeros(line.shape, bool)
    for number, window in enumerate(ndimage.find_objects(labels), start=1):
        extent = max(part.stop - part.start for part in window) * mpp
        if extent < _BUBBLE_UM:
            continue
        piece = labels[window] == number
        bubbles[window] |= _discs(piece, mpp)
        if extent > _EDGE_UM and _is_long(piece):
            edges[window] |= piece
    return bubbles, edges


def thin_lines(density: Picture, mpp: float) -> Mask:
    """Return thin lines that are darker than both sides in every channel, (h, w) bool."""
    size = 2 * max(1, round(_LINE_UM / 2 / mpp)) + 1
    blur = _CELL_UM / mpp

    def work(part: Picture) -> tuple[Mask, Mask]:
        above: Any = np.inf
        for c in range(3):
            one = ndimage.gaussian_filter(part[..., c], blur) if blur > 0.5 else part[..., c]
            above = np.minimum(above, one - ndimage.grey_opening(one, size=(size, size)))
        return above > _LINE, above > _LINE_RIM

    core, rim = by_strips(work, density, reach=size + reach_of(blur))
    return np.asarray(ndimage.binary_propagation(core, mask=rim, structure=np.ones((3, 3))))


def _discs(piece: Mask, mpp: float) -> Mask:
    """Return what a line goes round, where that is about a disc and mostly not the line itself."""
    inside = ndimage.binary_fill_holes(piece) & ~piece
    labels, _ = ndimage.label(inside)
    out = np.zeros(piece.shape, bool)
    for number, window in enumerate(ndimage.find_objects(labels), start=1):
        height, width = (part.stop - part.start for part in window)
        if min(height, width) * mpp < _BUBBLE_UM / 2 or not 0.5 < height / width < 2:
            continue
        hole = labels[window] == number
        if hole.sum() > 0.65 * height * width:
            out[window] |= hole
    return np.asarray(ndimage.binary_dilation(out, np.ones((3, 3)), iterations=_rim(mpp)) & (piece | inside))


def _rim(mpp: float) -> int:
    return max(1, round(_LINE_UM / mpp))


def _is_long(piece: Mask) -> bool:
    """Tell whether a line goes one way: its pixels lie along their main axis."""
    y, x = np.nonzero(piece)
    spread = np.linalg.eigvalsh(np.cov(np.stack([y, x]).astype(float)))
    return bool(spread[1] > 60 * max(spread[0], 0.25))


def _open(mask: Mask, iterations: int) -> Mask:
    seeds = ndimage.binary_erosion(mask, iterations=iterations, border_value=1)
    return np.asarray(ndimage.binary_propagation(seeds, mask=mask))
