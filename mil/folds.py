"""Cross-validation by patient: k folds, repeated, nested, and with the sites kept together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .errors import TrainingDataError
from .splits import Split, check_split, few_in_words


def k_folds(
    patients: Sequence[str],
    labels: Sequence[int] | NDArray[np.integer] | None = None,
    *,
    k: int = 5,
    repeats: int = 1,
    validation: float = 0.2,
    sites: Sequence[str] | None = None,
    seed: int = 0,
    names: Sequence[str] = (),
) -> list[Split]:
    """Deal patients into k test folds; of the rest of each, a share is for early stopping and thresholds.

    Args:
        patients: patient of each slide; all slides of a patient are on one side.
        labels: class of each slide, to keep their shares alike in every fold; None (or a number per slide that is no
            class, see `strata`) where there are no classes.
        k: number of folds.
        repeats: how often it is all dealt anew.
        validation: share of the patients of a fold's training side.
        sites: hospital of each slide; the slides of a site are then on one side, so that a model cannot know a slide
            by its site. Shares of classes are kept as well as that allows.
        seed: the same seed gives the same folds.
        names: of the classes, for what is said of them.

    Returns:
        k x repeats splits, the folds of one repeat after another; within a repeat every slide is tested once.

    Raises:
        TrainingDataError: fewer patients of some class, or sites, than folds.
    """
    y = np.zeros(len(patients), np.int64) if labels is None else np.asarray(labels, np.int64)
    groups = list(patients) if sites is None else _sites_of(patients, sites)
    _check_enough(groups, y, k, names, stratified=sites is None, what="patients" if sites is None else "sites")
    splits = []
    for repeat in range(repeats):
        rng = np.random.default_rng([seed, repeat])
        fold_of = _deal(groups, y, k, rng)
        for fold in range(k):
            test = np.flatnonzero(fold_of == fold)
            rest = np.flatnonzero(fold_of != fold)
            splits.append(_with_validation(rest, test, groups, y, validation, rng))
            check_split(splits[-1], patients)
    return splits


def nested_folds(
    split: Split,
    patients: Sequence[str],
    labels: Sequence[int] | NDArray[np.integer] | None = None,
    *,
    k: int = 3,
    sites: Sequence[str] | None = None,
    seed: int = 0,
) -> list[Split]:
    """Inner folds of one outer fold, for choosing settings: its test slides are on no side of any of them."""
    outer = np.sort(np.concatenate([split.train, split.validation]))
    inner = k_folds(
        [patients[i] for i in outer],
        None if labels is None else np.asarray(labels)[outer],
        k=k,
        sites=None if sites is None else [sites[i] for i in outer],
        seed=seed,
    )
    return [Split(outer[s.train], outer[s.validation], outer[s.test]) for s in inner]


def strata(values: NDArray[np.float64], bins: int = 4) -> NDArray[np.int64]:
    """Classes for `k_folds` from numbers (n,): bins of equally many; what is not known is a class of its own."""
    known = np.isfinite(values)
    cuts = np.unique(np.quantile(values[known], np.arange(1, bins) / bins)) if known.any() else np.empty(0)
    return np.where(known, np.searchsorted(cuts, np.nan_to_num(values), side="right"), bins).astype(np.int64)


def _sites_of(patients: Sequence[str], sites: Sequence[str]) -> list[str]:
    """Site of each slide; patients seen at several sites tie these together."""
    root: dict[str, str] = {}

    def find(name: str) -> str:
        while root.setdefault(name, name) != name:
            name = root[name]
        return name

    first: dict[str, str] = {}
    for patient, site in zip(patients, sites, strict=True):
        a, b = find(first.setdefault(patient, site)), find(site)
        root[max(a, b)] = min(a, b)
    return [find(site) for site in sites]


def _check_enough(
    groups: Sequence[str], y: NDArray[np.int64], k: int, names: Sequence[str], *, stratified: bool, what: str
) -> None:
    if k < 2:
        raise TrainingDataError(f"{k} fold is none: use 2 or more.")
    if len(set(groups)) < k:
        raise TrainingDataError(f"{len(set(groups))} {what} cannot be dealt into {k} folds. Use fewer folds.")
    if stratified:
        count = Counter(c for _, c in {(group, int(c)) for group, c in zip(groups, y, strict=True)})
        few = {c: n for c, n in sorted(count.items()) if n < k}
        if few and len(count) > 1:
            found = few_in_words(few, names)
            raise TrainingDataError(f"{found}, fewer than {k} folds. Use fewer folds, or label more patients.")


def _deal(groups: Sequence[str], y: NDArray[np.int64], k: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Fold of each slide: the groups one after another, large ones first, each to where its classes lack most.

    Among equals the order is random. For single-class patients this is stratified dealing; for sites a greedy optimum.
    """
    classes = int(y.max()) + 1
    names = sorted(set(groups))
    number = {name: i for i, name in enumerate(names)}
    counts = np.zeros((len(names), classes))
    np.add.at(counts, (np.array([number[g] for g in groups]), y), 1)
    share = counts / counts.sum(axis=0).clip(min=1)  # of each class
    order = rng.permutation(len(names))
    order = order[np.argsort(-share[order].max(axis=1).round(9), kind="stable")]
    has, fold_of = np.zeros((k, classes)), np.zeros(len(names), np.int64)
    sizes = np.zeros(k)
    for i in order:
        cost = ((has + share[i]) ** 2 - has**2).sum(axis=1) + 1e-6 * sizes
        best = np.flatnonzero(cost <= cost.min() + 1e-12)
        fold_of[i] = rng.choice(best)
        has[fold_of[i]] += share[i]
        sizes[fold_of[i]] += 1
    return fold_of[[number[g] for g in groups]]


def _with_validation(
    rest: NDArray[np.int64],
    test: NDArray[np.int64],
    groups: Sequence[str],
    y: NDArray[np.int64],
    validation: float,
    rng: np.random.Generator,
) -> Split:
    """Take one of round(1 / share) parts of the training side for validation."""
    names = [groups[i] for i in rest]
    parts = max(2, min(round(1 / validation), len(set(names))))
    if len(set(names)) < 2:
        raise TrainingDataError("a fold has one training group only: none is left for validation. Use fewer folds.")
    part_of = _deal(names, y[rest], parts, rng)
    full = [p for p in range(parts) if set(y[rest][part_of == p]) == set(y[rest]) == set(y[rest][part_of != p])]
    chosen = full[0] if full else 0
    return Split(rest[part_of != chosen], rest[part_of == chosen], test)
