"""Sums and extremes over the three channels of a picture, channel by channel.

numpy reduces a last axis of three pixel by pixel: ten times as slow, and the same bits.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Number = TypeVar("Number", bound=np.generic)


def lowest(picture: NDArray[Number]) -> NDArray[Number]:
    """Return the least of the channels, (h, w, 3) → (h, w)."""
    return np.asarray(np.minimum(np.minimum(picture[..., 0], picture[..., 1]), picture[..., 2]))


def highest(picture: NDArray[Number]) -> NDArray[Number]:
    """Return the largest of the channels, (h, w, 3) → (h, w)."""
    return np.asarray(np.maximum(np.maximum(picture[..., 0], picture[..., 1]), picture[..., 2]))


def total(density: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the sum of the channels, (h, w, 3) → (h, w); added in their order, as `sum` does."""
    return np.asarray(density[..., 0] + density[..., 1] + density[..., 2])
