"""How well risks order times, where some times are only known to be longer than what was seen."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

_BLOCK = 2_000_000  # pairs compared at a time


def concordance(time: ArrayLike, event: ArrayLike, risk: ArrayLike) -> float:
    """Harrell's C: of the pairs in which it is known who came first, the share in which that one had the higher risk.

    A pair counts if the earlier time is an event; at equal times, if one is an event and the other is not (who is
    censored then outlived the event). Equal risks count half. NaN without such a pair.

    Args:
        time: shape (n,).
        event: whether the event came then, shape (n,).
        risk: larger means sooner, shape (n,).

    Source: Harrell et al. 1982, doi:10.1001/jama.1982.03320430047030.
    """
    t, d, r = np.asarray(time, float), np.asarray(event, bool), np.asarray(risk, float)
    right, pairs = 0.0, 0
    first = np.flatnonzero(d)
    for rows in np.array_split(first, max(1, -(-len(first) * len(t) // _BLOCK))):
        later = (t[rows, None] < t) | ((t[rows, None] == t) & ~d)
        gap = r[rows, None] - r
        right += float((later & (gap > 0)).sum() + 0.5 * (later & (gap == 0)).sum())
        pairs += int(later.sum())
    return right / pairs if pairs else float("nan")


def censoring_survival(
    time: NDArray[np.float64], event: NDArray[np.bool_], at: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Kaplan-Meier estimate of the chance not to be censored before each of `at` (the left limit)."""
    times = np.unique(time[~event])
    at_risk = np.array([(time >= s).sum() - ((time == s) & event).sum() for s in times], float)
    lost = np.array([((time == s) & ~event).sum() for s in times], float)
    steps = np.cumprod(1 - lost / np.maximum(at_risk, 1)) if len(times) else np.empty(0)
    place = np.searchsorted(times, at, side="left")  # censored strictly before
    return np.concatenate([[1.0], steps])[place]


def auc_at(time: ArrayLike, event: ArrayLike, risk: ArrayLike, when: float) -> float:
    """Chance that who had the event by `when` has a higher risk than who outlived it, weighted for censoring.

    Each event weighs 1 / G(t-), G the chance of not being censored yet: those it stands for were lost from sight.

    Source: Uno et al. 2007, doi:10.1198/016214507000000149 (cumulative cases, dynamic controls).
    """
    t, d, r = np.asarray(time, float), np.asarray(event, bool), np.asarray(risk, float)
    cases, controls = d & (t <= when), t > when
    if not cases.any() or not controls.any():
        return float("nan")
    weight = 1 / np.maximum(censoring_survival(t, d, t[cases]), 1e-12)
    gap = r[cases, None] - r[controls]
    wins = (gap > 0) + 0.5 * (gap == 0)
    return float((weight[:, None] * wins).sum() / (weight.sum() * controls.sum()))
