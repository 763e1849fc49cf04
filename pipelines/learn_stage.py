"""The stages behind `slidemil train`, `predict` and `evaluate`: features and labels → models, and what they say."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import pseudonyms
from . import tables_of_job as tables
from .alone import alone
from .config import LearnSettings, Settings
from .errors import NoColumnError, UsageError
from .jobfolder import JobFolder
from .labels import Labels, read_labels
from .manifest import Manifest, safe_name
from .outcome import Said
from .progress import progress
from .provenance import Run
from .records import publish
from .selection import read_selection
from .training_table import training_table
from .units import counted

if TYPE_CHECKING:
    from .feature_sets import FeatureSet
    from .predictions import NamedModel
    from .sides import Sides


def train(
    out: Path,
    labels: Path,
    settings: Settings,
    *,
    name: str | None = None,
    target: str = "label",
    features: str | None = None,
    splits: Path | None = None,
    clinical: Path | None = None,
    keyfile: Path | None = None,
    select: str | None = None,
    force: bool = False,
    quiet: bool = False,
) -> Said:
    """Features and labels → model, its score on held-out patients, and predictions for every slide.

    With folds, or splits that are given, a model per fold: every slide is answered by one that never saw its patient.

    Raises:
        NothingMatchedError: no label belongs to a slide.
        mil.TrainingDataError: one class only, too few patients, a patient in two folds.
        UsageError: the head, or one of its options, is not known.
    """
    from .learn import check_labels
    from .trainer import check_head

    check_head(settings.train)
    job = _known(out, keyfile)
    manifest = tables.read_manifest(job)
    table = training_table(labels, manifest.entries, target, settings.train, keyfile=keyfile, clinical=clinical)
    check_labels(labels, table, settings.train)
    if settings.train.folds or splits is not None:
        return _cross_validate(
            job,
            manifest,
            table,
            settings.train,
            splits,
            name=name,
            features=features,
            select=select,
            force=force,
            quiet=quiet,
        )
    return learn_one(
        job, manifest, table, settings.train, name=name, features=features, select=select, force=force, quiet=quiet
    )


def evaluate(
    out: Path,
    model: str,
    *,
    against: str | None = None,
    labels: Path | None = None,
    by: Sequence[str] = (),
    target: str | None = None,
    features: str | None = None,
    keyfile: Path | None = None,
    select: str | None = None,
) -> Said:
    """Predictions of held-out slides → figures with intervals, curves, comparison, and a look for leaks.

    Labels serve slides that were predicted without any, e.g. those of another hospital. With a selection, of its slides
    alone, into files of their own.

    Raises:
        UsageError: nothing is held out, or the models answer different questions.
        NothingMatchedError: the selection takes none of the slides held out.
    """
    from . import curves, evaluating, predictions
    from .feature_sets import choose_folder, load_features
    from .files import json_bytes

    if by and labels is None:
        raise UsageError("--by names columns of a table: give it with --labels.")
    job = _known(out, keyfile)
    manifest = tables.read_manifest(job)
    named = predictions.find_model(job, model)
    table = None if labels is None else _labels_for(named, labels, manifest, target, keyfile, by)
    rows, which = evaluating.held_out(job, named, table)
    if select is not None:
        rows, which = evaluating.among(rows, _names(manifest, select), select), f"{which}, of --select {select}"
    other = None
    if against is not None:
        second = predictions.find_model(job, against)
        other = (second, evaluating.held_out(job, second, table)[0])
    groups = {} if table is None or not by else evaluating.groups_of(table, by)
    folder = choose_folder(job, features, named.model.config.get("encoder"))
    loaded = load_features(job, folder, [entry.slide_id for entry in manifest.entries])
    found = evaluating.judge(job, named, rows, against=other, groups=groups, features=loaded)
    task = named.model.task
    points = curves.points_of(task, evaluating.targets(task, rows), evaluating.answers(task, rows))
    paths = evaluating.out_paths(job, named.name, selected=select is not None)
    with Run(job, "evaluate", {"model": named.name, "against": against}) as run:
        for kind, data in (("json", json_bytes(found)), ("csv", curves.as_csv(points)), ("png", curves.as_png(points))):
            publish(run.job, paths[kind], data)
    lines = evaluating.spoken(found, which)
    warnings = [line for line in lines if line.startswith("LEAK")]
    outputs = [_in(job, path) for path in paths.values()]
    return Said(
        (*lines, f"→ {paths['json']}"),
        {"status": "done", "which": which, **found, "outputs": outputs, "warnings": warnings},
    )


def predict(
    out: Path,
    model: str,
    *,
    features: str | None = None,
    select: str | None = None,
    clinical: Path | None = None,
    labels: Path | None = None,
    target: str | None = None,
    keyfile: Path | None = None,
) -> Said:
    """Model and features → prediction tables; a model of clinical variables takes them from a table.

    With a selection, of its slides, beside those that the tables of this model hold already. Labels change no
    prediction: they are written beside it, for `evaluate`.

    Raises:
        CheckFailedError: the features were made differently from those the model was trained on.
        UsageError: no label is an answer of the model.
    """
    from . import predictions
    from .clinical import columns_of, notes_on
    from .feature_sets import choose_folder, load_features

    job = _known(out, keyfile)
    manifest = tables.read_manifest(job)
    named = predictions.find_model(job, model)
    models = named.members or (named.model,)
    if clinical is not None:
        columns = columns_of(models)
        if not columns:
            raise UsageError(f"--clinical-table: the model {named.name} takes no clinical variables.")
        cells = read_labels(clinical, manifest.entries, column=",".join(columns)).cells
        named = dataclasses.replace(named, cells=cells if select is None else {**named.cells, **cells})
    folder = choose_folder(job, features, named.model.config.get("encoder"))
    loaded = load_features(job, folder, _names(manifest, select))
    others = [] if select is None else _predicted_before(job, named, set(loaded.records))
    n_wanted = len(loaded.records)
    if others:
        loaded = load_features(job, folder, [*loaded.records, *others])
    predictions.check_fits(named, loaded)
    notes = [*notes_on(models, named.cells, sorted(loaded.records)), *loaded.notes]
    lost = [name for name in others if name not in loaded]
    if lost:
        notes.append(
            f"predicted before, now without features in {folder}: {counted(len(lost), 'slide')}, e.g. {lost[0]}"
        )
    table = None if labels is None else _told(labels, manifest, target, keyfile, named)
    notes += [] if table is None else [note for note in table.notes if "only predicted" not in note]
    told = {"model": named.name, "model_sha256": named.sha256, "features": folder}
    with Run(job, "predict", told) as run, alone(job, "predictions", named.name):
        if table is not None:
            manifest = tables.keep_cases(run.job, manifest, table.case)
        label = _labels_before(job, named) | (dict(table.label) if table is not None else {})
        rows, fresh = predictions.predict(run.job, named, loaded, manifest.entries, labels=label)
    where = job.predictions(named.name) / "slides.csv"
    verb = "predicted" if fresh else "nothing new:"
    beside = f", beside {len(rows) - n_wanted} of earlier runs" if len(rows) > n_wanted else ""
    return Said(
        (f"{verb} {counted(n_wanted, 'slide')} with {named.name}{beside} → {where}", *notes),
        {
            "status": "done",
            "model": named.name,
            "slides": n_wanted,
            "in_table": len(rows),
            "new": fresh,
            "outputs": [_in(job, where)],
            "warnings": notes,
        },
    )


def learn_one(
    job: JobFolder,
    manifest: Manifest,
    labels: Labels,
    settings: LearnSettings,
    *,
    name: str | None = None,
    features: str | None = None,
    select: str | None = None,
    force: bool = False,
    quiet: bool = False,
) -> Said:
    """Train one model, and predict all slides with it."""
    from . import learn, predictions
    from .teachers import teaching

    name = safe_name(name or settings.head)
    loaded, run = _begun(job, name, manifest, labels, settings, features, select)
    with run:
        with alone(job, "models", name), progress("training", "epochs", quiet=quiet) as bar:
            teach = teaching(run.job, settings, loaded)
            sides, fresh = learn.train(run.job, name, loaded, labels, settings, bar, teach=teach, force=force)
        named: NamedModel = dataclasses.replace(predictions.find_model(job, name), cells=labels.clinical)
        manifest = tables.keep_cases(run.job, manifest, labels.case)
        with alone(job, "predictions", name):
            predictions.predict(run.job, named, loaded, manifest.entries, labels=labels.label)
        run.finish("done", trained=fresh)
    return _learned(job, named, sides, fresh, (*labels.notes, *loaded.notes))


def _cross_validate(
    job: JobFolder,
    manifest: Manifest,
    labels: Labels,
    settings: LearnSettings,
    given: Path | None,
    *,
    name: str | None = None,
    features: str | None = None,
    select: str | None = None,
    force: bool = False,
    quiet: bool = False,
) -> Said:
    from . import cross_validation, evaluating, predictions

    name = safe_name(name or f"{settings.head}_cv")
    loaded, run = _begun(job, name, manifest, labels, settings, features, select)
    folds = cross_validation.deal(loaded, labels, settings, given)
    with run:
        with alone(job, "models", name), progress("training", "epochs", quiet=quiet) as bar:
            fresh = cross_validation.cross_validate(run.job, name, loaded, folds, labels, settings, bar, force=force)
        tables.keep_cases(run.job, manifest, labels.case)
        run.finish("done", trained=fresh)
    named = predictions.find_model(job, name)
    rows, which = evaluating.held_out(job, named)
    found = evaluating.judge(job, named, rows)
    verb = "trained" if fresh else "nothing new:"
    lines = [f"{verb} {len(folds)} models, one per fold → {named.folder}", *evaluating.spoken(found, which)]
    notes = [*labels.notes, *loaded.notes]
    outputs = [_in(job, named.folder), _in(job, job.predictions(name))]
    data = {"status": "done", "model": name, "new": fresh, "folds": len(folds), "score": found["score"]}
    return Said((*lines, *notes), {**data, "outputs": outputs, "warnings": notes})


def _begun(
    job: JobFolder,
    name: str,
    manifest: Manifest,
    labels: Labels,
    settings: LearnSettings,
    features: str | None,
    select: str | None,
) -> tuple[FeatureSet, Run]:
    """Return the features to train on, and the run, not yet entered."""
    from .feature_sets import choose_folder, load_features

    folder = choose_folder(job, features)
    loaded = load_features(job, folder, _names(manifest, select))
    told = {"model": name, "features": folder, **dataclasses.asdict(settings)}
    return loaded, Run(job, "train", told, list(labels.notes))


def _learned(job: JobFolder, named: NamedModel, sides: Sides, fresh: bool, notes: Sequence[str]) -> Said:
    import json

    metrics = json.loads((named.folder / "metrics.json").read_text(encoding="utf-8"))
    test = metrics.get("test")
    verb = "trained" if fresh else "nothing new:"
    lines = [f"{verb} {named.name} on {len(sides.split.train)} slides → {named.folder}"]
    if test and "figures" in test:
        from .evaluating import spoken

        lines += spoken({"score": test["figures"]}, "held out")
    elif test:
        low, high = test["auc_interval"]
        lines.append(
            f"held out: AUC {_number(test['auc'])} ({_number(low)} to {_number(high)}), balanced accuracy "
            f"{_number(test['balanced_accuracy'])}, {test['n']} slides of {test['n_patients']} patients"
        )
    if metrics.get("gradient_conflict"):
        from mil.task_balance import spoken_conflict

        lines.append(spoken_conflict(metrics["gradient_conflict"]))
    found = metrics.get("site_probe")
    if found:
        from .probe_text import spoken as spoken_probe

        lines += spoken_probe(found)
    data: dict[str, Any] = {
        "status": "done",
        "model": named.name,
        "new": fresh,
        "metrics": _told_of(test),
        "outputs": [_in(job, named.folder), _in(job, job.predictions(named.name))],
        "warnings": list(notes),
    }
    if found:
        data["site_probe"] = found
    if not test:
        lines.append("no patient is held out: nothing says how good the model is")
        data["warnings"].append(lines[-1])
    return Said((*lines, *notes), data)


def _told_of(test: dict[str, Any] | None) -> dict[str, Any] | None:
    """What `--json` says of the held-out slides."""
    if not test or "figures" in test:
        return test
    return {key: test[key] for key in ("n", "n_patients", "auc", "auc_interval")}


def _known(out: Path, keyfile: Path | None) -> JobFolder:
    """Return the job, once it is sure that a key file fits it."""
    job = JobFolder(out)
    if keyfile is not None:
        pseudonyms.check(job, keyfile)
    return job


def _labels_for(
    named: NamedModel,
    path: Path,
    manifest: Manifest,
    target: str | None,
    keyfile: Path | None,
    more: Sequence[str] = (),
) -> Labels:
    """Labels for a model: of the column that is named, else of the one that it was trained on.

    Raises:
        NoColumnError: the table lacks it.
    """
    try:
        return pseudonyms.labels_of(path, manifest.entries, target or named.target, keyfile, more)
    except NoColumnError as error:
        if target is None:
            raise NoColumnError(f"{error} {named.name} was trained on `{named.target}`.") from error
        raise


def _told(path: Path, manifest: Manifest, target: str | None, keyfile: Path | None, named: NamedModel) -> Labels:
    """Labels of slides that a model predicts.

    Raises:
        UsageError: none of them is an answer of the model.
    """
    from .evaluating import strangers

    table = _labels_for(named, path, manifest, target, keyfile)
    strange = strangers(named.model.task, table.label)
    if len(strange) == len(table.label):
        raise UsageError(
            f"{path}: {named.name} answers with {', '.join(named.model.classes or named.model.task.columns)}, the "
            f"column `{table.target}` says {', '.join(sorted(set(strange.values()))[:3])}. "
            "Name the column with --target."
        )
    if not strange:
        return table
    example = next(iter(strange))
    note = f"{len(strange)} slides have a label that {named.name} does not know, e.g. {example}: {strange[example]}"
    return dataclasses.replace(table, notes=(*table.notes, note))


def _predicted_before(job: JobFolder, named: NamedModel, besides: Collection[str]) -> list[str]:
    """Name the slides that the model has predicted, besides some."""
    from . import predictions

    rows = predictions.read_predictions(job, named.name, named.sha256)
    return [row["slide_id"] for row in rows if row["slide_id"] not in besides]


def _labels_before(job: JobFolder, named: NamedModel) -> dict[str, str]:
    """Labels that were told earlier; those of the last table where an older version kept no others."""
    from . import predictions

    rows = predictions.read_predictions(job, named.name, named.sha256)
    kept = predictions.kept_labels(job, named.name, named.model.task)
    return kept or {row["slide_id"]: row["label"] for row in rows if row.get("label")}


def _names(manifest: Manifest, select: str | None) -> list[str]:
    """Name the slides of a job, those of a selection where there is one."""
    entries = manifest.entries if select is None else read_selection(select).of(manifest.entries)
    return [entry.slide_id for entry in entries]


def _in(job: JobFolder, path: Path) -> str:
    return Path(os.path.relpath(path, job.root)).as_posix()


def _number(value: float | None) -> str:
    return "not defined" if value is None else f"{value:.3f}"
