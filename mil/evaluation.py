"""Answers of held-out slides → figures with intervals: pooled, per fold, patient and subgroup, and of two models."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .delong import compare, delong_interval
from .figures import Figure, figures_of, with_cuts
from .metrics import interval_of_agreement
from .tasks import Array, Classification, MultiTask, Task

_RATES = ("accuracy", "sensitivity", "specificity", "auc")


def evaluate_task(
    task: Task,
    target: Array,
    answer: Array,
    patients: Sequence[str],
    *,
    threshold: float | Array | None = None,
    folds: Sequence[str] | None = None,
    groups: Mapping[str, Sequence[str]] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Judge answers.

    Args:
        task: what was asked.
        target: (n, W), NaN for what is not known.
        answer: (n, P).
        patients: of each slide; intervals resample these.
        threshold: of a two-class task, chosen on validation; (n,) where slides were answered by models with their own.
        folds: of each slide, where several models answered; figures are then also given per fold, and their mean.
        groups: further columns (site, scanner …), each with a value per slide; figures per value.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Returns:
        What JSON can hold: `slides` and `patients` (answers averaged per patient), each figure → value, interval and
        its method; `folds`, `groups`. Of several tasks, the same for each by name.
    """
    if isinstance(task, MultiTask):
        mine = task.answers(answer)
        return {
            name: evaluate_task(part, y, mine[name][1], patients, folds=folds, groups=groups, resamples=resamples)
            for name, (part, _, y) in task.parts(None, target).items()
        }
    known = task.known(target)
    y, p, who = target[known], with_cuts(task, answer, threshold)[known], np.asarray(patients, str)[known]
    if not len(y):
        return {"n": 0, "n_patients": 0, "slides": {}}
    said = _judged(task, y, p, who, resamples, seed)
    cut = None if threshold is None else float(np.mean(threshold))
    result: dict[str, Any] = {"n": len(y), "n_patients": len(set(who)), "threshold": cut, "slides": said}
    result["patients"] = _per_patient(task, y, p, who, resamples, seed)
    if folds is not None:
        result["folds"] = _per_fold(task, y, p, np.asarray(folds, str)[known])
    result["groups"] = {
        column: _per_value(task, y, p, who, np.asarray(values, str)[known], resamples, seed)
        for column, values in (groups or {}).items()
    }
    clean: dict[str, Any] = _jsonable(result)
    return clean


def compare_models(
    task: Task,
    target: Array,
    first: Array,
    second: Array,
    patients: Sequence[str],
    *,
    thresholds: tuple[float | Array | None, float | Array | None] = (None, None),
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Differences of two models' figures on the same slides, first less second.

    Each resample draws patients once for both. With two classes `delong` is DeLong's test of the AUCs; it takes slides
    for independent.
    """
    known = task.known(target)
    y, who = target[known], np.asarray(patients, str)[known]
    a, b = (with_cuts(task, p, cut)[known] for p, cut in zip((first, second), thresholds, strict=True))
    draws = _draws(who, resamples, seed)
    result: dict[str, Any] = {"n": len(y), "n_patients": len(set(who)), "figures": {}}
    for name, of in figures_of(task, y).items():
        value = of(y, a) - of(y, b)
        found = np.array([of(y[rows], a[rows]) - of(y[rows], b[rows]) for rows in draws])
        kept = found[np.isfinite(found)]
        low, high = np.quantile(kept, (0.025, 0.975)) if kept.size else (math.nan, math.nan)
        tail = min((kept <= 0).mean(), (kept >= 0).mean()) if kept.size else math.nan
        p = min(1.0, 2 * max(float(tail), 1 / max(kept.size, 1)))
        result["figures"][name] = {"difference": value, "interval": [float(low), float(high)], "p_bootstrap": p}
    if isinstance(task, Classification) and len(task.classes) == 2:
        result["delong"] = compare(y[:, 0] == 1, a[:, 1], b[:, 1])._asdict()
        result["delong"]["independent"] = len(set(who)) == len(who)
    clean: dict[str, Any] = _jsonable(result)
    return clean


def _judged(task: Task, y: Array, p: Array, who: NDArray[np.str_], resamples: int, seed: int) -> dict[str, Any]:
    """Each figure with its interval."""
    figures, draws = figures_of(task, y), _draws(who, resamples, seed)
    said = {name: _with_interval(name, figure, y, p, who, draws) for name, figure in figures.items()}
    if isinstance(task, Classification) and len(task.classes) == 2:
        said["auc"]["delong_interval"] = list(delong_interval(y[:, 0] == 1, p[:, 1]))
        said["auc"]["delong_independent"] = len(set(who)) == len(who)
    return said


def _with_interval(
    name: str, figure: Figure, y: Array, p: Array, who: NDArray[np.str_], draws: list[NDArray[np.int64]]
) -> dict[str, Any]:
    """Value and percentile interval; where every resample says the same, that of so many independent patients."""
    value = figure(y, p)
    found = np.array([figure(y[rows], p[rows]) for rows in draws])
    kept = found[np.isfinite(found)]
    if not math.isfinite(value) or not kept.size:
        return {"value": value, "interval": [math.nan, math.nan], "method": "none: not defined"}
    low, high = (float(v) for v in np.quantile(kept, (0.025, 0.975)))
    how = f"percentile bootstrap over patients, {kept.size} resamples"
    how += f", {len(found) - kept.size} dropped" if kept.size < len(found) else ""
    if low == high and name in _RATES:
        low, high = interval_of_agreement(value, len(set(who)))
        how = f"all resamples agree: interval of {len(set(who))} independent patients"
    return {"value": value, "interval": [low, high], "method": how}


def _draws(who: NDArray[np.str_], resamples: int, seed: int) -> list[NDArray[np.int64]]:
    """Rows of each resample: whole patients, drawn with replacement."""
    _, member = np.unique(who, return_inverse=True)
    rows = [np.flatnonzero(member == g) for g in range(member.max() + 1)]
    rng = np.random.default_rng(seed)
    return [np.concatenate([rows[g] for g in rng.integers(len(rows), size=len(rows))]) for _ in range(resamples)]


def _per_patient(task: Task, y: Array, p: Array, who: NDArray[np.str_], resamples: int, seed: int) -> dict[str, Any]:
    """Figures of the patients' mean answers; patients whose slides have different targets are left out and counted."""
    names, member = np.unique(who, return_inverse=True)
    rows = [np.flatnonzero(member == g) for g in range(len(names))]
    alike = [mine for mine in rows if np.array_equal(y[mine], np.repeat(y[mine[:1]], len(mine), 0), equal_nan=True)]
    out: dict[str, Any] = {"rule": "mean of the slides' answers", "n": len(alike), "torn": len(rows) - len(alike)}
    if alike:
        targets = np.stack([y[mine[0]] for mine in alike])
        means = np.stack([p[mine].mean(axis=0) for mine in alike])
        out["figures"] = _judged(task, targets, means, names[[member[m[0]] for m in alike]], resamples, seed)
    return out


def _per_fold(task: Task, y: Array, p: Array, folds: NDArray[np.str_]) -> dict[str, Any]:
    """Figures of each fold, their mean and standard deviation: not the same as the pooled figure."""
    names, figures = sorted(set(folds)), figures_of(task, y)
    each = {name: {f: figure(y[folds == f], p[folds == f]) for f in names} for name, figure in figures.items()}
    made = {}
    for name, values in each.items():
        there = [v for v in values.values() if math.isfinite(v)]
        mean = float(np.mean(there)) if there else math.nan
        spread = float(np.std(there, ddof=1)) if len(there) > 1 else math.nan
        made[name] = {"each": values, "mean": mean, "sd": spread}
    return made


def _per_value(
    task: Task,
    y: Array,
    p: Array,
    who: NDArray[np.str_],
    values: NDArray[np.str_],
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    """Figures of each value of a column."""
    made: dict[str, Any] = {}
    for value in sorted(set(values)):
        mine = values == value
        figures = _judged(task, y[mine], p[mine], who[mine], resamples, seed)
        made[value] = {"n": int(mine.sum()), "n_patients": len(set(who[mine])), "figures": figures}
    return made


def _jsonable(value: Any) -> Any:
    """Replace NaN and infinity, which JSON does not know, by None."""
    if isinstance(value, Mapping):
        return {key: _jsonable(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(entry) for entry in value]
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else None
    return value
