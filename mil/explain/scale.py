"""Values → values that can be shown: ranks, and attention against that of the average tile.

Softmax attention shrinks as 1 / N: a map of the plain weights is pale on a large slide and glaring on a small one.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def rank(values: ArrayLike) -> NDArray[np.float32]:
    """Share of the tiles that lie below, ties in the middle: (N,) in 0 to 1; 0.5 where there is but one tile."""
    from scipy.stats import rankdata

    numbers = np.asarray(values, np.float64)
    if len(numbers) < 2:
        return np.full(len(numbers), 0.5, np.float32)
    return np.asarray((rankdata(numbers) - 1) / (len(numbers) - 1), np.float32)


def log_ratio(weights: ArrayLike, *, floor: float = 2.0**-30) -> NDArray[np.float32]:
    """log2 of weights that sum to 1 over that of the average tile: (N,); 0 is average, 1 twice as much."""
    numbers = np.asarray(weights, np.float64)
    return np.asarray(np.log2(np.maximum(numbers * len(numbers), floor)), np.float32)
