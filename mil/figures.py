"""The figures by which each kind of task is judged: name → value, from targets and answers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray

from .metrics import auc, average_precision
from .survival import auc_at, concordance
from .tasks import Array, Classification, MultiLabel, Ordinal, Regression, Survival, Task
from .tasks.ordinal import quadratic_kappa

Figure = Callable[[Array, Array], float]
"""Targets (n, W) and answers (n, P) of known slides → a number, NaN where it is not defined."""


def with_cuts(task: Task, answer: Array, threshold: float | Array | None) -> Array:
    """Put the cut of each slide beside its answer, as the figures of two classes want it: (n, P) → (n, P + 1).

    Args:
        task: of other tasks the answers are left as they are.
        answer: (n, P).
        threshold: fixed before; one for all, or of each slide (n,), where the models of several folds have their own.
    """
    if not isinstance(task, Classification) or len(task.classes) != 2:
        return answer
    return np.column_stack([answer, np.broadcast_to(0.5 if threshold is None else threshold, len(answer))])


def figures_of(task: Task, target: Array) -> dict[str, Figure]:
    """Return what a task is judged by.

    Args:
        task: not of several tasks; these are judged one by one. Of two classes the answers come from `with_cuts`.
        target: of the slides that are judged, (n, W): which classes there are, and when half the events had come.
    """
    if isinstance(task, Classification):
        return _binary() if len(task.classes) == 2 else _classes(target)
    if isinstance(task, MultiLabel):
        made: dict[str, Figure] = {}
        for k, name in enumerate(task.labels):
            made[f"auc {name}"] = partial(_of_column, auc, k)
            made[f"average_precision {name}"] = partial(_of_column, average_precision, k)
        return {"mean_auc": _by_score(task), **made}
    if isinstance(task, Ordinal):
        return {
            "quadratic_kappa": lambda y, p: _number(quadratic_kappa(_class(y), p.argmax(axis=1), p.shape[1])),
            "mae_grades": lambda y, p: float(np.abs(y[:, 0] - p.argmax(axis=1)).mean()),
            "accuracy": lambda y, p: float((y[:, 0] == p.argmax(axis=1)).mean()),
        }
    if isinstance(task, Regression):
        return {
            "mae": lambda y, p: float(np.abs(y[:, 0] - p[:, 0]).mean()),
            "rmse": lambda y, p: float(np.sqrt(((y[:, 0] - p[:, 0]) ** 2).mean())),
            "r2": _by_score(task),
            "correlation": _correlation,
        }
    if isinstance(task, Survival):
        events = target[target[:, 1] == 1, 0]
        times = np.unique(np.quantile(events, (0.25, 0.5, 0.75))) if events.size else np.empty(0)
        at = {f"auc_at_{t:.6g}": partial(_auc_at, t) for t in times}
        return {"c_index": lambda y, p: concordance(y[:, 0], y[:, 1] == 1, p[:, 0]), **at}
    raise TypeError(f"no figures for {task.kind}")


def _binary() -> dict[str, Figure]:
    """Of two classes; the second is the positive one. The third column of the answers is the cut."""

    def rates(y: Array, p: Array) -> tuple[float, float, float, float]:
        truth, said = y[:, 0] == 1, p[:, 1] >= p[:, 2]
        right, wrong = float((truth & said).sum()), float((~truth & said).sum())
        positive, negative = float(truth.sum()), float((~truth).sum())
        return (
            right / positive if positive else float("nan"),
            1 - wrong / negative if negative else float("nan"),
            right,
            right + wrong,
        )

    def f1(y: Array, p: Array) -> float:
        _, _, right, said = rates(y, p)
        total = said + float((y[:, 0] == 1).sum())
        return 2 * right / total if total else float("nan")

    return {
        "auc": lambda y, p: auc(y[:, 0] == 1, p[:, 1]),
        "average_precision": lambda y, p: average_precision(y[:, 0] == 1, p[:, 1]),
        "balanced_accuracy": lambda y, p: sum(rates(y, p)[:2]) / 2,
        "f1": f1,
        "sensitivity": lambda y, p: rates(y, p)[0],
        "specificity": lambda y, p: rates(y, p)[1],
        "accuracy": lambda y, p: float(((p[:, 1] >= p[:, 2]) == (y[:, 0] == 1)).mean()),
        "brier": lambda y, p: float(((p[:, 1] - y[:, 0]) ** 2).mean()),
    }


def _classes(target: Array) -> dict[str, Figure]:
    """Of more than two classes: means over the classes that the slides have, one against the rest."""
    present = np.unique(_class(target))

    def recalls(y: Array, p: Array) -> list[float]:
        said = p.argmax(axis=1)
        return [float((said[y[:, 0] == c] == c).mean()) if (y[:, 0] == c).any() else np.nan for c in present]

    def f1(y: Array, p: Array) -> float:
        said, truth = p.argmax(axis=1), y[:, 0]
        pairs = [(float(((said == c) & (truth == c)).sum()), (said == c).sum() + (truth == c).sum()) for c in present]
        return float(np.mean([2 * right / total if total else np.nan for right, total in pairs]))

    return {
        "auc": lambda y, p: float(np.mean([auc(y[:, 0] == c, p[:, c]) for c in present])),
        "balanced_accuracy": lambda y, p: float(np.mean(recalls(y, p))),
        "macro_f1": f1,
        "accuracy": lambda y, p: float((p.argmax(axis=1) == y[:, 0]).mean()),
        "brier": lambda y, p: float(((p - np.eye(p.shape[1])[_class(y)]) ** 2).sum(axis=1).mean()),
    }


def _class(y: Array) -> NDArray[np.int64]:
    return y[:, 0].astype(np.int64)


def _of_column(metric: Callable[[Array, Array], float], k: int, y: Array, p: Array) -> float:
    """A figure of one label, over the slides where it is known."""
    known = ~np.isnan(y[:, k])
    return metric(y[known, k], p[known, k]) if known.any() else float("nan")


def _by_score(task: Task) -> Figure:
    return lambda y, p: _number(task.score(y, p))


def _auc_at(when: float, y: Array, p: Array) -> float:
    return auc_at(y[:, 0], y[:, 1] == 1, p[:, 0], when)


def _correlation(y: Array, p: Array) -> float:
    if len(y) < 2 or not y.std() or not p[:, 0].std():
        return float("nan")
    return float(np.corrcoef(y[:, 0], p[:, 0])[0, 1])


def _number(value: float | None) -> float:
    return float("nan") if value is None else value
