"""Features and labels → a trained head: the split by patient, the training, the score on held-out patients."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import mil
from mil.clinical import Variables
from mil.ensemble import distill
from mil.evaluation import evaluate_task
from mil.task_balance import conflict_of
from mil.tasks import Classification, Task

from .clinical import Joined
from .config import LearnSettings
from .epochs import EPOCH_FILES, EpochLog, epoch_files
from .errors import UsageError
from .feature_sets import FeatureSet
from .features import decisive
from .files import csv_bytes, json_bytes, sha256_json
from .jobfolder import JobFolder
from .labels import Labels, class_order
from .progress import Progress
from .questions import ask
from .records import current, finish, forget
from .search import SEARCH, Trial, choose
from .search import table as trial_table
from .sides import Sides
from .site_probe import before_and_after
from .tracking import trackers
from .trainer import train_settings

_METRICS = "metrics.json"
WATCHED = "held_out_epochs.csv"
COHORT = "cohort.json"
MODEL_FILES = ("config.json", "model.safetensors", "README.md", COHORT, _METRICS, *EPOCH_FILES)


@dataclass(frozen=True, eq=False)
class Teachers:
    """Models that teach a head, none of which knows the slides that it is judged by.

    Attributes:
        models: ready to use; none where nobody teaches.
        digests: of their folders.
    """

    models: tuple[mil.TrainedModel, ...] = ()
    digests: tuple[str, ...] = ()


def nobody(sides: Sides) -> Teachers:
    """No teachers."""
    del sides
    return Teachers()


def check_labels(path: Path, labels: Labels, settings: LearnSettings | None = None) -> None:
    """Say what no training can mend, before anything is read: one class only, a wrong split, a torn patient.

    Raises:
        UsageError: names the table and what to change in it.
    """
    question = ask(labels, (settings or LearnSettings()).task)
    if isinstance(question.task, Classification):
        _check_classes(path, labels)
    if not labels.split:
        return
    names = sorted(labels.label)
    try:
        split = mil.Split.from_column([labels.split.get(name, "") for name in names])
        mil.check_split(split, [labels.case[name] for name in names])
    except mil.TrainingDataError as error:
        raise UsageError(f"{path}: {error}") from error


def _check_classes(path: Path, labels: Labels) -> None:
    """Refuse one class, and numbers that are hardly classes."""
    classes = labels.classes
    if len(classes) < 2:
        odd = [note for note in labels.notes if "counts as no label" in note]
        raise UsageError(
            f"{path}: all {len(labels.label)} labelled slides have the class {classes[0]!r}: nothing can be told "
            f"apart. {' '.join(odd) or 'Label slides of at least two classes'}."
        )
    if len(classes) > max(10, len(labels.label) / 3) and all(class_order(name)[0] == 0 for name in classes):
        raise UsageError(
            f"{path}: `{labels.target}` has {len(classes)} different numbers: as classes these are too many for "
            f"{len(labels.label)} slides. Ask for the number itself with --task regression."
        )


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
            patients,
            y,
            test=settings.test,
            validation=settings.validation,
            seed=settings.seed,
            names=question.names,
        )
    return Sides.of(slides, patients, split, question, labels, settings)


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
    teach: Callable[[Sides], Teachers] = nobody,
    force: bool = False,
) -> tuple[Sides, bool]:
    """Train a head, score it on held-out patients, and write its model folder.

    Returns:
        The sides, and whether anything was trained: a model of the same inputs is left as it is.
    """
    sides = divide(features, labels, settings)
    return sides, train_sides(job, name, features, sides, settings, progress, teachers=teach(sides), force=force)


def train_sides(
    job: JobFolder,
    name: str,
    features: FeatureSet,
    sides: Sides,
    settings: LearnSettings,
    progress: Progress,
    *,
    teachers: Teachers | None = None,
    force: bool = False,
) -> bool:
    """As `train`, with the sides given; returns whether anything was trained."""
    teachers = teachers or Teachers()
    parts = _parts(features, sides, settings, teachers)
    folder = job.model(name)
    wanted = (*MODEL_FILES, *((SEARCH,) if settings.search else ()))
    if not force and all(current(job, folder / file, parts) for file in wanted):
        return False
    trials: list[Trial] = []
    if settings.search:
        settings, trials = choose(job, name, features, sides, settings, progress, parts)
    options = train_settings(settings)
    progress.total(options.epochs)
    shown = trackers(job, name, settings.trackers, options)
    log, watched = EpochLog(job, name, parts, progress, shown), _Watched(features, sides, settings)
    variables = sides.variables(settings)
    more: dict[str, Any] = {
        "on_epoch": log.epoch,
        "keep": log.keep,
        "resume": None if force or settings.watch else log.left_over(),
        "watch": watched.asked(variables),
        "variables": variables,
    }
    both = _both(features, sides, settings, variables)
    if teachers.models:
        more |= {"temperature": settings.temperature, "share": settings.teacher_share}
        model = distill(teachers.models, both[0], both[1], options, **more)
    else:
        model = mil.train(*both, sides.task, options, **more)
    told = {"per_patient": settings.per_patient or None, "target": sides.target}
    model = model.described(encoder=features.passport, tile=features.tile, **told)
    metrics = score(model, features, sides)
    conflict = conflict_of(model.config["training"])
    metrics |= {"gradient_conflict": conflict} if conflict else {}
    if options.adapt != "none":
        metrics["site_probe"] = _probed(job, name, model, features, sides, settings, progress, parts)
    files = {**model.to_files(metrics), COHORT: json_bytes(cohort_of(sides)), _METRICS: json_bytes(metrics)}
    files |= epoch_files(model.config["training"]["history"])
    files |= {SEARCH: trial_table(trials)} if trials else {}
    for file in files:
        forget(job, folder / file)
    for file, data in files.items():
        finish(job, folder / file, data, parts)
    if settings.watch:
        finish(job, job.predictions(name) / WATCHED, watched.table(model.task), parts)
    log.done()
    for tracker in shown:
        tracker.end(_summary(metrics))
    return True


def _summary(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Figures of the held-out slides in numbers, for those who show them."""
    test = metrics.get("test") or {}
    return {f"held_out_{key}": float(value) for key, value in test.items() if isinstance(value, float)}


def _probed(
    job: JobFolder,
    name: str,
    model: mil.TrainedModel,
    features: FeatureSet,
    sides: Sides,
    settings: LearnSettings,
    progress: Progress,
    parts: Mapping[str, Any],
) -> dict[str, Any]:
    """What a fresh probe tells of the confounders, from the model and from the same training without adaptation."""
    options, variables = replace(train_settings(settings), adapt="none"), sides.variables(settings)
    progress.total(2 * options.epochs)
    log = EpochLog(job, f"{name}.plain", {**parts, "adapt": "none"}, progress)
    plain = mil.train(
        *_both(features, sides, settings, variables),
        sides.task,
        options,
        on_epoch=log.epoch,
        keep=log.keep,
        resume=log.left_over(),
        variables=variables,
    )

    def bags(asked: mil.TrainedModel) -> list[mil.Bag]:
        return [asked.joined(features.bag(slide), sides.clinical.get(slide)) for slide in sides.slides]

    levels = dict(zip(settings.kept_out, zip(*sides.confounders, strict=True), strict=True))
    asked = (bags, levels, sides.patients, sides.strata(), sides.held_out())
    found = before_and_after(plain, model, *asked, seed=settings.seed)
    log.done()
    return found


def _both(
    features: FeatureSet, sides: Sides, settings: LearnSettings, variables: Variables | None
) -> tuple[mil.BagSet, mil.BagSet]:
    """Bags to learn from, and bags to stop by."""
    fit, stop = (
        sides.bag_set(features, rows, per_patient=settings.per_patient, variables=variables)
        for rows in (sides.split.train, sides.split.validation)
    )
    return fit, stop


class _Watched:
    """What the model said of the test slides after each epoch: for a table without labels, and for no choice."""

    def __init__(self, features: FeatureSet, sides: Sides, settings: LearnSettings) -> None:
        self._names = [sides.slides[row] for row in sides.split.test]
        self._epochs: list[tuple[int, NDArray[np.float64]]] = []
        self._bags, self._sides, self._wanted = features.bags(self._names), sides, settings.watch

    def asked(self, variables: Variables | None) -> tuple[Sequence[mil.Bag], Callable[..., None]] | None:
        """The bags, and who is to be told; None where nothing is to be watched."""
        if not self._wanted or not self._names:
            return None
        if variables is None:
            return self._bags, self._tell
        return Joined(self._bags, variables, [self._sides.clinical[name] for name in self._names]), self._tell

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


def score(model: mil.TrainedModel, features: FeatureSet, sides: Sides) -> dict[str, Any]:
    """Score a model on the validation and the test slides."""
    result: dict[str, Any] = {"split": sides.counts(), "classes": list(model.classes)}
    for side in ("validation", "test"):
        rows = getattr(sides.split, side)
        if len(rows) == 0:
            result[side] = None
            continue
        target = sides.sealed.unseal() if side == "test" else sides.known[rows]
        who = [sides.patients[row] for row in rows]
        names = [sides.slides[row] for row in rows]
        whole = mil.BagSet(_joined(model, features, sides, names), target, tuple(who))
        if model.config.get("per_patient"):
            whole = whole.by_patient(strict=False)
        if not len(whole):
            result[side] = None
            continue
        answers = np.stack([mil.predict(model, whole.bags[i])[0].answer for i in range(len(whole))])
        result[side] = _scored(model, np.asarray(whole.labels), answers, whole.patients)
    return result


def _joined(model: mil.TrainedModel, features: FeatureSet, sides: Sides, names: Sequence[str]) -> Sequence[mil.Bag]:
    """Bags of some slides as a model takes them."""
    bags, variables = features.bags(names), model.variables
    return bags if variables is None else Joined(bags, variables, [sides.clinical.get(name, {}) for name in names])


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


def _parts(features: FeatureSet, sides: Sides, settings: LearnSettings, teachers: Teachers) -> Mapping[str, Any]:
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
        "target": sides.target,
        "settings": {key: value for key, value in asdict(settings).items() if key not in ("track", "head_options")},
        "trainer": asdict(train_settings(settings)),
        "encoder": decisive(features.passport),
        "clinical": sha256_json([sides.clinical, sides.confounders]),
        "teachers": sorted(teachers.digests),
    }
