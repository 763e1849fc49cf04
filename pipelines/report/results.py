"""Predictions of a model → its figures with intervals, per fold and subgroup, its curves, and what `evaluate` found.

Figures are worked out here, from the tables of the job, as `slidemil evaluate` works them out: the page needs no run of
it. What only such a run can tell (leaks, a comparison, subgroups of a label table) is taken from its `evaluation.json`
where that speaks of the same predictions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipelines.config import ARTIFACTS

from .bands import Band, bands_of
from .read import JobFacts, Model, Row

_MOST_VALUES = 8
"""A column with more different values is none to group by."""
_COLUMNS = ("site", "center", "centre", "lab", "scanner", "batch", "cohort", "stain")
"""Columns of a manifest that make subgroups; others may tell of people."""
_SAME = 1e-6
RESAMPLES = 1000
"""Of the bootstrap: as many as `slidemil evaluate` draws."""

Said = tuple[str, Any, Any, str]
"""Name, value, interval and its method."""


@dataclass(frozen=True)
class Part:
    """Figures of one question to the slides; of a model of several targets there is one for each."""

    name: str
    n: int
    n_patients: int
    figures: list[Said]
    patients: list[Said]
    n_whole_patients: int
    folds: list[tuple[str, Any, Any, list[tuple[str, Any]]]]
    """Figure, mean, standard deviation, and (fold, value)."""
    groups: list[tuple[str, str, int, int, list[Said]]]
    """Column, value, slides, patients, figures."""


@dataclass(frozen=True)
class Results:
    """What is known of how well a model does.

    Attributes:
        which: slides the figures are of, in words.
        rows: of the prediction table that the figures are of.
        parts: the figures.
        points: of the curves, see `pipelines.curves`.
        bands: (curve, of) → where that curve lies in 95 % of the resamples of patients.
        confusion: (true class, predicted class) → slides; empty where the answer is no class.
        notes: lines of comparison, honesty and leakage.
        stale: `evaluation.json` speaks of other predictions.
    """

    which: str
    rows: list[Row]
    parts: list[Part]
    points: list[dict[str, Any]]
    bands: dict[tuple[str, str], Band]
    confusion: dict[tuple[str, str], int]
    notes: list[str] = field(default_factory=list)
    stale: bool = False


def results_of(model: Model, facts: JobFacts) -> Results | None:
    """Judge a model by its held-out slides; None where there are none, or its tables do not fit its configuration."""
    if not model.predictions or not model.config:
        return None
    import mil
    from pipelines import evaluating
    from pipelines.errors import UsageError

    try:
        rows, which = evaluating.held_out_in(model.folder, model.name)
    except UsageError:
        return None  # nothing was held out
    except (KeyError, ValueError) as error:
        facts.problems.append(f"{model.table} of {model.name}: no figures ({error})")
        return None
    try:
        return _judged(model, rows, which, facts)
    except (mil.MilError, UsageError, KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        facts.problems.append(f"predictions of {model.name}: no figures ({error})")
        return None


def _judged(model: Model, rows: list[Row], which: str, facts: JobFacts) -> Results:
    from mil.evaluation import evaluate_task
    from mil.model import task_of
    from pipelines import curves, evaluating

    task = task_of(model.config)
    target, answer = evaluating.targets(task, rows), evaluating.answers(task, rows)
    patients, folds = [row["case_id"] for row in rows], [row.get("fold") or "" for row in rows]
    found = evaluate_task(
        task,
        target,
        answer,
        patients,
        threshold=evaluating.cuts(rows, model.threshold),
        folds=folds if any(folds) else None,
        groups=_groups(rows, facts),
        resamples=RESAMPLES,
    )
    if model.config.get("per_patient"):
        evaluating.judge_as_one(found, model.folder, task, rows, model.threshold, RESAMPLES)
    notes, agrees = _from_evaluation(model, found, facts)
    classes = len(task.columns) > 1 and task.kind in ("classification", "ordinal")
    return Results(
        which,
        rows,
        [_part(name, one) for name, one in _parts(found).items()],
        curves.points_of(task, target, answer),
        bands_of(task, target, answer, patients),
        dict(Counter((row["label"], row["pred"]) for row in rows)) if classes else {},
        notes,
        bool(model.evaluation) and not agrees,
    )


def _from_evaluation(model: Model, found: dict[str, Any], facts: JobFacts) -> tuple[list[str], bool]:
    """Add subgroups of `evaluation.json` to the figures; return its other lines, and whether it speaks of the same."""
    from pipelines.evaluating import spoken_more

    kept = model.evaluation.get("score")
    if not isinstance(kept, Mapping) or not _same(found, kept):
        return [], False
    try:
        for one in _parts(kept).values():
            _part("", one)  # what is damaged shows here, before anything is taken over
        notes = spoken_more(model.evaluation)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        facts.problems.append(f"evaluation.json of {model.name}: could not be read ({error!r})")
        return [], True
    _add_groups(found, kept)
    return notes, True


def _groups(rows: Sequence[Row], facts: JobFacts) -> dict[str, list[str]]:
    """Column → value of each row, for what the job knows of its slides; columns that do not part them are left out."""
    manifest = {row.get("slide_id", ""): row for row in facts.manifest}
    slides = {row.get("slide_id", ""): row for row in facts.slides}
    names = [row["slide_id"] for row in rows]
    values: dict[str, list[str]] = {
        column: [manifest.get(name, {}).get(column) or "(empty)" for name in names]
        for column in sorted({column for row in facts.manifest for column in row})
        if column.lower() in _COLUMNS
    }
    values["scan, µm/px"] = [_rounded(slides.get(name, {}).get("mpp_x")) for name in names]
    values["file type"] = [_suffix(manifest.get(name, {}).get("path", "")) for name in names]
    values["flagged tissue"] = [_flagged(slides.get(name, {})) for name in names]
    return {column: mine for column, mine in values.items() if 2 <= len(set(mine)) <= _MOST_VALUES}


def _rounded(text: str | None) -> str:
    try:
        return f"{float(text or 'nan'):.2f}"
    except ValueError:
        return "nan"


def _suffix(path: str) -> str:
    name = path.rsplit("/", 1)[-1]
    return name.rsplit(".", 1)[-1].lower() if "." in name else "(none)"


def _flagged(row: Row) -> str:
    shares = [row.get(f"{name}_share") or "0" for name in ARTIFACTS]
    try:
        return "1 % or more" if max(float(share) for share in shares) >= 0.01 else "less than 1 %"
    except ValueError:
        return "less than 1 %"


def _parts(found: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    return {"": found} if "slides" in found else dict(found)


def _same(found: Mapping[str, Any], kept: Mapping[str, Any]) -> bool:
    """Tell whether a stored evaluation says of the same predictions what is found now."""
    mine, theirs = _parts(found), _parts(kept)
    try:
        return mine.keys() == theirs.keys() and all(
            part["n"] == theirs[name]["n"]
            and all(_close(said["value"], theirs[name]["slides"][f]["value"]) for f, said in part["slides"].items())
            for name, part in mine.items()
        )
    except (KeyError, TypeError):
        return False


def _close(one: Any, other: Any) -> bool:
    return one is other if one is None or other is None else abs(one - other) <= _SAME


def _add_groups(found: dict[str, Any], kept: Mapping[str, Any]) -> None:
    """Add the subgroups of a label table, which only the run of `evaluate` knew."""
    theirs = _parts(kept)
    for name, part in _parts(found).items():
        groups = theirs[name].get("groups")
        if isinstance(groups, Mapping) and "groups" in part:
            part["groups"].update(groups)


def _part(name: str, found: Mapping[str, Any]) -> Part:
    patients = found.get("patients", {})
    each = found.get("folds", {})
    return Part(
        name,
        found["n"],
        found["n_patients"],
        _said(found["slides"]),
        _said(patients.get("figures", {})),
        patients.get("n", 0),
        [(_called(figure), one["mean"], one["sd"], list(one["each"].items())) for figure, one in each.items()],
        [
            (column, value, one["n"], one["n_patients"], _said(one["figures"]))
            for column, values in found.get("groups", {}).items()
            for value, one in values.items()
        ],
    )


def _said(figures: Mapping[str, Any]) -> list[Said]:
    return [(_called(n), one["value"], one["interval"], one.get("method", "")) for n, one in figures.items()]


def _called(figure: str) -> str:
    """Return the name of a figure as people write it."""
    known = {"auc": "AUC", "f1": "F1", "brier": "Brier score", "mae": "MAE", "rmse": "RMSE", "r2": "R²", "c": "C"}
    return " ".join(known.get(word, word) for word in figure.split("_"))
