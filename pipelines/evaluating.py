"""Prediction tables → figures with intervals, the honesty table, and whether test slides are known from training."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mil.evaluation import compare_models, evaluate_task
from mil.honesty import four_ways
from mil.leakage import signature, suspicions
from mil.tasks import Classification, MultiLabel, MultiTask, Ordinal, Survival, Task

from .errors import NothingMatchedError, UsageError
from .feature_sets import FeatureSet
from .files import read_csv
from .jobfolder import JobFolder
from .labels import Labels, is_label
from .learn import WATCHED
from .predictions import AS_ONE, FOLDS, NamedModel
from .questions import flag, number

_NAN = float("nan")


def held_out(job: JobFolder, named: NamedModel, labels: Labels | None = None) -> tuple[list[dict[str, str]], str]:
    """Return the rows that say how good a model is, and in words which these are.

    Those of a cross-validation where there was one; else the test slides; else labelled slides that the model has not
    seen. A table of labels speaks for the slides that were predicted without one.

    Raises:
        UsageError: there is no such row.
    """
    told = {} if labels is None else labels.label
    strange = strangers(named.model.task, told)
    said = {slide: (told[slide], labels.case[slide]) for slide in told if labels and slide not in strange}
    return held_out_in(job.predictions(named.name), named.name, said)


def held_out_in(
    folder: Path, name: str, said: Mapping[str, tuple[str, str]] | None = None
) -> tuple[list[dict[str, str]], str]:
    """Return the same from the folder of a model's prediction tables.

    Args:
        folder: of the tables.
        name: of the model.
        said: slide → label and case, for slides that were predicted without a label.

    Raises:
        UsageError: there is no such row.
    """
    if (folder / FOLDS).is_file():
        rows = [row for row in read_csv(folder / FOLDS) if row["pred"]]
        return rows, f"every slide by the model of its fold ({len({row['fold'] for row in rows})} folds)"
    rows = read_csv(folder / "slides.csv") if (folder / "slides.csv").is_file() else []
    if not rows:
        raise UsageError(f"{folder}: {name} has predicted nothing here. Run `slidemil predict` first.")
    rows = [_labelled(row, said or {}) for row in rows]
    rows = [row for row in rows if row["pred"] and is_label(row["label"])]
    test = [row for row in rows if row["split"] == "test"]
    if test:
        return test, "slides held out from training"
    new = [row for row in rows if not row["split"] and not row["warning"]]
    if new:
        return new, "labelled slides that the model has not seen"
    raise UsageError(
        f"{folder}: no labelled slide that {name} was not made with. Hold some out (`slidemil train`), or "
        "predict a job of other slides, and give their labels with --labels (and --target)."
    )


def _labelled(row: dict[str, str], said: Mapping[str, tuple[str, str]]) -> dict[str, str]:
    """The row with the label and case that are told elsewhere, where it has no label itself."""
    if is_label(row["label"]) or row["slide_id"] not in said:
        return row
    label, case = said[row["slide_id"]]
    return row | {"label": label, "case_id": case}


def strangers(task: Task, labels: Mapping[str, str]) -> dict[str, str]:
    """Slide → label of those of which a task understands nothing."""
    return {slide: label for slide, label in labels.items() if not _understood(task, label, slide)}


def _understood(task: Task, label: str, slide: str) -> bool:
    try:
        return any(value == value for value in _target(task, cells_of(task, label), slide))
    except (UsageError, IndexError, ValueError):
        return False


def judge(
    job: JobFolder,
    named: NamedModel,
    rows: Sequence[Mapping[str, str]],
    *,
    against: tuple[NamedModel, Sequence[Mapping[str, str]]] | None = None,
    groups: Mapping[str, Mapping[str, str]] | None = None,
    features: FeatureSet | None = None,
) -> dict[str, Any]:
    """Score the rows of a model.

    Args:
        job: the job.
        named: the model.
        rows: from `held_out`.
        against: another model and its rows: the two are compared on the slides that both have.
        groups: column → slide → value.
        features: of the slides, to look for test slides that are known from training; None leaves that out.
    """
    task, threshold = named.model.task, cuts(rows, named.threshold)
    target, answer = targets(task, rows), answers(task, rows)
    cases = [row["case_id"] for row in rows]
    folds = [row["fold"] for row in rows]
    by = {c: [values.get(row["slide_id"], "") or "(empty)" for row in rows] for c, values in (groups or {}).items()}
    score = evaluate_task(
        task, target, answer, cases, threshold=threshold, folds=folds if any(folds) else None, groups=by
    )
    if named.model.config.get("per_patient"):
        judge_as_one(score, job.predictions(named.name), task, rows, named.threshold)
    result: dict[str, Any] = {"model": named.name, "task": task.kind, "score": score}
    if against is not None:
        result["against"] = compared(named, rows, *against)
    honesty = honesty_of(job, named, rows)
    if honesty is not None:
        result["honesty"] = honesty
    if features is not None:
        result["leakage"] = leakage(job, named, rows, features)
    return result


def judge_as_one(
    score: dict[str, Any],
    folder: Path,
    task: Task,
    rows: Sequence[Mapping[str, str]],
    threshold: float | None,
    resamples: int = 1000,
) -> None:
    """Put the figures of patients whose slides were one bag in the place of those of the slides' mean answers.

    Args:
        score: of `evaluate_task`.
        folder: of the prediction tables.
        task: what was asked.
        rows: of the slides that are judged.
        threshold: where a fold has none of its own.
        resamples: of the bootstrap.
    """
    table = folder / ("fold_cases.csv" if any(row["fold"] for row in rows) else "cases.csv")
    said = {row["case_id"]: row for row in (read_csv(table) if table.is_file() else []) if row["rule"] == AS_ONE}
    mine: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        mine.setdefault(row["case_id"], []).append(i)
    alike = [case for case, some in mine.items() if case in said and len({rows[i]["label"] for i in some}) == 1]
    if not alike:
        return
    each = cuts(rows, threshold)
    found = evaluate_task(
        task,
        targets(task, [rows[mine[case][0]] for case in alike]),
        answers(task, [said[case] for case in alike]),
        alike,
        threshold=None if each is None else np.array([each[mine[case]].mean() for case in alike]),
        resamples=resamples,
    )
    multi = isinstance(task, MultiTask)
    for name, part in found.items() if multi else [("", found)]:
        whole = score[name] if multi else score
        whole["patients"] = {"rule": AS_ONE, "n": part["n"], "torn": len(mine) - len(alike), "figures": part["slides"]}


def targets(task: Task, rows: Sequence[Mapping[str, str]]) -> NDArray[np.float64]:
    """Targets (n, W) from the column `label`, where several columns of the user's stand joined by ` | `."""
    return np.array([_target(task, cells_of(task, row["label"]), row["slide_id"]) for row in rows], np.float64)


def cells_of(task: Task, label: str) -> list[str]:
    """Cells of the columns that a label stands for; of one column it is the cell, whatever it says."""
    return [label] if task.target_width() == 1 else label.split(" | ")


def _target(task: Task, cells: Sequence[str], slide: str) -> list[float]:
    if isinstance(task, MultiTask):
        values: list[float] = []
        for part in task.tasks.values():
            values += _target(part, cells[len(values) : len(values) + part.target_width()], slide)
        return values
    if isinstance(task, (Classification, Ordinal)):
        return [float(task.classes.index(cells[0])) if cells[0] in task.classes else _NAN]
    if isinstance(task, MultiLabel):
        return [flag(cell, slide, name) for cell, name in zip(cells, task.labels, strict=True)]
    if isinstance(task, Survival):
        return [number(cells[0], slide, "time"), flag(cells[1], slide, "event")]
    return [number(cells[0], slide, "label")]


def answers(task: Task, rows: Sequence[Mapping[str, str]]) -> NDArray[np.float64]:
    """Answers (n, P)."""
    return np.array([[float(row[name]) for name in task.columns] for row in rows], np.float64)


def cuts(rows: Sequence[Mapping[str, str]], threshold: float | None) -> NDArray[np.float64] | None:
    """Threshold of each row's own model, (n,), where every fold had one, else the one for all; None without."""
    if threshold is None:
        return None
    own = [row.get("threshold") or "" for row in rows]
    return np.array([float(cell) for cell in own]) if all(own) else np.full(len(own), threshold)


def compared(
    named: NamedModel, rows: Sequence[Mapping[str, str]], other: NamedModel, others: Sequence[Mapping[str, str]]
) -> dict[str, Any]:
    """Differences of two models on the slides that both were not made with.

    Raises:
        UsageError: different tasks, or no slide in common.
    """
    if named.model.task.columns != other.model.task.columns:
        raise UsageError(f"{named.name} and {other.name} answer different questions: nothing to compare.")
    theirs = {(row["slide_id"], row["fold"]): row for row in others} | {(row["slide_id"], ""): row for row in others}
    pairs = [(row, theirs.get((row["slide_id"], row["fold"])) or theirs.get((row["slide_id"], ""))) for row in rows]
    both = [(mine, their) for mine, their in pairs if their is not None]
    if not both:
        raise UsageError(f"{named.name} and {other.name} have no held-out slide in common.")
    mine, their = [m for m, _ in both], [t for _, t in both]
    task = named.model.task
    if isinstance(task, MultiTask):
        raise UsageError("models of several targets are compared one target at a time: train them on one.")
    found = compare_models(
        task,
        targets(task, mine),
        answers(task, mine),
        answers(task, their),
        [row["case_id"] for row in mine],
        thresholds=(cuts(mine, named.threshold), cuts(their, other.threshold)),
    )
    return {"model": other.name, **found}


def honesty_of(job: JobFolder, named: NamedModel, rows: Sequence[Mapping[str, str]]) -> dict[str, Any] | None:
    """The same training scored four ways; None where its epochs were not watched, or there are not two classes."""
    path, task = job.predictions(named.name) / WATCHED, named.model.task
    if not path.is_file() or not isinstance(task, Classification) or len(task.classes) != 2:
        return None
    label = {row["slide_id"]: row["label"] for row in rows}
    table = [row for row in read_csv(path) if row["slide_id"] in label]
    slides = sorted({row["slide_id"] for row in table})
    last = max(int(row["epoch"]) for row in table)
    place = {slide: i for i, slide in enumerate(slides)}
    by_epoch = np.full((last, len(slides)), _NAN)
    for row in table:
        by_epoch[int(row["epoch"]) - 1, place[row["slide_id"]]] = float(row[task.columns[1]])
    y = [task.classes.index(label[slide]) for slide in slides]
    best = int(named.model.config["training"]["best_epoch"]) - 1
    ways = four_ways(y, by_epoch, best, 0.5 if named.threshold is None else named.threshold)
    return {"n": len(slides), "epochs": last, "accuracy": asdict(ways)}


def leakage(
    job: JobFolder, named: NamedModel, rows: Sequence[Mapping[str, str]], features: FeatureSet
) -> dict[str, Any]:
    """Patients on two sides, and slides of different sides that may be one."""
    table = job.predictions(named.name) / "slides.csv"
    everyone = rows if any(row["fold"] for row in rows) or not table.is_file() else read_csv(table)
    side = {row["slide_id"]: row["fold"].split("f")[-1] if row["fold"] else row["split"] for row in everyone}
    side = {slide: "val/train" if at in ("train", "val") else at for slide, at in side.items() if slide in features}
    cases: dict[str, set[str]] = {}
    for row in everyone:
        if side.get(row["slide_id"]):
            cases.setdefault(row["case_id"], set()).add(side[row["slide_id"]])
    names = [name for name in sorted(side) if side[name] and features.n_tiles(name)]
    found = suspicions(names, [side[n] for n in names], [signature(features.bag(n)) for n in names]) if names else []
    return {
        "slides": len(names),
        "patients_on_two_sides": sorted(case for case, sides in cases.items() if len(sides) > 1),
        "suspicions": [asdict(one) for one in found],
    }


def groups_of(labels: Labels, columns: Sequence[str]) -> dict[str, dict[str, str]]:
    """Column → slide → value."""
    return {column: {slide: labels.cell(slide, column) for slide in labels.label} for column in columns}


def spoken(found: Mapping[str, Any], which: str) -> list[str]:
    """Say the figures in lines."""
    parts = {"": found["score"]} if "slides" in found["score"] else found["score"]
    lines = []
    for name, part in parts.items():
        lines.append(f"{name + ': ' if name else ''}{part['n']} slides of {part['n_patients']} patients, {which}")
        for figure, said in part["slides"].items():
            low, high = said["interval"]
            text = f"  {figure.replace('_', ' ')} {_shown(said['value'])} ({_shown(low)} to {_shown(high)})"
            fold = part.get("folds", {}).get(figure)
            lines.append(text + (f"; folds {_shown(fold['mean'])} ± {_shown(fold['sd'])}" if fold else ""))
        whole = part.get("patients", {})
        if whole.get("rule") == AS_ONE:
            figure, said = next(iter(whole["figures"].items()))
            low, high = said["interval"]
            text = f"{figure.replace('_', ' ')} {_shown(said['value'])} ({_shown(low)} to {_shown(high)})"
            lines.append(f"  with all slides of a patient as one bag: {text}, {whole['n']} patients")
    for column, values in next(iter(parts.values())).get("groups", {}).items():
        for value, group in values.items():
            figure, said = next(iter(group["figures"].items()))
            lines.append(f"  {column} {value}: {figure} {_shown(said['value'])}, {group['n']} slides")
    return lines + spoken_more(found)


def spoken_more(found: Mapping[str, Any]) -> list[str]:
    """Say comparison, honesty and leakage in lines."""
    lines = []
    if "against" in found:
        other = found["against"]
        figure, said = next(iter(other["figures"].items()))
        low, high = said["interval"]
        lines.append(
            f"against {other['model']}: {figure} {_shown(said['difference'])} higher "
            f"({_shown(low)} to {_shown(high)}), p {_shown(said['p_bootstrap'])} (bootstrap over patients)"
        )
    if "honesty" in found:
        ways = found["honesty"]["accuracy"]
        lines.append(
            f"accuracy of this training: {ways['honest']:.3f} honest; {ways['stopped']:.3f} had it been stopped on the "
            f"test slides, {ways['best_epoch']:.3f} at their best epoch, {ways['best_threshold']:.3f} with their best "
            "threshold, too: only the first is evidence"
        )
    leak = found.get("leakage")
    if leak is not None:
        torn, alike = leak["patients_on_two_sides"], leak["suspicions"]
        lines += [f"LEAK: patient {case} is on two sides" for case in torn[:5]]
        lines += [
            f"LEAK? {one['first']} and {one['second']} are on different sides and share {one['shared']:.0%} of their "
            f"tiles (distance {one['distance']:.2g} of the usual)"
            for one in alike[:10]
        ]
        if not torn and not alike:
            lines.append(f"no patient and no copy of a slide is on two sides ({leak['slides']} slides looked through)")
    return lines


def _shown(value: float | None) -> str:
    return "not defined" if value is None else f"{value:.3f}"


def out_paths(job: JobFolder, name: str, *, selected: bool = False) -> dict[str, Path]:
    """Where an evaluation goes; one of selected slides never takes the place of that of all."""
    part = "_selected" if selected else ""
    files = {"json": f"evaluation{part}.json", "csv": f"curves{part}.csv", "png": f"curves{part}.png"}
    return {kind: job.predictions(name) / file for kind, file in files.items()}


def among(rows: Sequence[dict[str, str]], wanted: Collection[str], select: str) -> list[dict[str, str]]:
    """Return the rows of selected slides.

    Raises:
        NothingMatchedError: none of them is selected.
    """
    found = [row for row in rows if row["slide_id"] in wanted]
    if not found:
        raise NothingMatchedError(f"--select {select}: it takes none of the {len(rows)} slides that are held out.")
    return found
