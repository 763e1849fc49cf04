"""Features and labels → a trained head: the split by patient, the training, the score on held-out patients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import mil

from .config import LearnSettings
from .errors import UsageError
from .feature_sets import FeatureSet
from .features import decisive
from .files import json_bytes, sha256_json
from .jobfolder import JobFolder
from .labels import Labels
from .progress import Progress
from .records import current, finish, forget

_SIDE_NAMES = {"train": "train", "validation": "val", "test": "test"}
_METRICS = "metrics.json"
COHORT = "cohort.json"
MODEL_FILES = ("config.json", "model.safetensors", "README.md", COHORT, _METRICS)


@dataclass(frozen=True)
class Sides:
    """Which labelled slide is on which side of the split.

    Attributes:
        slides: names, in the order of `labels`.
        labels: class number of each, (n,) int64.
        patients: patient of each.
        split: rows of train, validation and test.
    """

    slides: tuple[str, ...]
    labels: NDArray[np.int64]
    patients: tuple[str, ...]
    split: mil.Split

    def side_of(self) -> dict[str, str]:
        """Return slide → `train`, `val` or `test`."""
        names = ("train", "validation", "test")
        return {self.slides[row]: _SIDE_NAMES[name] for name in names for row in getattr(self.split, name)}

    def counts(self) -> dict[str, dict[str, int]]:
        """Return slides and patients per side."""
        rows = {_SIDE_NAMES[name]: getattr(self.split, name) for name in ("train", "validation", "test")}
        return {
            name: {"slides": len(some), "patients": len({self.patients[row] for row in some})}
            for name, some in rows.items()
        }


def check_labels(path: Path, labels: Labels) -> None:
    """Say what no training can mend, before anything is read: one class only, a wrong split, a torn patient.

    Raises:
        UsageError: names the table and what to change in it.
    """
    if len(labels.classes) < 2:
        raise UsageError(
            f"{path}: all {len(labels.label)} labelled slides have the class {labels.classes[0]!r}: nothing can be "
            "told apart. Label slides of at least two classes."
        )
    if not labels.split:
        return
    names = sorted(labels.label)
    try:
        split = mil.Split.from_column([labels.split.get(name, "") for name in names])
        mil.check_split(split, [labels.case[name] for name in names])
    except mil.TrainingDataError as error:
        raise UsageError(f"{path}: {error}") from error


def divide(features: FeatureSet, labels: Labels, settings: LearnSettings) -> Sides:
    """Put every labelled slide with tiles on a side; all slides of a patient on the same.

    Raises:
        mil.TrainingDataError: one class only, too few patients, or a patient on two sides.
    """
    slides = tuple(name for name in sorted(labels.label) if name in features and features.n_tiles(name))
    if not slides:
        raise UsageError("no labelled slide has tiles: look at slides.csv for the reasons.")
    number = {name: position for position, name in enumerate(labels.classes)}
    y = np.array([number[labels.label[name]] for name in slides], np.int64)
    patients = tuple(labels.case[name] for name in slides)
    if labels.split:
        split = mil.Split.from_column([labels.split.get(name, "") for name in slides])
        mil.check_split(split, patients)
        split = _with_validation(split, y, patients, settings)
    else:
        split = mil.split_by_patient(
            patients, y, test=settings.test, validation=settings.validation, seed=settings.seed
        )
    return Sides(slides, y, patients, split)


def train(
    job: JobFolder,
    name: str,
    features: FeatureSet,
    labels: Labels,
    settings: LearnSettings,
    progress: Progress,
    *,
    force: bool = False,
) -> tuple[Sides, bool]:
    """Train a head, score it on held-out patients, and write its model folder.

    Returns:
        The sides, and whether anything was trained: a model of the same inputs is left as it is.
    """
    sides = divide(features, labels, settings)
    parts = _parts(features, sides, labels.classes, settings)
    folder = job.model(name)
    if not force and all(current(job, folder / file, parts) for file in MODEL_FILES):
        return sides, False
    options = train_settings(settings)
    progress.total(options.epochs)
    model = mil.train(
        _bag_set(features, sides, sides.split.train),
        _bag_set(features, sides, sides.split.validation),
        labels.classes,
        options,
        on_epoch=lambda epoch: progress.advance(1, note=f"validation loss {epoch.validation_loss:.3f}"),
    ).described(encoder=features.passport, tile=features.tile)
    metrics = score(model, features, sides)
    files = {**model.to_files(), COHORT: json_bytes(cohort_of(sides)), _METRICS: json_bytes(metrics)}
    for file in files:
        forget(job, folder / file)
    for file, data in files.items():
        finish(job, folder / file, data, parts)
    return sides, True


def cohort_of(sides: Sides) -> dict[str, dict[str, str]]:
    """Return slide → side and patient → side, under hashes: a model is given away, its patients' names are not."""
    side_of = sides.side_of()
    return {
        "slides": {masked(name): side for name, side in sorted(side_of.items())},
        "cases": {
            masked(case): side_of[name]
            for name, case in zip(sides.slides, sides.patients, strict=True)
            if name in side_of
        },
    }


def masked(name: str) -> str:
    """Return a hash by which a name is known again but not read."""
    return sha256_json(["slidemil", name])[:20]


def train_settings(settings: LearnSettings) -> mil.TrainSettings:
    """Return the trainer's settings; what the user did not set keeps the trainer's default."""
    given = {name: getattr(settings, name) for name in ("epochs", "lr", "weight_decay", "dropout", "patience")}
    chosen = {name: value for name, value in given.items() if value is not None}
    return replace(mil.TrainSettings(head=settings.head, seed=settings.seed), **chosen)


def score(model: mil.TrainedModel, features: FeatureSet, sides: Sides) -> dict[str, Any]:
    """Score a model on the validation and the test slides."""
    result: dict[str, Any] = {"split": sides.counts(), "classes": list(model.classes)}
    for side in ("validation", "test"):
        rows = getattr(sides.split, side)
        if len(rows) == 0:
            result[side] = None
            continue
        found = [mil.predict(model, features.bag(sides.slides[row]))[0] for row in rows]
        result[side] = mil.evaluate(
            sides.labels[rows],
            np.stack([prediction.probabilities for prediction in found]),
            [sides.patients[row] for row in rows],
            model.classes,
            model.threshold,
        )
    return result


def _bag_set(features: FeatureSet, sides: Sides, rows: NDArray[np.int64]) -> mil.BagSet:
    return mil.BagSet(
        bags=[features.bag(sides.slides[row]) for row in rows],
        labels=sides.labels[rows],
        patients=tuple(sides.patients[row] for row in rows),
    )


def _with_validation(
    split: mil.Split, y: NDArray[np.int64], patients: Sequence[str], settings: LearnSettings
) -> mil.Split:
    """Take validation patients out of the training side where the given split names none."""
    if len(split.validation):
        return split
    rows = split.train
    if not len(rows):
        raise UsageError("the split names no training slide among the slides with tiles: write `train` for some.")
    inner = mil.split_by_patient(
        [patients[row] for row in rows], y[rows], test=0.0, validation=settings.validation, seed=settings.seed
    )
    return mil.Split(train=rows[inner.train], validation=rows[inner.validation], test=split.test)


def _parts(features: FeatureSet, sides: Sides, classes: Sequence[str], settings: LearnSettings) -> Mapping[str, Any]:
    side_of = sides.side_of()
    rows = [
        [name, features.digest(name), int(label), patient, side_of.get(name, "")]
        for name, label, patient in zip(sides.slides, sides.labels, sides.patients, strict=True)
    ]
    return {
        "slides": sha256_json(rows),
        "classes": list(classes),
        "settings": asdict(settings),
        "trainer": {key: value for key, value in asdict(train_settings(settings)).items() if key != "head_options"},
        "encoder": decisive(features.passport),
    }
