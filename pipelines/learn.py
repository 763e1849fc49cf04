"""Features and labels → a trained head: the split by patient, the training, the score on held-out patients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import mil
from mil.evaluation import evaluate_task
from mil.tasks import Classification, Task

from .config import LearnSettings
from .epochs import EPOCH_FILES, EpochLog, epoch_files
from .errors import UsageError
from .feature_sets import FeatureSet
from .features import decisive
from .files import csv_bytes, json_bytes, sha256_json
from .jobfolder import JobFolder
from .labels import Labels
from .progress import Progress
from .questions import Question, ask
from .records import current, finish, forget

_SIDE_NAMES = {"train": "train", "validation": "val", "test": "test"}
_METRICS = "metrics.json"
WATCHED = "held_out_epochs.csv"
COHORT = "cohort.json"
MODEL_FILES = ("config.json", "model.safetensors", "README.md", COHORT, _METRICS, *EPOCH_FILES)


@dataclass(frozen=True)
class Sides:
    """Which labelled slide is on which side of the split.

    Attributes:
        slides: names, in the order of the rows.
        patients: patient of each.
        split: rows of train, validation and test.
        task: what is asked, not yet fitted.
        known: targets (n, W) of the slides to learn from; those of test slides are NaN.
        sealed: targets of the test slides, in the order of `split.test`: nothing can be trained on them.
    """

    slides: tuple[str, ...]
    patients: tuple[str, ...]
    split: mil.Split
    task: Task
    known: NDArray[np.float64]
    sealed: mil.SealedLabels

    @classmethod
    def of(cls, slides: Sequence[str], patients: Sequence[str], split: mil.Split, question: Question) -> Sides:
        """Seal the targets of the test slides away."""
        target = question.targets(slides)
        sealed = mil.SealedLabels.seal(target[split.test])
        target[split.test] = np.nan
        return cls(tuple(slides), tuple(patients), split, question.task, target, sealed)

    def bag_set(self, features: FeatureSet, rows: NDArray[np.int64], *, per_patient: bool) -> mil.BagSet:
        """Labelled bags of some slides, read when they are asked for."""
        names = [self.slides[row] for row in rows]
        whole = mil.BagSet(features.bags(names), self.known[rows], tuple(self.patients[row] for row in rows))
        return whole.by_patient() if per_patient else whole

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


def check_labels(path: Path, labels: Labels, settings: LearnSettings | None = None) -> None:
    """Say what no training can mend, before anything is read: one class only, a wrong split, a torn patient.

    Raises:
        UsageError: names the table and what to change in it.
    """
    question = ask(labels, (settings or LearnSettings()).task)
    if isinstance(question.task, Classification) and len(labels.classes) < 2:
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
    question = ask(labels, settings.task)
    slides, patients = usable(features, labels)
    y = question.strata(slides, patients, 3)
    if labels.split:
        split = mil.Split.from_column([labels.split.get(name, "") for name in slides])
        mil.check_split(split, patients)
        split = with_validation(split, y, patients, settings)
    else:
        split = mil.split_by_patient(
            patients, y, test=settings.test, validation=settings.validation, seed=settings.seed
        )
    return Sides.of(slides, patients, split, question)


def usable(features: FeatureSet, labels: Labels) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Labelled slides with tiles, and their patients.

    Raises:
        UsageError: there is none.
    """
    slides = tuple(name for name in sorted(labels.label) if name in features and features.n_tiles(name))
    if not slides:
        raise UsageError("no labelled slide has tiles: look at slides.csv for the reasons.")
    return slides, tuple(labels.case[name] for name in slides)


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
    return sides, train_sides(job, name, features, sides, settings, progress, force=force)


def train_sides(
    job: JobFolder,
    name: str,
    features: FeatureSet,
    sides: Sides,
    settings: LearnSettings,
    progress: Progress,
    *,
    force: bool = False,
) -> bool:
    """As `train`, with the sides given; returns whether anything was trained."""
    parts = _parts(features, sides, settings)
    folder = job.model(name)
    if not force and all(current(job, folder / file, parts) for file in MODEL_FILES):
        return False
    options = train_settings(settings)
    progress.total(options.epochs)
    log, watched = EpochLog(job, name, parts, progress), _Watched(features, sides, settings)
    model = mil.train(
        sides.bag_set(features, sides.split.train, per_patient=settings.per_patient),
        sides.bag_set(features, sides.split.validation, per_patient=settings.per_patient),
        sides.task,
        options,
        on_epoch=log.epoch,
        keep=log.keep,
        resume=None if force or settings.watch else log.left_over(),
        watch=watched.asked,
    ).described(encoder=features.passport, tile=features.tile, per_patient=settings.per_patient or None)
    metrics = score(model, features, sides)
    files = {**model.to_files(), COHORT: json_bytes(cohort_of(sides)), _METRICS: json_bytes(metrics)}
    files |= epoch_files(model.config["training"]["history"])
    for file in files:
        forget(job, folder / file)
    for file, data in files.items():
        finish(job, folder / file, data, parts)
    if settings.watch:
        finish(job, job.predictions(name) / WATCHED, watched.table(model.task), parts)
    log.done()
    return True


class _Watched:
    """What the model said of the test slides after each epoch: for a table without labels, and for no choice."""

    def __init__(self, features: FeatureSet, sides: Sides, settings: LearnSettings) -> None:
        self._names = [sides.slides[row] for row in sides.split.test]
        self._epochs: list[tuple[int, NDArray[np.float64]]] = []
        bags = features.bags(self._names)
        self.asked = (bags, self._tell) if settings.watch and self._names else None

    def _tell(self, epoch: mil.Epoch, answers: NDArray[np.float64]) -> None:
        self._epochs.append((epoch.number, answers))

    def table(self, task: Task) -> bytes:
        """Rows of slide, epoch and answer."""
        rows = [
            {"slide_id": slide, "epoch": number, **dict(zip(task.columns, map(float, answer), strict=True))}
            for number, said in self._epochs
            for slide, answer in zip(self._names, said, strict=True)
        ]
        return csv_bytes(["slide_id", "epoch", *task.columns], rows)


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
    same = "schedule clip ema feature_dropout mixup class_weights task_weights surgery precision"
    chosen |= {name: getattr(settings, name) for name in same.split()}
    chosen |= {"batch_size": settings.train_batch, "memory_gb": settings.train_memory_gb}
    return replace(mil.TrainSettings(head=settings.head, seed=settings.seed), **chosen)


def score(model: mil.TrainedModel, features: FeatureSet, sides: Sides) -> dict[str, Any]:
    """Score a model on the validation and the test slides."""
    result: dict[str, Any] = {"split": sides.counts(), "classes": list(model.classes)}
    for side in ("validation", "test"):
        rows = getattr(sides.split, side)
        if len(rows) == 0:
            result[side] = None
            continue
        answers = np.stack([mil.predict(model, features.bag(sides.slides[row]))[0].answer for row in rows])
        target = sides.sealed.unseal() if side == "test" else sides.known[rows]
        who = [sides.patients[row] for row in rows]
        result[side] = _scored(model, target, answers, who)
    return result


def _scored(
    model: mil.TrainedModel, target: NDArray[np.float64], answers: NDArray[np.float64], patients: Sequence[str]
) -> dict[str, Any]:
    """Figures of one side."""
    if isinstance(model.task, Classification):
        return mil.evaluate(target[:, 0].astype(np.int64), answers, patients, model.classes, model.threshold)
    return {"task": model.task.kind, "figures": evaluate_task(model.task, target, answers, patients)}


def with_validation(
    split: mil.Split, y: NDArray[np.int64] | None, patients: Sequence[str], settings: LearnSettings
) -> mil.Split:
    """Take validation patients out of the training side where the given split names none."""
    if len(split.validation):
        return split
    rows = split.train
    if not len(rows):
        raise UsageError("the split names no training slide among the slides with tiles: write `train` for some.")
    inner = mil.split_by_patient(
        [patients[row] for row in rows],
        None if y is None else y[rows],
        test=0.0,
        validation=settings.validation,
        seed=settings.seed,
    )
    return mil.Split(train=rows[inner.train], validation=rows[inner.validation], test=split.test)


def _parts(features: FeatureSet, sides: Sides, settings: LearnSettings) -> Mapping[str, Any]:
    side_of = sides.side_of()
    target = sides.known.copy()
    target[sides.split.test] = sides.sealed.unseal()
    rows = [
        [name, features.digest(name), [None if v != v else float(v) for v in values], patient, side_of.get(name, "")]
        for name, values, patient in zip(sides.slides, target, sides.patients, strict=True)
    ]
    return {
        "slides": sha256_json(rows),
        "task": sides.task.spec(),
        "settings": asdict(settings),
        "trainer": {key: value for key, value in asdict(train_settings(settings)).items() if key != "head_options"},
        "encoder": decisive(features.passport),
    }
