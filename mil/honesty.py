"""One training, scored four ways: how much better it looks the more is chosen on the slides it is scored on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import MilError


@dataclass(frozen=True)
class FourWays:
    """Accuracy of the same held-out slides, or cases.

    Attributes:
        honest: epoch and threshold chosen on validation.
        stopped: epoch with the lowest error, then loss, on the held-out slides; the honest threshold.
        best_epoch: the highest accuracy of any epoch; the honest threshold.
        best_threshold: the highest accuracy of any epoch at any threshold.
    """

    honest: float
    stopped: float
    best_epoch: float
    best_threshold: float


def four_ways(labels: ArrayLike, by_epoch: ArrayLike, chosen: int, threshold: float) -> FourWays:
    """Score one training.

    Args:
        labels: 0 or 1, shape (n,).
        by_epoch: chance of class 1 that each epoch gives, shape (epochs, n).
        chosen: row of the epoch that validation chose.
        threshold: that validation chose.

    Raises:
        MilError: shapes do not fit.
    """
    y, p = np.asarray(labels) == 1, np.asarray(by_epoch, np.float64)
    if p.ndim != 2 or p.shape[1] != y.size or not 0 <= chosen < len(p):
        raise MilError(f"{y.size} labels and chances {p.shape}, epoch {chosen}: wanted (epochs, n).")
    accuracy = ((p >= threshold) == y).mean(axis=1)
    loss = -np.log(np.clip(np.where(y, p, 1 - p), 1e-12, 1)).mean(axis=1)
    stopped = int(np.lexsort((loss, -accuracy))[0])
    lowest = int(np.argmin((1 - accuracy) + loss))
    return FourWays(
        honest=float(accuracy[chosen]),
        stopped=float(accuracy[lowest]),
        best_epoch=float(accuracy[stopped]),
        best_threshold=max(_best_accuracy(y, row) for row in p),
    )


def over_folds(folds: Sequence[FourWays], sizes: Sequence[int]) -> FourWays:
    """Means over folds, weighted by their slides: each fold had its own favorite epoch."""
    weights = np.asarray(sizes, float) / sum(sizes)
    mean: Callable[[str], float] = lambda name: float(np.dot(weights, [getattr(f, name) for f in folds]))  # noqa: E731
    return FourWays(*(mean(name) for name in ("honest", "stopped", "best_epoch", "best_threshold")))


def _best_accuracy(y: NDArray[np.bool_], p: NDArray[np.float64]) -> float:
    """Highest accuracy at any threshold."""
    cuts = np.concatenate([np.unique(p), [np.inf]])
    return float(max(((p >= cut) == y).mean() for cut in cuts))
