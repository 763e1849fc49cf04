"""Curves of an evaluation, as data and as a picture."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mil.metrics import roc_curve
from mil.tasks import Classification, MultiLabel, MultiTask, Ordinal, Regression, Survival, Task

from .files import csv_bytes

_BINS = 8
Points = list[dict[str, Any]]


def points_of(task: Task, target: NDArray[np.float64], answer: NDArray[np.float64], name: str = "") -> Points:
    """Return the curves that show a task: rows of `curve`, `of`, `x`, `y`.

    Of classes and labels `roc` (x false, y true positive rate), `precision_recall` (x recall, y precision) and
    `calibration` (x mean chance, y share, in bins of equally many); of survival `kaplan_meier` of the halves of higher
    and lower risk (x time); of a number `truth` (x) against the answer (y).
    """
    if isinstance(task, MultiTask):
        mine, parts = task.answers(answer), task.parts(None, target)
        return [row for key, (part, _, y) in parts.items() for row in points_of(part, y, mine[key][1], key)]
    known = task.known(target)
    y, p = target[known], answer[known]
    if isinstance(task, Survival):
        return _survival(y, p, name)
    if isinstance(task, Regression):
        return [
            {"curve": "truth", "of": name or task.name, "x": a, "y": b} for a, b in zip(y[:, 0], p[:, 0], strict=True)
        ]
    if isinstance(task, MultiLabel):
        there = [(label, ~np.isnan(y[:, k])) for k, label in enumerate(task.labels)]
        return [r for k, (label, ok) in enumerate(there) for r in _ranking(y[ok, k] == 1, p[ok, k], label)]
    if isinstance(task, Ordinal) or (isinstance(task, Classification) and len(task.classes) > 2):
        return [r for c, label in enumerate(task.classes) for r in _ranking(y[:, 0] == c, p[:, c], label)]
    assert isinstance(task, Classification)
    return _ranking(y[:, 0] == 1, p[:, 1], task.classes[1])


def _ranking(y: NDArray[np.bool_], p: NDArray[np.float64], of: str) -> Points:
    """ROC, precision and recall, calibration of one class."""
    if y.all() or not y.any():
        return []
    fpr, tpr, cuts = roc_curve(y, p)
    rows = [{"curve": "roc", "of": of, "x": a, "y": b} for a, b in zip(fpr, tpr, strict=True)]
    for cut in cuts[1:]:
        said = p >= cut
        right = float((said & y).sum())
        rows.append({"curve": "precision_recall", "of": of, "x": right / y.sum(), "y": right / said.sum()})
    bins = np.array_split(np.argsort(p, kind="stable"), min(_BINS, max(1, len(p) // 5)))
    return rows + [{"curve": "calibration", "of": of, "x": p[mine].mean(), "y": y[mine].mean()} for mine in bins]


def _survival(y: NDArray[np.float64], p: NDArray[np.float64], name: str) -> Points:
    """Kaplan-Meier estimates of the halves of higher and lower risk."""
    high = p[:, 0] > np.median(p[:, 0])
    rows: Points = []
    for half, mine in (("higher risk", high), ("lower risk", ~high)):
        time, event = y[mine, 0], y[mine, 1] == 1
        alive = 1.0
        rows.append({"curve": "kaplan_meier", "of": f"{name} {half}".strip(), "x": 0.0, "y": 1.0})
        for t in np.unique(time[event]):
            alive *= 1 - float((event & (time == t)).sum()) / float((time >= t).sum())
            rows.append({"curve": "kaplan_meier", "of": f"{name} {half}".strip(), "x": float(t), "y": alive})
    return rows


def as_csv(points: Points) -> bytes:
    """Return the points as a table."""
    return csv_bytes(["curve", "of", "x", "y"], points)


_LOOK = {
    "roc": ("ROC", "1 - specificity", "sensitivity"),
    "precision_recall": ("Precision and recall", "recall", "precision"),
    "calibration": ("Calibration", "mean predicted chance", "share of positives"),
    "kaplan_meier": ("Kaplan-Meier", "time", "share without event"),
    "truth": ("Answer against truth", "truth", "answer"),
}


def as_png(points: Points) -> bytes:
    """Draw every kind of curve in a panel of its own; the same points give the same bytes."""
    from matplotlib.figure import Figure

    kinds = [kind for kind in _LOOK if any(row["curve"] == kind for row in points)]
    figure = Figure(figsize=(4.2 * max(len(kinds), 1), 4.0), layout="constrained")
    for i, kind in enumerate(kinds):
        _panel(figure.add_subplot(1, len(kinds), i + 1), kind, [row for row in points if row["curve"] == kind])
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=120, metadata={"Software": None})
    return out.getvalue()


def _panel(axes: Any, kind: str, rows: Sequence[dict[str, Any]]) -> None:
    title, across, up = _LOOK[kind]
    names = list(dict.fromkeys(row["of"] for row in rows))
    for name in names:
        x, y = (np.array([row[key] for row in rows if row["of"] == name]) for key in ("x", "y"))
        if kind == "truth":
            axes.plot(x, y, ".", label=name)
        else:
            steps = {"kaplan_meier": "steps-post", "precision_recall": "steps-pre"}.get(kind, "default")
            axes.plot(x, y, marker="o" if kind == "calibration" else "", drawstyle=steps, label=name)
    if kind in ("roc", "calibration"):
        axes.plot([0, 1], [0, 1], color="0.7", linestyle=":", zorder=0)
    if kind == "truth":
        ends = [min(min(r["x"], r["y"]) for r in rows), max(max(r["x"], r["y"]) for r in rows)]
        axes.plot(ends, ends, color="0.7", linestyle=":", zorder=0)
    elif kind != "kaplan_meier":
        axes.set(xlim=(-0.02, 1.02))
    if kind != "truth":
        axes.set(ylim=(-0.02, 1.02))
    axes.set(title=title, xlabel=across, ylabel=up)
    if len(names) > 1 or kind == "kaplan_meier":
        axes.legend(fontsize=8, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
