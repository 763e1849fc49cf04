"""The embedded default encoder: classical histology descriptors of one tile, no weights, no network.

What it is: 159 fixed measurements that pathologists' image analysis used before deep learning: how much of
which stain, how rough, how sharp, how many dark blobs. What it is not: learned. It sees no cell types and no
architecture beyond a few dozen pixels; expect a foundation model to beat it wherever one may be used.

The families, each named in `FEATURE_NAMES`:

* `stain`: amounts of haematoxylin, eosin and DAB by color deconvolution, and total optical density: mean, sd,
  quantiles, shares above thresholds. Ruifrok and Johnston, Anal Quant Cytol Histol 2001.
* `color`: optical density of red, green, blue; saturation; glass; how the stains go together.
* `lbp`: rotation-invariant uniform local binary patterns at two scales. Ojala et al., TPAMI 2002,
  doi:10.1109/TPAMI.2002.1017623.
* `glcm`: Haralick's texture features of gray-level co-occurrence. Haralick et al., IEEE SMC 1973,
  doi:10.1109/TSMC.1973.4309314.
* `edge`: strength and coherence of gradients, and the Laplacian (sharpness; Pech-Pacheco et al., ICPR 2000,
  doi:10.1109/ICPR.2000.903548) at three scales, blind to orientation.
* `blob`: haematoxylin-dark blobs as a proxy of nuclei: count, size, elongation, spacing, density; maxima of
  differences of Gaussians (Lowe, IJCV 2004, doi:10.1023/B:VISI.0000029664.99615.94).
* `layout`: how unevenly stains lie over the tile.

Each tile is measured alone, from its own bytes: the same tile gives the same bytes in any batch. Quantities
are in pixels of the tile, so features of different µm/px must not be mixed.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections.abc import Iterator
from functools import cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import KDTree
from skimage.color import hed_from_rgb
from skimage.filters import threshold_otsu

from mil.errors import MilError

VERSION: Final = 1
"""Raised whenever any value of any feature changes."""

MIN_SIDE: Final = 32
"""Least side of a tile in px."""

Plane = NDArray[np.floating[Any]]
Bytes = NDArray[np.uint8]
Features = Iterator[tuple[str, float]]

_LEVELS_PER_DENSITY: Final = 80.0
"""Bytes per unit of optical density (natural logarithm): 255 stands for 3.19 and more."""

_DENSITY: Final = -np.log(np.maximum(np.arange(256), 1) / 255.0).astype(np.float32)
_UNMIX: Final = hed_from_rgb.astype(np.float32).tolist()
_STAIN_NAMES: Final = ("haematoxylin", "eosin", "dab", "density")
_QUANTILES: Final = (0.05, 0.25, 0.5, 0.75, 0.95)
_THRESHOLDS: Final = (0.2, 0.5, 1.0)
_GLASS_LEVEL: Final = 215

# The ring of a pixel's eight neighbors, in order around it: (row, column) offsets.
_RING: Final = ((0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1), (-1, 0), (-1, 1))
# Offsets of co-occurring pixels at 0°, 45°, 90°, 135°, rounded as scikit-image does.
_OFFSETS: Final = {1: ((0, 1), (1, 1), (1, 0), (1, -1)), 4: ((0, 4), (3, 3), (4, 0), (3, -3))}
_GLCM_SHIFT: Final = 3
_GLCM_LEVELS: Final = 256 >> _GLCM_SHIFT

_MIN_NUCLEUS_DENSITY: Final = 0.3
_MIN_NUCLEUS_AREA: Final = 8
_CELLS: Final = 4


class DescriptorEncoder:
    """Classical descriptors of tiles; see the module for what they are.

    Attributes:
        id: "descriptors".
        dim: number of features.
        input_size: side in px that the pipeline cuts by default; any side from 32 px is taken.
        device: "cpu".
        feature_names: one name per column, `family.what.how`.
    """

    id: Final = "descriptors"
    input_size: Final = 224
    device: Final = "cpu"

    def __init__(self) -> None:
        self.feature_names: tuple[str, ...] = FEATURE_NAMES
        self.dim: int = len(FEATURE_NAMES)

    def __call__(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Describe a batch of tiles.

        Args:
            pixels: (B, H, W, 3) uint8 RGB, sides at least 32 px; B may be 0.

        Returns:
            (B, D) float32, finite for any pixels.

        Raises:
            MilError: another type or shape, or a side under 32 px.
        """
        pixels = np.asarray(pixels)
        if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[-1] != 3:
            raise MilError(
                f"tiles have type {pixels.dtype} and shape {pixels.shape}; the descriptors encoder takes "
                "(B, S, S, 3) uint8 RGB."
            )
        if min(pixels.shape[1:3]) < MIN_SIDE:
            raise MilError(
                f"tiles of {pixels.shape[2]} x {pixels.shape[1]} px are too small for the descriptors encoder. "
                f"Cut tiles of at least {MIN_SIDE} px (--tile 224)."
            )
        out = np.empty((len(pixels), self.dim), dtype=np.float32)
        for row, tile in zip(out, pixels, strict=True):
            row[:] = [value for _, value in describe(tile)]
        return out

    def passport(self) -> dict[str, Any]:
        """Return what decides about the features, as plain JSON values.

        `batch_size` is None because it does not matter here.
        """
        return {
            "id": self.id,
            "version": VERSION,
            "weights_sha256": None,
            "source": "slidemil, mil/encoders/descriptors.py",
            "licence": "Apache-2.0",
            "arch": "classical descriptors",
            "pooling": "statistics over the tile",
            "dim": self.dim,
            "feature_names_sha256": hashlib.sha256("\n".join(FEATURE_NAMES).encode()).hexdigest(),
            "input_size": self.input_size,
            "mean": None,
            "std": None,
            "interpolation": None,
            "precision": "float32",
            "batch_size": None,
            "versions": dict(_versions()),
        }


@cache
def _versions() -> dict[str, str]:
    """Return what they are: asked for several times with each slide, and read from files."""
    return {name: importlib.metadata.version(name) for name in ("numpy", "scipy", "scikit-image")}


def describe(tile: Bytes) -> Features:
    """Yield name and value of every feature of one tile.

    Args:
        tile: (H, W, 3) uint8 RGB, sides at least 32 px.

    Yields:
        Features in fixed order.
    """
    # Contiguous planes: sums would otherwise be rounded in another order for another memory layout.
    channels = np.ascontiguousarray(tile.transpose(2, 0, 1))
    rgb = [np.take(_DENSITY, channel) for channel in channels]
    stains = unmix(rgb)
    density = (rgb[0] + rgb[1] + rgb[2]) * np.float32(1 / 3)
    planes = [*stains, density]
    bytes_ = [to_bytes(plane) for plane in planes]
    for name, levels in zip(_STAIN_NAMES, bytes_, strict=True):
        yield from _prefixed(f"stain.{name}", stain_features(levels))
    small = [halve(plane) for plane in planes]
    halves = {"density": small[3], "haematoxylin": small[0]}
    yield from _prefixed("color", color_features(channels, small[:3]))
    half_bytes = {name: to_bytes(plane) for name, plane in halves.items()}
    for name, full in (("density", bytes_[3]), ("haematoxylin", bytes_[0])):
        yield from _prefixed(f"lbp.{name}.scale1", lbp_features(full))
        yield from _prefixed(f"lbp.{name}.scale2", lbp_features(half_bytes[name]))
        for distance in _OFFSETS:
            yield from _prefixed(f"glcm.{name}.distance{distance}", glcm_features(half_bytes[name], distance))
    for name, full_plane in (("density", density), ("haematoxylin", stains[0])):
        for scale, plane in ((1, full_plane), (2, halves[name]), (4, halve(halves[name]))):
            yield from _prefixed(f"edge.{name}.scale{scale}", edge_features(plane))
    yield from _prefixed("blob", blob_features(halves["haematoxylin"], half_bytes["haematoxylin"]))
    for name, half in zip(_STAIN_NAMES, small, strict=True):
        yield from _prefixed(f"layout.{name}", layout_features(half))


def unmix(rgb: list[Plane]) -> list[Plane]:
    """Return the amounts of haematoxylin, eosin and DAB from the optical densities of R, G, B, not negative.

    The sums are written out: a matrix product may be rounded differently from machine to machine and size to
    size.
    """
    amounts = []
    for k in range(3):
        amount = rgb[0] * _UNMIX[0][k]
        amount += rgb[1] * _UNMIX[1][k]
        amount += rgb[2] * _UNMIX[2][k]
        amounts.append(np.maximum(amount, np.float32(0), out=amount))
    return amounts


def to_bytes(plane: Plane) -> Bytes:
    """Quantize amounts to bytes, 80 levels per unit of optical density."""
    scaled = plane * np.float32(_LEVELS_PER_DENSITY)
    scaled += np.float32(0.5)
    np.minimum(scaled, np.float32(255), out=scaled)
    levels: Bytes = scaled.astype(np.uint8)
    return levels


def halve(plane: Plane) -> Plane:
    """Return a plane at half the resolution: means of 2 x 2 pixels; an odd last row or column is left out."""
    height, width = plane.shape[0] // 2 * 2, plane.shape[1] // 2 * 2
    even = plane[:height, :width]
    rows = even[0::2] + even[1::2]
    return (rows[:, 0::2] + rows[:, 1::2]) * np.float32(0.25)


def stain_features(plane: Bytes) -> Features:
    """Yield mean, sd, quantiles and shares above thresholds of one stain, all read off its histogram."""
    counts = np.bincount(plane.ravel(), minlength=256)
    share = counts / counts.sum()
    amount = np.arange(256) / _LEVELS_PER_DENSITY
    mean = float((share * amount).sum())
    yield "mean", mean
    yield "sd", float(np.sqrt((share * (amount - mean) ** 2).sum()))
    below = np.cumsum(counts)
    for quantile in _QUANTILES:
        yield f"q{round(100 * quantile):02d}", float(amount[np.searchsorted(below, quantile * below[-1])])
    for threshold in _THRESHOLDS:
        yield f"over{threshold}", float(share[round(threshold * _LEVELS_PER_DENSITY) :].sum())


def color_features(channels: Bytes, stains: list[Plane]) -> Features:
    """Yield densities of R, G, B, saturation, share of glass, and correlations of the stains (half size)."""
    for k, name in enumerate(("red", "green", "blue")):
        yield from _histogram_mean_sd(name, channels[k], _DENSITY)
    darkest, brightest = channels.min(axis=0), channels.max(axis=0)
    yield from _histogram_mean_sd("saturation", brightest - darkest, np.arange(256) / 255.0)
    yield "glass", float((darkest > _GLASS_LEVEL).mean())
    for first, second in ((0, 1), (0, 2), (1, 2)):
        name = f"correlation.{_STAIN_NAMES[first]}.{_STAIN_NAMES[second]}"
        yield name, correlation(stains[first], stains[second])


def _histogram_mean_sd(name: str, plane: Bytes, worth: Plane) -> Features:
    """Yield mean and sd of what each byte of a plane is worth."""
    share = np.bincount(plane.ravel(), minlength=256) / plane.size
    mean = float((share * worth).sum())
    yield f"{name}.mean", mean
    yield f"{name}.sd", float(np.sqrt((share * (worth - mean) ** 2).sum()))


def correlation(first: Plane, second: Plane) -> float:
    """Return Pearson's correlation of two planes, 0 where one hardly varies."""
    a, b = first - np.float32(_mean(first)), second - np.float32(_mean(second))
    product, scale = _mean(a * b), _mean(a * a) * _mean(b * b)
    return float(np.clip(product / np.sqrt(scale), -1.0, 1.0)) if scale > 1e-9 else 0.0


def lbp_features(plane: Bytes) -> Features:
    """Yield the shares of the ten rotation-invariant uniform patterns (Ojala's riu2, P = 8).

    The eight neighbors are the 3 x 3 ring itself, not a circle with interpolated corners. Patterns 0 to 8
    are the number of neighbors at least as dense as the center where they lie in one arc; 9 is all others.
    """
    center = plane[1:-1, 1:-1]
    height, width = center.shape
    code = np.zeros((height, width), dtype=np.uint8)
    denser = np.empty((height, width), dtype=np.bool_)
    for row, column in _RING:
        neighbor = plane[1 + row : 1 + row + height, 1 + column : 1 + column + width]
        np.greater_equal(neighbor, center, out=denser)
        code += code  # one bit to the left
        code |= denser.view(np.uint8)
    counts = np.bincount(code.ravel(), minlength=256)
    shares = np.bincount(_RIU2, weights=counts, minlength=10) / code.size
    for pattern, share in enumerate(shares.tolist()):
        yield f"pattern{pattern}", share


def glcm_features(plane: Bytes, distance: int) -> Features:
    """Yield five of Haralick's features of the co-occurrence of 32 levels, pooled over four directions."""
    matrix = co_occurrence(plane >> np.uint8(_GLCM_SHIFT), distance)
    gap = np.abs(_ROW_LEVEL - _COLUMN_LEVEL)
    mean = float((matrix * _ROW_LEVEL).sum())
    variance = float((matrix * (_ROW_LEVEL - mean) ** 2).sum())
    covariance = float((matrix * (_ROW_LEVEL - mean) * (_COLUMN_LEVEL - mean)).sum())
    seen = matrix[matrix > 0]
    yield "contrast", float((matrix * gap**2).sum())
    yield "homogeneity", float((matrix / (1.0 + gap**2)).sum())
    yield "energy", float(np.sqrt((matrix**2).sum()))
    yield "correlation", covariance / variance if variance > 1e-9 else 1.0
    yield "entropy", float(-(seen * np.log(seen)).sum())


def co_occurrence(levels: Bytes, distance: int) -> NDArray[np.float64]:
    """Return how often two levels lie `distance` px apart: symmetric, summing to 1, (32, 32) float64."""
    height, width = levels.shape
    first = levels.astype(np.int64) * _GLCM_LEVELS
    counts = np.zeros(_GLCM_LEVELS**2, dtype=np.int64)
    for row, column in _OFFSETS[distance]:
        left, right = max(0, -column), width - max(0, column)
        pairs = first[: height - row, left:right] + levels[row:, left + column : right + column]
        counts += np.bincount(pairs.ravel(), minlength=_GLCM_LEVELS**2)
    matrix = counts.reshape(_GLCM_LEVELS, _GLCM_LEVELS)
    matrix = matrix + matrix.T
    share: NDArray[np.float64] = matrix / matrix.sum()
    return share


def edge_features(plane: Plane) -> Features:
    """Yield mean and sd of the gradient, its coherence (0: all ways, 1: one way), sd of the Laplacian."""
    center = plane[1:-1, 1:-1]
    left, right, up, down = plane[1:-1, :-2], plane[1:-1, 2:], plane[:-2, 1:-1], plane[2:, 1:-1]
    across, along = right - left, down - up
    across *= np.float32(0.5)
    along *= np.float32(0.5)
    xy = across * along
    xx, yy = np.square(across, out=across), np.square(along, out=along)
    strength = xx + yy
    np.sqrt(strength, out=strength)
    mean_xx, mean_yy, mean_xy = _mean(xx), _mean(yy), _mean(xy)
    total, mean = mean_xx + mean_yy, _mean(strength)
    yield "mean", mean
    yield "sd", float(np.sqrt(max(total - mean**2, 0.0)))
    coherence = np.hypot(mean_xx - mean_yy, 2 * mean_xy) / total if total > 1e-9 else 0.0
    yield "coherence", float(coherence)
    laplacian = left + right
    laplacian += up + down
    laplacian -= np.float32(4) * center
    yield "laplacian", float(np.sqrt(_mean(np.square(laplacian, out=laplacian))))


def blob_features(plane: Plane, levels: Bytes) -> Features:
    """Yield what haematoxylin-dark blobs tell of nuclei.

    Args:
        plane: amounts of haematoxylin at half resolution.
        levels: the same as bytes.

    Yields:
        Count and covered share of blobs over Otsu's threshold (at least 0.3), mean and sd of area, mean
        elongation (1: round), mean and sd of distance to the next blob, amount of stain inside and its
        spread between blobs; counts and mean heights of difference-of-Gaussian maxima at two scales.
    """
    fine, middle, coarse = (ndimage.gaussian_filter(plane, sigma, truncate=3.0) for sigma in (1.0, 2.0, 4.0))
    threshold = blob_threshold(levels)
    yield "threshold", threshold
    labels, _ = ndimage.label(fine > threshold)
    yield from _blob_shapes(plane, labels)
    for name, response, width in (("small", fine - middle, 5), ("large", middle - coarse, 9)):
        peak = (response == ndimage.maximum_filter(response, size=width)) & (response > 0.04)
        count = int(peak.sum())
        yield f"{name}.count", 1e4 * count / (4 * plane.size)
        yield f"{name}.height", float(response[peak].mean(dtype=np.float64)) if count else 0.0


def blob_threshold(levels: Bytes) -> float:
    """Return the amount of haematoxylin that parts nuclei from the rest: Otsu's, but at least 0.3."""
    counts = np.bincount(levels.ravel(), minlength=256)
    if np.count_nonzero(counts) < 2:
        return _MIN_NUCLEUS_DENSITY
    otsu = threshold_otsu(hist=(counts, np.arange(256)))  # type: ignore[no-untyped-call]
    return max(float(otsu) / _LEVELS_PER_DENSITY, _MIN_NUCLEUS_DENSITY)


def _blob_shapes(plane: Plane, labels: NDArray[np.int32]) -> Features:
    """Yield counts, sizes, elongation, spacing and stain of labeled blobs; lengths in px of the tile."""
    rows, columns = np.nonzero(labels)
    label = labels[rows, columns]
    area = np.bincount(label)
    kept = np.flatnonzero(area >= _MIN_NUCLEUS_AREA)
    safe = np.maximum(area, 1)

    def per_blob(weights: NDArray[Any]) -> NDArray[np.float64]:
        sums: NDArray[np.float64] = np.bincount(label, weights=weights, minlength=len(area)) / safe
        return sums

    y, x = per_blob(rows), per_blob(columns)
    xx, yy, xy = per_blob(columns**2) - x**2, per_blob(rows**2) - y**2, per_blob(rows * columns) - x * y
    root = np.sqrt((xx - yy) ** 2 + 4 * xy**2)
    # 1/12 is the spread of a pixel itself: it keeps a one-pixel line finite.
    elongation = np.sqrt((xx + yy + root + 1 / 6) / np.maximum(xx + yy - root + 1 / 6, 1e-6))
    spacing = _spacing(np.stack([y, x], axis=-1)[kept])
    inside = per_blob(plane[rows, columns])[kept]
    sizes = 4.0 * area[kept]
    yield "count", 1e4 * len(kept) / (4 * plane.size)
    yield "covered", float(area[kept].sum() / plane.size)
    yield from _mean_sd("area", sizes / 100.0)
    yield from _mean_sd("elongation", elongation[kept])
    yield from _mean_sd("spacing", 2.0 * spacing)
    yield from _mean_sd("stain", inside)


def _spacing(centers: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the distance of each center to the next one; none for fewer than two."""
    if len(centers) < 2:
        return np.zeros(0)
    distance, _ = KDTree(centers).query(centers, k=2)
    nearest: NDArray[np.float64] = distance[:, 1]
    return nearest


def layout_features(plane: Plane) -> Features:
    """Yield sd and range of the means of 4 x 4 cells of the tile."""
    rows = np.linspace(0, plane.shape[0], _CELLS + 1).astype(int)
    columns = np.linspace(0, plane.shape[1], _CELLS + 1).astype(int)
    sums = np.add.reduceat(plane, rows[:-1], axis=0, dtype=np.float64)
    sums = np.add.reduceat(sums, columns[:-1], axis=1)
    cells = sums / np.outer(np.diff(rows), np.diff(columns))
    yield "sd", float(cells.std())
    yield "range", float(np.ptp(cells))


def _mean_sd(name: str, values: Plane) -> Features:
    """Yield mean and standard deviation, 0 where there is nothing."""
    yield f"{name}.mean", float(values.mean()) if len(values) else 0.0
    yield f"{name}.sd", float(values.std()) if len(values) else 0.0


def _mean(plane: Plane) -> float:
    """Return the mean of a contiguous plane (summed pairwise: 1e-6 at most in float32)."""
    return float(plane.sum()) / plane.size


def _prefixed(prefix: str, features: Features) -> Features:
    """Put a family before each name."""
    for name, value in features:
        yield f"{prefix}.{name}", value


def _riu2_table() -> NDArray[np.int64]:
    """Return the riu2 pattern (0 to 9) of each of the 256 ring codes."""
    bits = (np.arange(256)[:, None] >> np.arange(8)) & 1
    changes = (bits != np.roll(bits, 1, axis=1)).sum(axis=1)
    return np.where(changes <= 2, bits.sum(axis=1), 9)


_RIU2: Final = _riu2_table()
_ROW_LEVEL, _COLUMN_LEVEL = np.mgrid[:_GLCM_LEVELS, :_GLCM_LEVELS].astype(np.float64)

FEATURE_NAMES: Final[tuple[str, ...]] = tuple(
    name for name, _ in describe(np.full((MIN_SIDE, MIN_SIDE, 3), 255, dtype=np.uint8))
)
