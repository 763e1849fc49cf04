"""Values → values that can be shown: ranks, and attention against that of the average tile.

Softmax attention shrinks as 1 / N: a map of the plain weights is pale on a large slide and glaring on a small one.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def rank(values: ArrayLike) -> NDArray[np.float32]:
    """Share of the tiles that lie below, ties in the middle: (N,) in 0 to 1; 0.5 where there is but one tile."""
    numbers = np.asarray(values, np.float64)
    if len(numbers) < 2:
        return np.full(len(numbers), 0.5, np.float32)
    return np.asarray((ranks(numbers) - 1) / (len(numbers) - 1), np.float32)


def ranks(values: ArrayLike) -> NDArray[np.float64]:
    """Ranks from 1, ties share their mean: (N,); all NaN where a value is NaN.

    As `scipy.stats.rankdata`, whose module alone takes a second to load.
    """
    numbers = np.asarray(values, np.float64).ravel()
    if not len(numbers) or np.isnan(numbers).any():
        return np.full(len(numbers), np.nan)
    order = np.argsort(numbers, kind="stable")
    ordered = numbers[order]
    begins = np.concatenate([[True], ordered[1:] != ordered[:-1]])
    edges = np.append(np.flatnonzero(begins), len(numbers))
    found = np.empty(len(numbers))
    found[order] = ((edges[:-1] + 1 + edges[1:]) / 2)[np.cumsum(begins) - 1]
    return found


def log_ratio(weights: ArrayLike, *, floor: float = 2.0**-30) -> NDArray[np.float32]:
    """log2 of weights that sum to 1 over that of the average tile: (N,); 0 is average, 1 twice as much."""
    numbers = np.asarray(weights, np.float64)
    return np.asarray(np.log2(np.maximum(numbers * len(numbers), floor)), np.float32)
