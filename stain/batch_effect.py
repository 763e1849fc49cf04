"""How well the site or scanner of a slide can be told from its features, and whether that is more than chance.

A linear probe is asked: ridge regression on the indicator of each site, cross-validated so that slides of one patient
are never on both sides. For given folds its predictions are a fixed matrix times the indicators, so thousands of
permutations cost one product each, and each permutation is fitted and predicted just like the truth.

Source of the p-value: Phipson and Smyth 2010, doi:10.2202/1544-6115.1585: (1 + as good or better) / (1 + permutations).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from .errors import PixelFormatError

Floats = NDArray[np.float64]

PERMUTATIONS: Final = 999
FOLDS: Final = 5

_RIDGE: Final = 1.0
_SPREAD: Final = 1e-6


@dataclass(frozen=True)
class Probe:
    """What a probe found.

    Attributes:
        accuracy: balanced accuracy: the mean over sites of the share told rightly.
        chance: the mean of the same over permutations.
        interval: 95 %, by resampling patients.
        p: of the permutation test: how often chance does as well.
        recall: site → share of its slides told rightly.
        right: (N,) which slides were told rightly.
    """

    accuracy: float
    chance: float
    interval: tuple[float, float]
    p: float
    recall: dict[str, float]
    right: NDArray[np.bool_]

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "balanced_accuracy": round(self.accuracy, 4),
            "interval": [round(end, 4) for end in self.interval],
            "chance": round(self.chance, 4),
            "p": round(self.p, 4),
            "recall": {site: round(share, 4) for site, share in self.recall.items()},
        }


def probe(
    features: Floats,
    sites: Sequence[str],
    cases: Sequence[str],
    *,
    strata: Sequence[str] | None = None,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> Probe:
    """Ask whether the site can be told.

    Args:
        features: (N, D), one row for each slide.
        sites: of each slide.
        cases: patient of each slide; patients are permuted as wholes.
        strata: of each slide, e.g. the diagnosis: sites are permuted only among patients of one stratum, so that what
            the diagnosis alone gives away counts as chance.
        permutations: how many.
        seed: of folds, permutations and resampling.

    Raises:
        PixelFormatError: fewer than two sites, or a site with fewer than two patients.
    """
    names, site = np.unique(np.asarray(sites, str), return_inverse=True)
    _, case = np.unique(np.asarray(cases, str), return_inverse=True)
    stratum = np.unique(np.asarray(strata if strata is not None else [""] * len(site), str), return_inverse=True)[1]
    _check(features, names, site, case)
    rng = np.random.default_rng(seed)
    predict = predictor(features, _folds(site, case, rng))
    units = _units(case, site)
    shuffled = np.stack([_permuted(site, units, stratum, rng) for _ in range(permutations)])
    right = _told(predict, site[None], len(names))[0] == site
    value = _balanced(right[None], site[None], len(names))[0]
    told = _told(predict, shuffled, len(names))
    chance = _balanced(told == shuffled, shuffled, len(names))
    p = (1 + int((chance >= value - 1e-12).sum())) / (1 + permutations)
    recall = {str(name): float(right[site == k].mean()) for k, name in enumerate(names)}
    return Probe(float(value), float(chance.mean()), _interval(right, site, case, len(names), rng), p, recall, right)


def difference_p(
    before: Probe, after: Probe, cases: Sequence[str], *, permutations: int = PERMUTATIONS, seed: int = 0
) -> float:
    """Return the p-value of "the site can be told equally well before and after": two-sided, patients swapped.

    Both probes are of the same slides in the same order.
    """
    _, case = np.unique(np.asarray(cases, str), return_inverse=True)
    step = np.bincount(case, before.right.astype(float) - after.right)
    rng = np.random.default_rng(seed)
    signs = rng.choice([-1.0, 1.0], (permutations, len(step)))
    as_far = np.abs(signs @ step) >= abs(step.sum()) - 1e-12
    return (1 + int(as_far.sum())) / (1 + permutations)


def predictor(features: Floats, folds: NDArray[np.int64]) -> Floats:
    """Return the matrix that turns indicators of the sites (N, K) into cross-validated predictions (N, K).

    Args:
        features: (N, D).
        folds: (N,) of each row; a row is predicted by the other folds alone.

    Returns:
        (N, N); each row sums to 1 and holds zeros where its own fold is.
    """
    matrix = np.zeros((len(features), len(features)))
    for fold in np.unique(folds):
        test, train = np.flatnonzero(folds == fold), np.flatnonzero(folds != fold)
        middle, spread = features[train].mean(axis=0), features[train].std(axis=0)
        keep = spread > _SPREAD * max(1.0, float(np.abs(middle).max(initial=0.0)))
        scale = spread[keep] * np.sqrt(max(int(keep.sum()), 1))
        x, z = (features[rows][:, keep] - middle[keep] for rows in (train, test))
        x, z = x / scale, z / scale
        # Ridge in its dual form: as many unknowns as slides, however wide the features.
        weights = np.linalg.solve(x @ x.T + _RIDGE * len(train) / 100 * np.eye(len(train)), x @ z.T).T
        centered = weights - weights.mean(axis=1, keepdims=True)
        matrix[np.ix_(test, train)] = centered + 1.0 / len(train)
    return matrix


def _told(predict: Floats, sites: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Return the site that each slide is taken for: (P, N) of (P, N).

    Indicators are divided by the frequency of their site, so that a rare site can win.
    """
    told = np.empty_like(sites)
    for row, site in enumerate(sites):
        indicator = np.eye(count)[site]
        told[row] = (predict @ indicator / np.maximum(indicator.mean(axis=0), 1e-12)).argmax(axis=1)
    return told


def _balanced(right: NDArray[np.bool_], sites: NDArray[np.int64], count: int) -> Floats:
    """Return the balanced accuracy of each row: (P,) of (P, N)."""
    shares = [(right & (sites == k)).sum(axis=1) / np.maximum((sites == k).sum(axis=1), 1) for k in range(count)]
    mean: Floats = np.mean(shares, axis=0)
    return mean


def _folds(site: NDArray[np.int64], case: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    """Deal patients to folds, site by site, so that each fold has its share of every site."""
    folds = np.zeros(len(site), np.int64)
    count = min(FOLDS, min(len(np.unique(case[site == k])) for k in np.unique(site)))
    of_case: dict[int, int] = {}
    for k in np.unique(site):
        mine = [one for one in rng.permutation(np.unique(case[site == k])) if int(one) not in of_case]
        for place, one in enumerate(mine):
            of_case[int(one)] = (place + int(k)) % count
    folds[:] = [of_case[int(one)] for one in case]
    return folds


def _units(case: NDArray[np.int64], site: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return what is permuted as a whole: the slides of one patient at one site."""
    return np.unique(np.stack([case, site]), axis=1, return_inverse=True)[1].reshape(-1).astype(np.int64)


def _permuted(
    site: NDArray[np.int64], units: NDArray[np.int64], stratum: NDArray[np.int64], rng: np.random.Generator
) -> NDArray[np.int64]:
    """Deal the sites anew among the units of each stratum."""
    _, first = np.unique(units, return_index=True)
    dealt = site[first].copy()
    for one in np.unique(stratum[first]):
        rows = np.flatnonzero(stratum[first] == one)
        dealt[rows] = dealt[rng.permutation(rows)]
    return dealt[units]


def _interval(
    right: NDArray[np.bool_],
    site: NDArray[np.int64],
    case: NDArray[np.int64],
    count: int,
    rng: np.random.Generator,
    resamples: int = 1000,
) -> tuple[float, float]:
    """Resample patients within each site."""
    shares = np.zeros((resamples, count))
    for k in range(count):
        mine = np.flatnonzero(site == k)
        kinds, rows = np.unique(case[mine], return_inverse=True)
        good, all_ = np.bincount(rows, right[mine]), np.bincount(rows)
        picks = rng.integers(0, len(kinds), (resamples, len(kinds)))
        shares[:, k] = good[picks].sum(axis=1) / all_[picks].sum(axis=1)
    low, high = np.percentile(shares.mean(axis=1), [2.5, 97.5])
    return float(low), float(high)


def _check(features: Floats, names: NDArray[Any], site: NDArray[np.int64], case: NDArray[np.int64]) -> None:
    if features.ndim != 2 or len(features) != len(site) or not np.isfinite(features).all():
        raise PixelFormatError(f"features {features.shape} of {len(site)} slides: a finite row for each is needed.")
    if len(names) < 2:
        raise PixelFormatError(f"all slides are of one site ({names[0] if len(names) else 'none'}): nothing to tell.")
    for k, name in enumerate(names):
        patients = len(np.unique(case[site == k]))
        if patients < 2:
            raise PixelFormatError(
                f"site {str(name)!r} has {patients} patient: two are needed, one to learn from and one to ask about. "
                "Leave its slides out."
            )
