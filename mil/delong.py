"""DeLong's variance of AUCs, in O(n log n): an interval for one model, a test for two on the same slides."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .metrics import _binary


class Comparison(NamedTuple):
    """Two AUCs on the same cases.

    Attributes:
        difference: first less second.
        low: lower end of its interval.
        high: upper end.
        z: difference over its standard error.
        p: two-sided.
    """

    difference: float
    low: float
    high: float
    z: float
    p: float


def delong(labels: ArrayLike, scores: Sequence[ArrayLike]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the AUCs of several scores (M,) and their covariance (M, M).

    It takes every row for a case of its own: with several slides per patient the variance is too small.

    Source: DeLong, DeLong, Clarke-Pearson 1988, doi:10.2307/2531595, through mid-ranks as in Sun and Xu 2014,
    doi:10.1109/LSP.2014.2337313.
    """
    y, s = _binary(labels), np.atleast_2d(np.asarray(scores, np.float64))
    m, n = int(y.sum()), int((~y).sum())
    if m < 2 or n < 2:
        return np.full(len(s), np.nan), np.full((len(s), len(s)), np.nan)
    whole = np.array([_midranks(row) for row in s])
    positive = np.array([_midranks(row[y]) for row in s])
    negative = np.array([_midranks(row[~y]) for row in s])
    v10 = (whole[:, y] - positive) / n  # share of negatives below each positive
    v01 = 1 - (whole[:, ~y] - negative) / m
    aucs: NDArray[np.float64] = v10.mean(axis=1)
    covariance = np.atleast_2d(np.cov(v10)) / m + np.atleast_2d(np.cov(v01)) / n
    return aucs, covariance


def delong_interval(labels: ArrayLike, scores: ArrayLike, *, level: float = 0.95) -> tuple[float, float]:
    """Interval of one AUC, on the logit scale, so that it stays within 0 and 1; NaN where the variance is 0."""
    aucs, covariance = delong(labels, [scores])
    auc, variance = float(aucs[0]), float(covariance[0, 0])
    if not 0 < auc < 1 or not variance > 0:
        return float("nan"), float("nan")
    z = NormalDist().inv_cdf((1 + level) / 2)
    middle, half = np.log(auc / (1 - auc)), z * variance**0.5 / (auc * (1 - auc))
    low, high = 1 / (1 + np.exp(-(middle - half))), 1 / (1 + np.exp(-(middle + half)))
    return float(low), float(high)


def compare(labels: ArrayLike, first: ArrayLike, second: ArrayLike, *, level: float = 0.95) -> Comparison:
    """Test whether two scores have the same AUC on the same cases."""
    aucs, covariance = delong(labels, [first, second])
    difference = float(aucs[0] - aucs[1])
    variance = float(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    if not variance > 0:
        same = 1.0 if difference == 0 else float("nan")
        return Comparison(difference, difference, difference, 0.0 if same == 1.0 else float("nan"), same)
    error = variance**0.5
    half, z = NormalDist().inv_cdf((1 + level) / 2) * error, difference / error
    return Comparison(difference, difference - half, difference + half, z, 2 * NormalDist().cdf(-abs(z)))


def _midranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ranks from 1; equal values share their mean rank."""
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    ranks: NDArray[np.float64] = (np.cumsum(count) - (count - 1) / 2)[place]
    return ranks
