"""How sharp the tissue is: patches at 1 µm/px, a bounded number of them, each judged by itself.

A sharp picture has contrast in every octave of detail; defocus takes it away from the finest octaves upwards and leaves
the coarse ones. Ratios of octaves know no absolute contrast, so pale fat is as sharp as dark nuclei.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from wsi.bands import BandPlan, rows_of_bands
from wsi.cores import available_cores
from wsi.errors import SlideError, TileReadError
from wsi.grid import TileGrid, TileSpec, mask_shares, tile_grid
from wsi.slide import Slide
from wsi.tiles import read_tile
from wsi.tissue import Tissue

SPEC = TileSpec(size=128, mpp=1.0)
"""What a patch is: 128 µm a side."""

_DARKEST = 3.0
_FIRST = 0.7
_OCTAVES = 4
_LEAST = (-4.1, -2.4, -1.3)
"""log2 of the contrast of each octave over all coarser ones, below which it is missing.

Of 75 patches of 30 regions, H&E and IHC, none is below (-2.9, -1.7, -0.8); a section with few dark nuclei on a pale
ground goes down to -3.9. A Gaussian blur of 3 µm, with noise and JPEG compression after it, brings
each below -4.8, one of 2 µm three in four below the limit.
"""
_FAINT = 0.004
"""Contrast, optical density, below which there is nothing in a patch that could be sharp."""


@dataclass(frozen=True, eq=False)
class Focus:
    """How sharp some patches of a slide are.

    Attributes:
        xy: (N, 2) int64, middles of the patches, level-0 px.
        defocus: (N,) float32 octaves, blurred above 0; NaN where a patch shows nothing to judge by.
    """

    xy: NDArray[np.int64]
    defocus: NDArray[np.float32]


def measure_focus(slide: Slide, tissue: Tissue, most: int, avoid: NDArray[np.bool_]) -> Focus | None:
    """Measure how sharp the tissue is on at most `most` patches, spread evenly over it.

    Patches that cannot be read, or lie on anything to `avoid` (h, w), are left out: ink is smooth however sharp the
    tissue. None where the slide is coarser than 1 µm/px, or that is not known.
    """
    try:
        grid = tile_grid(slide, tissue, SPEC, min_tissue=0.5)
    except SlideError:
        return None
    free = mask_shares(avoid, tissue.scale, grid.xy, grid.footprint_xy) == 0
    clear = replace(grid, xy=grid.xy[free], tissue_share=grid.tissue_share[free])
    return _measured(slide, clear, spread_evenly(clear, most))


def _measured(slide: Slide, grid: TileGrid, rows: NDArray[np.int64]) -> Focus:
    chosen = replace(grid, xy=grid.xy[rows], tissue_share=grid.tissue_share[rows])
    with ThreadPoolExecutor(available_cores()) as pool:
        found = sorted(chain.from_iterable(pool.map(*_judging(slide, chosen))))
    middles = chosen.xy[[row for row, _ in found]] + np.array(grid.footprint_xy) // 2
    return Focus(middles, np.array([value for _, value in found], np.float32))


def _judging(slide: Slide, grid: TileGrid) -> tuple[Callable[[Any], list[tuple[int, float]]], Sequence[Any]]:
    """Return what judges some patches, left out those that cannot be read, and what it is to be called with."""
    if rows_of_bands(slide, grid.level) is None:
        return partial(_defocus_at, slide, grid), range(len(grid))
    plan = BandPlan(slide, grid)
    return partial(_defocus_side_by_side, plan), [request.rows for request in plan.requests()]


def spread_evenly(grid: TileGrid, most: int) -> NDArray[np.int64]:
    """Return at most `most` rows of a grid, each standing for about as many tiles, however these are scattered.

    Along the Z-order curve neighbours stay together, so that every k-th tile of it is an even sample (Morton 1966).
    """
    if len(grid) <= most:
        return np.arange(len(grid))
    column, line = (grid.xy // np.array(grid.stride_xy)).T
    code = np.zeros(len(grid), np.int64)
    for bit in range(24):
        code |= ((column >> bit) & 1) << (2 * bit) | ((line >> bit) & 1) << (2 * bit + 1)
    order = np.argsort(code, kind="stable")
    return np.sort(order[(np.arange(most) * 2 + 1) * len(grid) // (2 * most)])


def defocus(patch: NDArray[np.uint8]) -> float:
    """Return by how many octaves the finest contrast that a patch lacks is missing; it is blurred above 0.

    Contrast is the variance of the optical density between two Gaussian blurs an octave apart: 0.7 to 1.4 µm, 1.4 to
    2.8 µm, … Each octave is compared with the coarser ones, up to 11 µm: where noise hides that the finest contrast is
    missing, a strong blur still shows in the next.

    Args:
        patch: RGB (S, S, 3), uint8, at 1 µm/px.

    Returns:
        The defocus; NaN where the patch is plain.

    Source: a picture compared with itself re-blurred, Crété et al., SPIE 6492 (2007), doi:10.1117/12.702790;
    energy of fine over coarse detail as focus measure, Pertuz et al., Pattern Recognition 46 (2013).
    """
    grey = np.clip(patch.astype(np.float32).mean(-1), _DARKEST, None)
    contrast = _octaves(-np.log(grey / 243))
    if sum(contrast[1:]) < _FAINT**2:
        return float("nan")
    ratios = [np.log2(max(contrast[i], 1e-12) / max(sum(contrast[i + 1 :]), 1e-12)) for i in range(len(_LEAST))]
    return float(max(least - ratio for least, ratio in zip(_LEAST, ratios, strict=True)))


def _octaves(density: NDArray[np.float32]) -> list[float]:
    """Return the contrast in each octave, finest first; from the second on, on every other pixel."""
    fine = ndimage.gaussian_filter(density, _FIRST)
    contrast = []
    step = np.sqrt(3) * _FIRST  # what takes a blur to twice itself
    for octave in range(_OCTAVES):
        coarse = ndimage.gaussian_filter(fine, step, truncate=3.0)
        rim = 4
        contrast.append(float(np.mean((fine - coarse)[rim:-rim, rim:-rim] ** 2)))
        fine = coarse[::2, ::2] if octave else coarse
        step = step if octave else 2 * step
    return contrast


def _defocus_at(slide: Slide, grid: TileGrid, row: int) -> list[tuple[int, float]]:
    try:
        return [(row, defocus(read_tile(slide, grid, row)))]
    except TileReadError:
        return []


def _defocus_side_by_side(plan: BandPlan, rows: tuple[int, ...]) -> list[tuple[int, float]]:
    try:
        return [(row, defocus(patch)) for row, patch in zip(rows, plan.tiles(rows), strict=True)]
    except TileReadError:
        return []
