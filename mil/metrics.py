"""How good predictions are, and how sure that is: plain numpy, intervals by resampling patients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import MilError

Metric = Callable[[NDArray[Any], NDArray[Any]], float]


class Interval(NamedTuple):
    """A confidence interval from resampled patients.

    Attributes:
        low: lower end; NaN where no resample could be scored.
        high: upper end.
        level: share of the resamples inside.
        resamples: how many could be scored.
        dropped: how many could not, for they lacked a class.
    """

    low: float
    high: float
    level: float
    resamples: int
    dropped: int


def auc(labels: ArrayLike, scores: ArrayLike) -> float:
    """Area under the ROC curve: the chance that a positive scores above a negative, ties counting half.

    Args:
        labels: 0 or 1 (or bool), shape (n,).
        scores: larger means more positive, shape (n,).

    Returns:
        The area, or NaN where only one class is there.

    Source: Mann and Whitney 1947, through mid-ranks in O(n log n).
    """
    y, s = _binary(labels), np.asarray(scores, dtype=np.float64)
    positives, negatives = int(y.sum()), int((~y).sum())
    if not positives or not negatives:
        return float("nan")
    _, place, count = np.unique(s, return_inverse=True, return_counts=True)
    rank = (np.cumsum(count) - (count - 1) / 2)[place]
    return float((rank[y].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def bootstrap_interval(
    labels: ArrayLike,
    scores: ArrayLike,
    groups: Sequence[str],
    metric: Metric = auc,
    *,
    n: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Percentile interval of a metric, resampling whole patients with replacement.

    Slides of one patient resemble each other; drawn one by one they would make the interval too narrow.

    Args:
        labels: shape (n_slides,).
        scores: first axis n_slides; passed to `metric` as they are.
        groups: patient of each slide.
        metric: `metric(labels, scores)`; NaN drops the resample, and the number of those is given back.
        n: resamples.
        level: share of the resamples inside.
        seed: decides the draws.

    Source: Field and Welsh, "Bootstrapping clustered data", JRSS B 2007, doi:10.1111/j.1467-9868.2007.00593.x.
    """
    y, s = np.asarray(labels), np.asarray(scores)
    _, member = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    rows = [np.flatnonzero(member == g) for g in range(member.max() + 1)]
    rng = np.random.default_rng(seed)
    values = np.empty(n)
    for i in range(n):
        drawn = np.concatenate([rows[g] for g in rng.integers(len(rows), size=len(rows))])
        values[i] = metric(y[drawn], s[drawn])
    kept = values[np.isfinite(values)]
    if not kept.size:
        return Interval(float("nan"), float("nan"), level, 0, n)
    low, high = np.quantile(kept, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high), level, int(kept.size), int(n - kept.size))


def interval_of_agreement(value: float, k: int, *, level: float = 0.95) -> tuple[float, float]:
    """Interval of a share for which every resample says the same, so that the bootstrap sees no doubt.

    With a share of 1 all of k independent patients (or pairs of patients) were right. Each is so with a probability q,
    and all are with q^k, which is (1 - level) / 2 at the lower end; the upper end is 1. A share of 0 is its mirror.
    Between, where every patient has the same share, it is taken for that of k independent trials.

    Args:
        value: the share, from 0 to 1.
        k: number of independent patients or pairs.
        level: of the interval.

    Returns:
        Both ends; NaN without a patient.

    Source: Clopper and Pearson 1934, doi:10.1093/biomet/26.4.404 (0 and k of k); Wilson 1927,
    doi:10.1080/01621459.1927.10502953 (between).
    """
    if not k or not np.isfinite(value):
        return float("nan"), float("nan")
    tail = (1 - level) / 2
    if value in (0.0, 1.0):
        bound = tail ** (1 / k)
        return (bound, 1.0) if value else (0.0, 1.0 - bound)
    z2 = NormalDist().inv_cdf(1 - tail) ** 2
    half = (z2 * (value * (1 - value) / k + z2 / (4 * k * k))) ** 0.5
    middle, shrink = value + z2 / (2 * k), 1 + z2 / k
    return (middle - half) / shrink, (middle + half) / shrink


def independent_pairs(labels: ArrayLike, groups: Sequence[str]) -> int:
    """Return how many pairs of a positive and a negative share no patient: the smaller class's number of patients."""
    y, patient = _binary(labels), np.asarray(groups, dtype=str)
    return min(len(set(patient[y])), len(set(patient[~y])))


def roc_curve(
    labels: ArrayLike, scores: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """False and true positive rate at every distinct threshold, from "none" (infinite) to "all".

    Returns:
        fpr, tpr, thresholds, each shape (m,); a slide counts as positive when score >= threshold.
    """
    thresholds, true, false = _counts(labels, scores)
    rates = [np.concatenate([[0.0], c / c[-1] if c[-1] else np.full(c.size, np.nan)]) for c in (false, true)]
    return rates[0], rates[1], np.concatenate([[np.inf], thresholds])


def average_precision(labels: ArrayLike, scores: ArrayLike) -> float:
    """Precision averaged over the steps of recall (no interpolation); NaN without positives."""
    _, true, false = _counts(labels, scores)
    if not true.size or not true[-1]:
        return float("nan")
    steps = np.diff(np.concatenate([[0.0], true])) / true[-1]
    return float((steps * true / (true + false)).sum())


def choose_threshold(labels: ArrayLike, scores: ArrayLike) -> float:
    """Return the cut with the highest balanced accuracy; among equals the one nearest to 0.5.

    The candidates lie half way between neighboring scores, so a clear gap is cut in its middle; further 0.5
    itself, all and none. It is for validation data: a threshold chosen on test slides makes the test too kind.

    Returns:
        The threshold (score >= threshold is positive); 0.5 where one class only is there.
    """
    y, s = _binary(labels), np.asarray(scores, dtype=np.float64)
    if y.all() or not y.any():
        return 0.5
    values = np.unique(s)
    cuts = np.concatenate([(values[1:] + values[:-1]) / 2, [0.5, values[0], np.nextafter(values[-1], np.inf)]])
    hits = s[None, :] >= cuts[:, None]
    balanced = (hits[:, y].mean(axis=1) + (~hits[:, ~y]).mean(axis=1)) / 2
    best = np.flatnonzero(balanced >= balanced.max() - 1e-12)
    return float(cuts[best[np.argmin(np.abs(cuts[best] - 0.5))]])


def evaluate(
    labels: ArrayLike,
    probabilities: ArrayLike,
    patients: Sequence[str],
    classes: Sequence[str],
    threshold: float | None = None,
    *,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, Any]:
    """Score predictions of slides.

    Args:
        labels: class number, shape (n,).
        probabilities: shape (n, C), rows summing to 1.
        patients: patient of each slide; intervals resample these.
        classes: class names; in a two-class task the second is the positive one.
        threshold: of the positive class's probability, fixed before; two classes only, by default 0.5.
        resamples: number of bootstrap resamples.
        level: of the intervals.
        seed: of the resampling.

    Returns:
        What JSON can hold; None where a number is not defined (one class only). For more than two classes AUC,
        average precision, sensitivity and specificity are means over the classes, one against the rest. With two
        classes `positive_class` names the one that they, `threshold` and `roc` speak of. `auc_interval_method` and
        `accuracy_interval_method` say in words where the intervals come from.

    Raises:
        MilError: shapes do not fit.
    """
    y, p = np.asarray(labels, dtype=np.int64), np.asarray(probabilities, dtype=np.float64)
    if p.shape != (y.size, len(classes)) or len(patients) != y.size or not y.size:
        raise MilError(
            f"{y.size} labels, probabilities {p.shape}, {len(patients)} patients, {len(classes)} classes do not fit: "
            "wanted one label, patient and row of C probabilities per slide."
        )
    cut = 0.5 if threshold is None else threshold
    predicted = (p[:, 1] >= cut).astype(np.int64) if len(classes) == 2 else p.argmax(axis=1)
    confusion = np.zeros((len(classes), len(classes)), dtype=np.int64)
    np.add.at(confusion, (y, predicted), 1)
    result = {
        "n": int(y.size),
        "n_patients": len(set(patients)),
        "classes": list(classes),
        "n_per_class": {name: int((y == c).sum()) for c, name in enumerate(classes)},
        "threshold": cut if len(classes) == 2 else None,
        **_ranking(y, p, patients, resamples, level, seed),
        **_decisions(confusion),
        **_accuracy_interval(y, predicted, patients, resamples, level, seed),
        "brier": float(((p - np.eye(len(classes))[y]) ** 2).sum(axis=1).mean() / (2 if len(classes) == 2 else 1)),
    }
    if len(classes) == 2:
        result["positive_class"] = classes[1]
    clean: dict[str, Any] = _jsonable(result)
    return clean


def _ranking(
    y: NDArray[np.int64], p: NDArray[np.float64], patients: Sequence[str], n: int, level: float, seed: int
) -> dict[str, Any]:
    """AUC with its interval, average precision and ROC points."""
    columns = [1] if p.shape[1] == 2 else list(range(p.shape[1]))
    present = np.unique(y)
    metric = partial(_mean_auc, present=present)
    value = metric(y, p)
    interval = bootstrap_interval(y, p, patients, metric, n=n, level=level, seed=seed)
    pairs = min(independent_pairs(y == c, patients) for c in present)
    ends, how = _ends(interval, value, pairs, f"{pairs} pair(s) of patients", level)
    curves = {}
    for c in columns:
        fpr, tpr, thresholds = roc_curve(y == c, p[:, c])
        curves[c] = {"fpr": fpr.tolist(), "tpr": tpr.tolist(), "thresholds": [None, *thresholds[1:].tolist()]}
    precisions = [average_precision(y == c, p[:, c]) for c in columns if (y == c).any()]
    return {
        "auc": value,
        "auc_interval": ends,
        "auc_interval_level": level,
        "auc_interval_method": how,
        "average_precision": float(np.mean(precisions)) if precisions else float("nan"),
        "roc": curves[1] if len(columns) == 1 else {str(c): curve for c, curve in curves.items()},
    }


def _decisions(confusion: NDArray[np.int64]) -> dict[str, Any]:
    """What follows from the confusion matrix (row: true class, column: predicted)."""
    total, right = confusion.sum(), np.diag(confusion).astype(float)
    rows, columns = confusion.sum(axis=1), confusion.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        recall = np.where(rows > 0, right / rows, np.nan)
        rest = total - rows
        specificity = np.where(rest > 0, (total - rows - columns + right) / rest, np.nan)
    present = recall[rows > 0]
    binary = confusion.shape[0] == 2
    return {
        "accuracy": float(right.sum() / total),
        "balanced_accuracy": float(present.mean()),
        "sensitivity": float(recall[1]) if binary else float(present.mean()),
        "specificity": float(specificity[1]) if binary else float(specificity[rows > 0].mean()),
        "confusion": confusion.tolist(),
    }


def _accuracy_interval(
    y: NDArray[np.int64], predicted: NDArray[np.int64], patients: Sequence[str], n: int, level: float, seed: int
) -> dict[str, Any]:
    """Interval of the accuracy and its method."""
    interval = bootstrap_interval(y, predicted, patients, _agreement, n=n, level=level, seed=seed)
    k = len(set(patients))
    ends, how = _ends(interval, _agreement(y, predicted), k, f"{k} patient(s)", level)
    return {"accuracy_interval": ends, "accuracy_interval_method": how}


def _mean_auc(y: NDArray[Any], p: NDArray[Any], present: NDArray[np.int64]) -> float:
    """AUC of the positive class, or the mean over the classes of the full sample, one against the rest.

    NaN where one of those classes is missing: a mean over the others would be another figure.
    """
    if p.shape[1] == 2:
        return auc(y == 1, p[:, 1])
    return float(np.mean([auc(y == c, p[:, c]) for c in present]))


def _agreement(y: NDArray[Any], predicted: NDArray[Any]) -> float:
    """Share of equal entries."""
    return float((y == predicted).mean())


def _ends(interval: Interval, value: float, k: int, units: str, level: float) -> tuple[list[float], str]:
    """Both ends of the bootstrap interval, or of `interval_of_agreement` where it has no width; and the method."""
    if not interval.resamples:
        return [interval.low, interval.high], "none: no resample holds every class"
    if interval.low < interval.high:
        how = f"percentile bootstrap over patients, {interval.resamples} resamples"
        dropped = f", {interval.dropped} dropped for lacking a class" if interval.dropped else ""
        return [interval.low, interval.high], how + dropped
    which = "exact (Clopper-Pearson)" if value in (0.0, 1.0) else "Wilson"
    return list(interval_of_agreement(value, k, level=level)), f"all resamples agree: {which} interval of {units}"


def _binary(labels: ArrayLike) -> NDArray[np.bool_]:
    """Labels as bool; anything but two values is an error."""
    y = np.asarray(labels)
    if y.dtype != np.bool_ and not np.isin(y, (0, 1)).all():
        raise MilError(f"labels must be 0 or 1, found {sorted(set(y.tolist()))[:5]}. Compare with one class first.")
    return y.astype(np.bool_)


def _counts(
    labels: ArrayLike, scores: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Distinct scores, falling, with the numbers of true and false positives at or above each."""
    y, s = _binary(labels), np.asarray(scores, dtype=np.float64)
    order = np.argsort(-s, kind="stable")
    last = np.flatnonzero(np.diff(s[order], append=-np.inf))  # the last of each run of equal scores
    true = np.cumsum(y[order])[last].astype(np.float64)
    return s[order][last], true, last + 1.0 - true


def _jsonable(value: Any) -> Any:
    """Replace NaN and infinity, which JSON does not know, by None."""
    if isinstance(value, dict):
        return {key: _jsonable(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_jsonable(entry) for entry in value]
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value
