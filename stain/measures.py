"""What a change of stain may have done to tiles: one number for each tile, from pixels before and after.

Everything is measured on optical density, in which an honest change of stain is nearly linear: contrast and brightness
may change, places and shapes may not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from .augment import RUIFROK, WHITE
from .cohort import combine
from .density import MIN_DENSITY, density_table
from .macenko import StainMatrix
from .normalize import measure

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float64]

SMALLEST_NUCLEUS: Final = 30
"""Pixels under which a spot of haematoxylin is noise: a disc of 6 px across, 3 µm at 0.5 µm/px."""

SMOOTHING: Final = 1.5
"""Sigma in pixels of the blur before nuclei are cut out, and of the window of `structure`."""

FEW_NUCLEI: Final = 4
"""Nuclei of a tile under which one more or less is no change of a share worth telling."""

_EMPTY: Final = 0.005
_RANGE: Final = 6.0


def density_of(tiles: Pixels) -> NDArray[np.float32]:
    """Return the mean optical density of R, G and B against 255: (N, H, W) of (N, H, W, 3) uint8."""
    table = density_table(WHITE)[0].astype(np.float32)
    mean: NDArray[np.float32] = table[tiles].mean(axis=-1)
    return mean


def levels_apart(before: Pixels, after: Pixels) -> Floats:
    """Return the mean absolute difference of each tile in grey levels: (N,)."""
    apart: Floats = np.abs(before.astype(np.int16) - after).mean(axis=(1, 2, 3), dtype=np.float64)
    return apart


def nuclei(tiles: Pixels) -> NDArray[np.bool_]:
    """Cut out nuclei: where haematoxylin, blurred a little, is over Otsu's threshold of all these tiles.

    The tiles are of one slide: two slides together have neither stains nor a threshold in common. The stains are those
    of these very tiles (Macenko), so that a normalizer is not blamed for the stains it changes; where they cannot be
    fitted, those of the textbook.

    Returns:
        (N, H, W) bool, without spots of less than `SMALLEST_NUCLEUS` pixels.

    Source: Otsu, IEEE Trans. SMC 1979, doi:10.1109/TSMC.1979.4310076.
    """
    from scipy import ndimage

    source, _, white = measure("macenko", tiles)
    known = source if isinstance(source, StainMatrix) else RUIFROK
    shares = density_table(white)[:, :, None] * np.linalg.pinv(np.asarray(known.vectors))[:, None, :1]
    amount = sum(shares[channel, :, 0].astype(np.float32)[tiles[..., channel]] for channel in range(3))
    blurred = ndimage.gaussian_filter(np.maximum(amount, 0.0), (0, SMOOTHING, SMOOTHING))
    return _without_spots(blurred > otsu(blurred))


def otsu(values: NDArray[Any], bins: int = 256) -> float:
    """Return the threshold that parts values into the two classes that lie furthest apart."""
    counts, edges = np.histogram(values, bins=bins)
    middles = (edges[1:] + edges[:-1]) / 2
    low, total = counts.cumsum(), counts.sum()
    sums = (counts * middles).cumsum()
    with np.errstate(divide="ignore", invalid="ignore"):
        between = (sums[-1] * low / total - sums) ** 2 / (low * (total - low))
    return float(middles[np.nanargmax(between[:-1])]) if np.isfinite(between[:-1]).any() else float(edges[-1])


def dice(before: NDArray[np.bool_], after: NDArray[np.bool_]) -> Floats:
    """Return 2 |A and B| / (|A| + |B|) of each tile: (N,); no number where both are (nearly) empty."""
    both = (before & after).sum(axis=(1, 2))
    sizes = before.sum(axis=(1, 2)) + after.sum(axis=(1, 2))
    empty = sizes < 2 * _EMPTY * before[0].size
    overlap: Floats = np.where(empty, np.nan, 2.0 * both / np.maximum(sizes, 1))
    return overlap


def components_changed(before: NDArray[np.bool_], after: NDArray[np.bool_]) -> Floats:
    """Return by what share the number of separate nuclei changed in each tile: (N,)."""
    first, second = (np.array([_count(mask) for mask in masks]) for masks in (before, after))
    changed: Floats = np.abs(second - first) / np.maximum(first, FEW_NUCLEI)
    return changed


def variation_amplified(before: NDArray[np.float32], after: NDArray[np.float32]) -> Floats:
    """Return by what factor the total variation of density rose in each tile, beside its contrast: (N,).

    Total variation is divided by the standard deviation first: a stronger stain raises both, added texture one.
    No number where a tile has no contrast.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = _variation(after) / _variation(before)
    known: Floats = np.where(np.isfinite(ratio), ratio, np.nan)
    return known


def structure(before: NDArray[np.float32], after: NDArray[np.float32]) -> Floats:
    """Return the structural similarity of density in each tile: (N,), 1 where nothing moved.

    Both are brought to mean 0 and standard deviation 1 first: contrast may change, structure may not. Windows are
    Gaussian, sigma 1.5; the range of values counts as 6.

    Source: Wang et al., IEEE TIP 2004, doi:10.1109/TIP.2003.819861.
    """
    from scipy import ndimage

    def blur(values: NDArray[np.float32]) -> NDArray[np.float32]:
        smooth: NDArray[np.float32] = ndimage.gaussian_filter(values, (0, SMOOTHING, SMOOTHING), truncate=3.5)
        return smooth

    x, y = _standardized(before), _standardized(after)
    mean_x, mean_y = blur(x), blur(y)
    var_x, var_y, both = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2, blur(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * _RANGE) ** 2, (0.03 * _RANGE) ** 2
    similar = (2 * mean_x * mean_y + c1) * (2 * both + c2) / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    mean: Floats = similar.mean(axis=(1, 2), dtype=np.float64)
    return mean


def recolored(tiles: Pixels, density: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the density that comes nearest to that of changed tiles, of all that are linear in R, G, B before.

    An honest change of stain is nearly linear in optical density: more of one stain than of the other darkens nuclei
    beside their surroundings, and is no change of structure. What is left between this and the changed tiles is.

    Args:
        tiles: (N, H, W, 3) uint8 before.
        density: (N, H, W) after, see `density_of`.

    Returns:
        (N, H, W) float32.
    """
    table = density_table(WHITE)[0].astype(np.float32)
    inputs = np.concatenate([table[tiles], np.ones((*tiles.shape[:3], 1), np.float32)], axis=-1).reshape(-1, 4)
    share = np.linalg.lstsq((inputs.T @ inputs).astype(np.float64), (inputs.T @ density.ravel()).astype(np.float64))[0]
    nearest: NDArray[np.float32] = (inputs @ share.astype(np.float32)).reshape(density.shape)
    return nearest


def stain_moments(before: Pixels, after: Pixels) -> Floats | None:
    """Return of each tile what tells which density a strong stain became: (N, 2, 5).

    Amounts c of the two stains are those of the tiles before, 1 being the 99th percentile in their tissue. The first
    two columns are the sums of c cᵀ, the others those of c dᵀ, d the densities (R, G, B) after.

    Args:
        before: (N, H, W, 3) uint8 of one slide.
        after: the same tiles, changed.

    Returns:
        The sums, or None where the slide's stains cannot be fitted.
    """
    source, _, white = measure("macenko", before)
    if not isinstance(source, StainMatrix):
        return None
    unmix = np.linalg.pinv(np.asarray(source.vectors)) / np.asarray(source.max_concentrations)
    first, second = density_table(white), density_table(WHITE)
    moments = np.zeros((len(before), 2, 5))
    for row, (one, other) in enumerate(zip(before, after, strict=True)):
        density, changed = (
            np.stack([table[channel][tile[..., channel]] for channel in range(3)], axis=-1).reshape(-1, 3)
            for table, tile in ((first, one), (second, other))
        )
        tissue = np.linalg.norm(density, axis=-1) > MIN_DENSITY
        amounts = np.maximum(density[tissue] @ unmix, 0.0)
        moments[row] = amounts.T @ np.concatenate([amounts, changed[tissue]], axis=1)
    return moments


def stains_of(slides: Sequence[Pixels]) -> Floats | None:
    """Return the densities (R, G, B) of strong haematoxylin and strong eosin in the middle of slides.

    Args:
        slides: the tiles of each, (N, H, W, 3) uint8; each is fitted by itself.

    Returns:
        (2, 3), or None where no slide can be fitted.
    """
    found = [measure("macenko", tiles) for tiles in slides]
    fitted = [(source, white) for source, _, white in found if isinstance(source, StainMatrix)]
    if not fitted:
        return None
    middle = combine("macenko", [source for source, _ in fitted]).target
    assert isinstance(middle, StainMatrix)
    # Densities are against 255 wherever they are compared: glass is a part of what a domain looks like.
    glass = np.log(255.0 / np.median([white for _, white in fitted], axis=0))
    strong: Floats = np.asarray(middle.vectors) * np.asarray(middle.max_concentrations)[:, None] + glass
    return strong


def stains_apart(moments: Floats, target: Floats) -> Floats:
    """Return how far what each stain became lies from the target's, as a share of the latter; the larger of two.

    What a stain became is the least-squares answer to: changed density = amounts times what each stain became. So it
    does not matter how much of each there is in the tiles, and swapped stains show even where all amounts are right.

    Args:
        moments: (..., 2, 5), see `stain_moments`; sums of several tiles are added up.
        target: (2, 3), see `stains_of`.

    Returns:
        (...,), no number where there is too little of one stain.
    """
    gram, mixed = moments[..., :2], moments[..., 2:]
    with np.errstate(all="ignore"):
        enough = np.linalg.cond(gram + 1e-12 * np.eye(2)) < 1e4
        became = np.linalg.solve(np.where(enough[..., None, None], gram, np.eye(2)), mixed)
        share = np.linalg.norm(became - target, axis=-1) / np.linalg.norm(target, axis=-1)
    worst: Floats = np.where(enough, share.max(axis=-1), np.nan)
    return worst


def _without_spots(masks: NDArray[np.bool_]) -> NDArray[np.bool_]:
    from scipy import ndimage

    kept = np.zeros_like(masks)
    for mask, into in zip(masks, kept, strict=True):
        labels, _ = ndimage.label(mask)
        large = np.bincount(labels.ravel()) >= SMALLEST_NUCLEUS
        large[0] = False
        into[:] = large[labels]
    return kept


def _count(mask: NDArray[np.bool_]) -> int:
    from scipy import ndimage

    return int(ndimage.label(mask)[1])


def _variation(density: NDArray[np.float32]) -> Floats:
    """Return total variation over standard deviation of each tile."""
    steps = np.abs(np.diff(density, axis=1)).mean(axis=(1, 2)) + np.abs(np.diff(density, axis=2)).mean(axis=(1, 2))
    ratio: Floats = steps.astype(np.float64) / density.std(axis=(1, 2), dtype=np.float64)
    return ratio


def _standardized(density: NDArray[np.float32]) -> NDArray[np.float32]:
    spread = density.std(axis=(1, 2), keepdims=True)
    standard: NDArray[np.float32] = (density - density.mean(axis=(1, 2), keepdims=True)) / np.maximum(spread, 1e-3)
    return standard
