"""Train on folds, answer the held-out bags, and say how sure the rates are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

import mil
from mil.folds import k_folds
from mil.metrics import auc, bootstrap_interval, interval_of_agreement
from mil.model import TrainedModel
from mil.splits import Split

CLASSES = ("negative", "positive")
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Answers:
    """What models said of bags that they had not seen.

    Attributes:
        labels: 0 or 1, (n,).
        chance: of class 1, (n,).
        said: class by the threshold that each fold's validation chose, (n,).
        groups: of each bag; a bag that was tested in several repeats is several rows of one group.
        fold: number of the fold, over all repeats.
    """

    labels: NDArray[np.int64]
    chance: Array
    said: NDArray[np.int64]
    groups: tuple[str, ...]
    fold: NDArray[np.int64]


def side(bags: mil.BagSet, rows: NDArray[np.int64]) -> mil.BagSet:
    """Return some rows of a set."""
    return mil.BagSet([bags.bags[i] for i in rows], bags.labels[rows], tuple(bags.patients[i] for i in rows))


def fold_models(
    bags: mil.BagSet, settings: mil.TrainSettings, *, k: int, repeats: int = 1, seed: int = 0
) -> list[tuple[Split, Callable[..., TrainedModel]]]:
    """Return each split of the folds, by patient and class, and what trains on it; test bags have no way in."""
    splits = k_folds(bags.patients, bags.labels, k=k, repeats=repeats, validation=0.2, seed=seed)

    def trainer(number: int, split: Split) -> Callable[..., TrainedModel]:
        own = mil.TrainSettings(**{**vars(settings), "seed": seed + number})
        return lambda **more: mil.train(side(bags, split.train), side(bags, split.validation), CLASSES, own, **more)

    return [(split, trainer(number, split)) for number, split in enumerate(splits)]


def held_out(bags: mil.BagSet, settings: mil.TrainSettings, *, k: int, repeats: int = 1, seed: int = 0) -> Answers:
    """Cross-validate a head: every bag is answered once per repeat, by a model and a threshold that never saw it."""
    rows, found = [], []
    for number, (split, train) in enumerate(fold_models(bags, settings, k=k, repeats=repeats, seed=seed)):
        chance, said = answers(train(), [bags.bags[i] for i in split.test])
        rows.append(split.test)
        found.append((chance, said, np.full(len(said), number)))
    tested = np.concatenate(rows)
    chance, said, fold = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return Answers(bags.labels[tested], chance, said, tuple(bags.patients[i] for i in tested), fold)


def answers(model: TrainedModel, bags: Sequence[mil.Bag]) -> tuple[Array, NDArray[np.int64]]:
    """Chance of class 1 and the class by the model's threshold, (n,) each."""
    found = [mil.predict(model, bag)[0] for bag in bags]
    said = np.array([CLASSES.index(one.pred) for one in found], np.int64)
    return np.array([one.probabilities[1] for one in found]), said


def rates(found: Answers, resamples: int = 1000) -> dict[str, Any]:
    """Accuracy and AUC of all held-out bags together, with intervals that resample whole groups."""

    def accuracy(labels: Array, said: Array) -> float:
        return float((labels == said).mean())

    made: dict[str, Any] = {}
    for name, scores, metric in (("accuracy", found.said, accuracy), ("auc", found.chance, auc)):
        low, high, *_ = bootstrap_interval(found.labels, scores, found.groups, metric, n=resamples)
        made[name] = metric(found.labels, scores)
        if low == high:  # no resample differs: the bootstrap sees no doubt
            low, high = interval_of_agreement(made[name], len(set(found.groups)))
        made[f"{name}_interval"] = [low, high]
    each = [auc(found.labels[mine], found.chance[mine]) for mine in (found.fold == f for f in np.unique(found.fold))]
    made["auc_mean_of_folds"] = float(np.nanmean(each))
    return made
