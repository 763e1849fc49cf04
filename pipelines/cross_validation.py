"""k models, each for a fold of its own: every slide is answered by a model that never saw its patient."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import mil
from mil.folds import k_folds
from mil.given_splits import from_clam, from_columns, from_stamp

from .config import LearnSettings
from .errors import UsageError
from .feature_sets import FeatureSet
from .files import json_bytes, read_csv, sha256_json
from .jobfolder import JobFolder
from .labels import Labels
from .learn import COHORT, masked, train_sides, usable, with_validation
from .predictions import (
    ENSEMBLE,
    FOLDS,
    answer_of,
    answers_of,
    case_table,
    digest_of,
    keep_cells,
    keep_labels,
    said_at,
    slide_table,
    slides_of_cases,
)
from .progress import Progress
from .questions import ask
from .records import current, finish, forget
from .sides import Sides
from .teachers import teaching


@dataclass(frozen=True)
class Fold:
    """One fold: its name, e.g. `r0f2`, and its sides."""

    name: str
    sides: Sides


def deal(features: FeatureSet, labels: Labels, settings: LearnSettings, given: Path | None) -> list[Fold]:
    """Deal the labelled slides into folds, or read them from another tool's split.

    Raises:
        mil.TrainingDataError: too few patients, a patient on two sides, or a split that names no slide.
        UsageError: the split is of no known format.
    """
    question = ask(labels, settings.task)
    slides, patients = usable(features, labels)
    if given is not None:
        splits = read_splits(given, slides, patients)
        for split in splits:
            mil.check_split(split, patients)
        y = question.strata(slides, patients, 2)
        splits = [with_validation(split, y, patients, settings) for split in splits]
        return [
            Fold(f"f{i}", Sides.of(slides, patients, split, question, labels, settings))
            for i, split in enumerate(splits)
        ]
    sites = [labels.cell(slide, settings.site) for slide in slides] if settings.site else None
    splits = k_folds(
        patients,
        question.strata(slides, patients, settings.folds),
        k=settings.folds,
        repeats=settings.repeats,
        validation=settings.validation,
        sites=sites,
        seed=settings.seed,
        names=question.names,
    )
    names = [f"r{i // settings.folds}f{i % settings.folds}" for i in range(len(splits))]
    return [
        Fold(name, Sides.of(slides, patients, split, question, labels, settings))
        for name, split in zip(names, splits, strict=True)
    ]


def read_splits(path: Path, slides: Sequence[str], patients: Sequence[str]) -> list[mil.Split]:
    """Read splits by what the file, or folder of files, looks like.

    Raises:
        UsageError: there is nothing of the kind.
    """
    if path.is_dir():
        files = sorted(
            (f for f in path.glob("splits_*.csv") if f.stem.removeprefix("splits_").isdigit()),
            key=lambda f: int(f.stem.removeprefix("splits_")),
        )
        if not files:
            raise UsageError(f"{path}: no splits_0.csv, splits_1.csv … (CLAM) in this folder.")
        return [from_clam(read_csv(file), slides, patients) for file in files]
    if not path.is_file():
        raise UsageError(f"{path}: no such file. Give a table, a splits.json, or a folder of CLAM's splits_<k>.csv.")
    if path.suffix == ".json":
        return from_stamp(path.read_text(encoding="utf-8"), slides, patients)
    rows = read_csv(path)
    clam = bool(rows) and {"train", "val", "test"} <= set(rows[0])
    return [from_clam(rows, slides, patients)] if clam else from_columns(rows, slides, patients)


def cross_validate(
    job: JobFolder,
    name: str,
    features: FeatureSet,
    folds: Sequence[Fold],
    labels: Labels,
    settings: LearnSettings,
    progress: Progress,
    *,
    force: bool = False,
) -> bool:
    """Train a model per fold, and write what each says of its test slides as `folds.csv` of the predictions of `name`.

    The models are `<name>_<fold>`; `<name>` itself names them all, and predicts other slides by their mean.

    Returns:
        Whether anything was done.
    """
    taught_by = [teaching(job, settings, features)(fold.sides) for fold in folds]
    fresh = [
        train_sides(
            job, f"{name}_{fold.name}", features, fold.sides, settings, progress, teachers=teachers, force=force
        )
        for fold, teachers in zip(folds, taught_by, strict=True)
    ]
    members = [f"{name}_{fold.name}" for fold in folds]
    digests = {member: digest_of(job.model(member)) for member in members}
    parts = {"members": sha256_json(digests), "labels": sha256_json(sorted(labels.label.items()))}
    folder, table = job.model(name), job.predictions(name) / FOLDS
    wanted = (folder / ENSEMBLE, folder / COHORT, table, table.with_name("fold_cases.csv"))
    if not any(fresh) and not force and all(current(job, path, parts) for path in wanted):
        return False
    rows: list[dict[str, Any]] = []
    said: dict[str, list[NDArray[np.float64]]] = {}
    for fold, member in zip(folds, members, strict=True):
        model, mine = mil.load_model(job.model(member)), len(rows)
        rows += _rows(fold, model, features, labels)
        if model.config.get("per_patient"):
            for case, slides in slides_of_cases(rows[mine:]).items():
                bags = [features.bag(slide) for slide in slides]
                said.setdefault(case, []).append(answer_of(model, bags, fold.sides.clinical))
    together = {case: np.mean(answers, axis=0) for case, answers in said.items()}
    for path in wanted:
        forget(job, path)
    finish(job, folder / ENSEMBLE, json_bytes({"format": "slidemil-ensemble", "version": 1, "members": members}), parts)
    finish(job, folder / COHORT, json_bytes(_cohort(folds)), parts)
    task = mil.load_model(job.model(members[0])).task
    finish(job, table, slide_table(task, rows, ("threshold",)), parts)
    finish(job, table.with_name("fold_cases.csv"), case_table(task, rows, None, together), parts)
    keep_cells(job, name, labels.clinical)
    keep_labels(job, name, task, labels.label)
    return True


def _rows(fold: Fold, model: mil.TrainedModel, features: FeatureSet, labels: Labels) -> list[dict[str, Any]]:
    """What a fold's model says of the fold's test slides."""
    rows = []
    for row in fold.sides.split.test:
        slide = fold.sides.slides[row]
        answer = answer_of(model, [features.bag(slide)], fold.sides.clinical)
        rows.append(
            {
                "slide_id": slide,
                "case_id": fold.sides.patients[row],
                "label": labels.label[slide],
                "pred": said_at(model.task, answer, model.threshold),
                **answers_of(model.task, answer),
                "n_tiles": features.n_tiles(slide),
                "head_id": model.config["head"]["name"],
                "encoder_id": features.passport.get("id", ""),
                "fold": fold.name,
                "split": "test",
                "warning": "",
                "threshold": model.threshold,
            }
        )
    return rows


def _cohort(folds: Sequence[Fold]) -> Mapping[str, Mapping[str, str]]:
    """Together the members have seen every slide that is on a side of some fold."""
    slides: dict[str, str] = {}
    cases: dict[str, str] = {}
    for fold in folds:
        sides = fold.sides
        for row in np.concatenate([sides.split.train, sides.split.validation]):
            slides[masked(sides.slides[row])] = cases[masked(sides.patients[row])] = "train"
    return {"slides": dict(sorted(slides.items())), "cases": dict(sorted(cases.items()))}
