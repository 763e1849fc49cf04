"""Where a ROC or precision-recall curve would lie had other patients come: bands of the bootstrap over patients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from mil.tasks import Task

RESAMPLES, _STEPS, _LEAST_PATIENTS = 300, 50, 6

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Band:
    """Ends of the middle 95 % at each place.

    Attributes:
        x: places, (S,), rising.
        low: (S,).
        high: (S,).
    """

    x: Floats
    low: Floats
    high: Floats


def bands_of(
    task: Task, target: Floats, answer: Floats, patients: Sequence[str], *, seed: int = 0
) -> dict[tuple[str, str], Band]:
    """Return the bands of a two-class task by (curve, class); nothing of other tasks, or of very few patients.

    Source: Fawcett, "An introduction to ROC analysis", 2006, §9: vertical averaging, here with resampled patients.
    """
    from mil.tasks import Classification

    if not isinstance(task, Classification) or len(task.classes) != 2:
        return {}
    known = task.known(target)
    y, p = target[known, 0] == 1, answer[known, 1]
    _, member = np.unique(np.asarray(patients, str)[known], return_inverse=True)
    rows = [np.flatnonzero(member == patient) for patient in range(member.max() + 1 if len(member) else 0)]
    if len(rows) < _LEAST_PATIENTS or y.all() or not y.any():
        return {}
    rng = np.random.default_rng(seed)
    x = np.linspace(0, 1, _STEPS + 1)
    found: dict[str, list[Floats]] = {"roc": [], "precision_recall": []}
    for _ in range(RESAMPLES):
        drawn = np.concatenate([rows[k] for k in rng.integers(len(rows), size=len(rows))])
        if y[drawn].all() or not y[drawn].any():
            continue
        for kind, values in _at(x, y[drawn], p[drawn]).items():
            found[kind].append(values)
    return {(kind, task.classes[1]): _band(x, values) for kind, values in found.items() if values}


def _at(x: Floats, y: NDArray[np.bool_], p: Floats) -> dict[str, Floats]:
    """True positive rate at each false positive rate, and precision at each recall."""
    from mil.metrics import roc_curve

    fpr, tpr, cuts = roc_curve(y, p)
    true, false = tpr[1:] * y.sum(), fpr[1:] * (~y).sum()
    precision = true / (true + false)
    first = np.minimum(np.searchsorted(tpr[1:], x, side="left"), len(cuts) - 2)
    last = np.searchsorted(fpr, x, side="right") - 1
    return {"roc": tpr[last], "precision_recall": precision[first]}


def _band(x: Floats, values: list[Floats]) -> Band:
    low, high = np.quantile(np.stack(values), (0.025, 0.975), axis=0)
    return Band(x, low, high)
