"""Area means: what a coarser pixel would have seen.

Every source pixel counts by the share of it that lies under the target pixel, so nothing aliases at any ratio.
"""

from __future__ import annotations

import threading
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Callable

    from scipy import sparse

    AreaMeans = Callable[[NDArray[np.uint8], sparse.csr_matrix, sparse.csr_matrix], NDArray[np.uint8]]

_MANY = 1000
"""Resizes after which numba, where it is installed, has paid for the seconds that its import takes."""


def resize_area(image: NDArray[np.uint8], width: int, height: int) -> NDArray[np.uint8]:
    """Return `image` (H, W, 3) as (height, width, 3), uint8, each pixel the mean of the area it covers.

    Where the target is larger, the same rule repeats pixels and blends at their borders. Halves, quarters and
    eighths are left to Pillow's `reduce`, which computes the same and is twice as fast (at other factors it rounds
    down); all let other threads run meanwhile.
    """
    rows, columns = image.shape[:2]
    if (rows, columns) == (height, width):
        return image
    if columns / width == rows / height and columns / width in (2, 4, 8):
        return np.asarray(Image.fromarray(image).reduce((columns // width, rows // height)))
    return _how()(np.ascontiguousarray(image), weights(rows, height), weights(columns, width))


def area_means(image: NDArray[np.uint8], down: sparse.csr_matrix, across: sparse.csr_matrix) -> NDArray[np.uint8]:
    """Return `image` (H, W, 3) as (h, w, 3): sums of its pixels by (h, H) and (w, W) weights."""
    (height, rows), (width, columns) = down.shape, across.shape
    lines = down @ image.reshape(rows, columns * 3).astype(np.float32)
    turned = np.ascontiguousarray(lines.reshape(height, columns, 3).transpose(1, 0, 2)).reshape(columns, height * 3)
    means = (across @ turned).reshape(width, height, 3).transpose(1, 0, 2)
    return np.asarray(means + np.float32(0.5), np.uint8)


class _Way:
    """Which of the two computes area means."""

    def __init__(self) -> None:
        self.compute: AreaMeans = area_means
        self.left = _MANY
        self.change = threading.Lock()


_way = _Way()


def _how() -> AreaMeans:
    _way.left -= 1  # threads may miss one another's count: it is no more than a hint
    if _way.left < 0 and _way.compute is area_means and _way.change.acquire(blocking=False):
        try:
            from wsi.resize_compiled import area_means as compiled
        except ImportError:  # it was not installed; the lock is kept, so that no one tries again
            return area_means
        _way.compute = compiled
    return _way.compute


@lru_cache(maxsize=256)
def weights(source: int, target: int, begin: float = 0.0, end: float | None = None) -> sparse.csr_matrix:
    """Return the (target, source) matrix of area means along one axis, float32; its rows sum to 1.

    Args:
        source: how many pixels there are.
        target: how many there shall be.
        begin: where the first of these begins, px of the source.
        end: where the last one ends; at the end of the source by default.
    """
    from scipy import sparse  # slow to load, and halves, quarters and eighths do without

    length = (source if end is None else end) - begin
    edges = begin + np.arange(target + 1) * (length / target)
    first = np.minimum(edges[:-1].astype(int), source - 1)
    most = int(np.ceil(length / target)) + 1
    columns = first[:, None] + np.arange(most)
    overlap = np.minimum(edges[1:, None], columns + 1) - np.maximum(edges[:-1, None], columns)
    overlap = np.where(columns < source, np.clip(overlap, 0, None), 0)
    overlap /= overlap.sum(1, keepdims=True)
    keep = overlap > 0
    rows = np.broadcast_to(np.arange(target)[:, None], keep.shape)
    entries = overlap[keep].astype(np.float32), (rows[keep], columns[keep])
    return sparse.csr_matrix(entries, shape=(target, source))
