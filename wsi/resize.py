"""Area means: what a coarser pixel would have seen.

Every source pixel counts by the share of it that lies under the target pixel, so nothing aliases at any ratio.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import sparse


def resize_area(image: NDArray[np.uint8], width: int, height: int) -> NDArray[np.uint8]:
    """Return `image` (H, W, 3) as (height, width, 3), uint8, each pixel the mean of the area it covers.

    Where the target is larger, the same rule repeats pixels and blends at their borders. Halves, quarters and
    eighths are left to Pillow's `reduce`, which computes the same and is twice as fast (at other factors it rounds
    down); both let other threads run meanwhile.
    """
    rows, columns = image.shape[:2]
    if (rows, columns) == (height, width):
        return image
    if columns / width == rows / height and columns / width in (2, 4, 8):
        return np.asarray(Image.fromarray(image).reduce((columns // width, rows // height)))
    down = weights(rows, height) @ image.reshape(rows, columns * 3).astype(np.float32)
    turned = np.ascontiguousarray(down.reshape(height, columns, 3).transpose(1, 0, 2)).reshape(columns, height * 3)
    across = (weights(columns, width) @ turned).reshape(width, height, 3).transpose(1, 0, 2)
    return np.asarray(across + 0.5, np.uint8)


@lru_cache(maxsize=256)
def weights(source: int, target: int) -> sparse.csr_matrix:
    """Return the (target, source) matrix of area means along one axis, float32; its rows sum to 1."""
    edges = np.arange(target + 1) * (source / target)
    first = np.minimum(edges[:-1].astype(int), source - 1)
    most = int(np.ceil(source / target)) + 1
    columns = first[:, None] + np.arange(most)
    overlap = np.minimum(edges[1:, None], columns + 1) - np.maximum(edges[:-1, None], columns)
    overlap = np.where(columns < source, np.clip(overlap, 0, None), 0)
    overlap /= overlap.sum(1, keepdims=True)
    keep = overlap > 0
    rows = np.broadcast_to(np.arange(target)[:, None], keep.shape)
    entries = overlap[keep].astype(np.float32), (rows[keep], columns[keep])
    return sparse.csr_matrix(entries, shape=(target, source))
