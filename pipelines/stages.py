"""One plain function per verb: files in → files out, and a result that can be printed."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import pseudonyms, shards
from . import tables_of_job as tables
from .alone import alone
from .claims import Claims
from .cluster.spec import ClusterSpec, parse_cluster
from .config import ExtractSettings, LearnSettings, Settings, as_yaml
from .console import exit_code_of, warn
from .encoding import devices_of, encoders_of, settled
from .errors import ExitCode, NoAttentionError, UsageError
from .files import sweep_leftovers
from .forecast import gone
from .heatmap_stage import heatmap
from .helpers import arguments_of, helping
from .jobfolder import JobFolder, Tiling, tiling_name
from .labels import Labels, read_labels
from .manifest import Manifest, Sources, find_slides, safe_name
from .outcome import Outcome, Said
from .progress import progress
from .provenance import Run
from .records import keep, publish
from .stain_target import check_reference
from .targets import check_job
from .tissue_of_slide import check_masks

_STORE_WAIT = 600.0
"""Seconds after which a store is written although another run seems to write it: each slide is whole or not there."""

if TYPE_CHECKING:
    from .learn import Sides
    from .predictions import NamedModel


def extract(
    slides: Sequence[Path] | Sources,
    out: Path,
    settings: Settings,
    *,
    limit: int | None = None,
    shard: str | None = None,
    cluster: str | None = None,
    force: bool = False,
    offline: bool = False,
    quiet: bool = False,
) -> Outcome:
    """Slides → features. Resumes: slides finished by the same settings are skipped.

    With `cluster` the workers do it: nothing is read or encoded here.

    Raises:
        NothingMatchedError: no slide was found.
        mil.WeightsError: the encoder has no weights.
        EnvironmentFault: the job folder cannot be written.
    """
    part, spec = shards.chosen(shard), None if cluster is None else parse_cluster(cluster)
    check_job(out)
    job = JobFolder(out)
    found = pseudonyms.slides_of(slides, job)
    there = {entry.slide_id for entry in found.entries}
    if limit is not None:
        found = replace(found, entries=found.entries[:limit])
    check_reference(settings.extract)
    encoder, *also = encoders_of(_here(settings.extract, cluster), offline=offline)
    sweep_leftovers(out)
    mine = tables.join(job, found)[0]
    mine = mine if part is None else shards.take(part, mine, job)
    told = check_masks(settings.extract, job, [entry.slide_id for entry in mine.entries])
    with Run(job, "extract", {"slides": Sources.of(slides).names, **dataclasses.asdict(settings)}) as run:
        with tables.alone(job):
            mine, everything = tables.join(job, found)
            mine = mine if part is None else shards.take(part, mine, job)
            tables.write_manifest(run.job, everything)
            keep(run.job, job.settings, as_yaml(settings).encode())
        planned, missed = gone(job, {*there, *(entry.slide_id for entry in mine.entries)})
        mine = replace(mine, notes=(*mine.notes, *told, *((missed,) if missed else ())))
        run.facts |= {"followed_plan": planned} if planned else {}
        how: dict[str, Any] = {"also": also, "cluster": spec, "force": force, "offline": offline, "quiet": quiet}
        devices = devices_of(settings.extract.device)[: 1 if force or spec else None]  # force: each would redo others'
        with helping(devices, arguments_of(slides, limit, shard, offline=offline), out, settings) as own:
            outcome = _extract(
                run, mine, settled(own.extract, encoder) if spec is None else own.extract, encoder, **how
            )
        if settings.extract.store:
            outcome = _stored(run, outcome, mine, settings.extract.store)
        if len(devices) > 1:  # a helper wrote its own share of the settings
            keep(run.job, job.settings, as_yaml(settings).encode())
        return outcome


def plan(
    slides: Sequence[Path] | Sources,
    out: Path | None,
    settings: Settings,
    *,
    seconds: float = 20.0,
    limit: int | None = None,
    force: bool = False,
    offline: bool = False,
    quiet: bool = False,
) -> Said:
    """Dry run: what `extract` would do and take. Writes nothing, but where `out` is given the record of the plan.

    Raises:
        NothingMatchedError: no slide was found.
        mil.WeightsError: the encoder has no weights.
    """
    from .planning import keep as keep_plan
    from .planning import make_plan, say_plan

    if out is not None:
        check_job(out)
    job = None if out is None else JobFolder(out)
    found = pseudonyms.slides_of(slides, job)
    if limit is not None:
        found = replace(found, entries=found.entries[:limit])
    check_reference(settings.extract)
    encoder = encoders_of(settings.extract, offline=offline)[0]  # the others cost no more than their own passes
    settings = replace(settings, extract=settled(settings.extract, encoder))
    mine = found if job is None else tables.join(job, found)[0]
    told = check_masks(settings.extract, job or JobFolder(Path("no job yet")), [e.slide_id for e in mine.entries])
    with progress("plan", "slides", quiet=quiet) as bar:
        made = make_plan(mine, settings.extract, encoder, job, seconds, force=force, bar=bar)
    if job is not None:
        run = Run(job, "plan", {"slides": Sources.of(slides).names, **dataclasses.asdict(settings)})
        keep_plan(made, run, settings.extract, encoder)
    return say_plan(made, settings.extract, encoder, (*mine.notes, *told))


def train(
    out: Path,
    labels: Path,
    settings: Settings,
    *,
    name: str | None = None,
    target: str = "label",
    features: str | None = None,
    splits: Path | None = None,
    keyfile: Path | None = None,
    force: bool = False,
    quiet: bool = False,
) -> Said:
    """Features and labels → model, its score on held-out patients, and predictions for every slide.

    With folds, or splits that are given, a model per fold: every slide is answered by one that never saw its patient.

    Raises:
        NothingMatchedError: no label belongs to a slide.
        mil.TrainingDataError: one class only, too few patients, a patient in two folds.
    """
    from .learn import check_labels

    job = JobFolder(out)
    if keyfile is not None:
        pseudonyms.check(job, keyfile)
    manifest = tables.read_manifest(job)
    more = [settings.train.site] if settings.train.site else []
    table = pseudonyms.labels_of(labels, manifest.entries, target, keyfile, more)
    check_labels(labels, table, settings.train)
    if settings.train.folds or splits is not None:
        return _cross_validate(
            job, manifest, table, settings.train, splits, name=name, features=features, force=force, quiet=quiet
        )
    return _learn(job, manifest, table, settings.train, name=name, features=features, force=force, quiet=quiet)


def evaluate(
    out: Path,
    model: str,
    *,
    against: str | None = None,
    labels: Path | None = None,
    by: Sequence[str] = (),
    target: str = "label",
    features: str | None = None,
) -> Said:
    """Predictions of held-out slides → figures with intervals, curves, comparison, and a look for leaks.

    Raises:
        UsageError: nothing is held out, or the models answer different questions.
    """
    from . import curves, evaluating, predictions
    from .feature_sets import choose_folder, load_features
    from .files import json_bytes

    job = JobFolder(out)
    manifest = tables.read_manifest(job)
    named = predictions.find_model(job, model)
    rows, which = evaluating.held_out(job, named)
    other = None
    if against is not None:
        second = predictions.find_model(job, against)
        other = (second, evaluating.held_out(job, second)[0])
    if by and labels is None:
        raise UsageError("--by names columns of a table: give it with --labels.")
    groups = {}
    if labels is not None and by:
        groups = evaluating.groups_of(read_labels(labels, manifest.entries, column=target, more=by), by)
    folder = choose_folder(job, features, named.model.config.get("encoder"))
    loaded = load_features(job, folder, [entry.slide_id for entry in manifest.entries])
    found = evaluating.judge(job, named, rows, against=other, groups=groups, features=loaded)
    task = named.model.task
    points = curves.points_of(task, evaluating.targets(task, rows), evaluating.answers(task, rows))
    paths = evaluating.out_paths(job, named.name)
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


def predict(out: Path, model: str, *, features: str | None = None) -> Said:
    """Model and features → prediction tables.

    Raises:
        CheckFailedError: the features were made differently from those the model was trained on.
    """
    from . import predictions
    from .feature_sets import choose_folder, load_features

    job = JobFolder(out)
    manifest = tables.read_manifest(job)
    named = predictions.find_model(job, model)
    folder = choose_folder(job, features, named.model.config.get("encoder"))
    loaded = load_features(job, folder, [entry.slide_id for entry in manifest.entries])
    predictions.check_fits(named, loaded)
    before = {row["slide_id"]: row for row in predictions.read_predictions(job, named.name, named.sha256)}
    told = {"model": named.name, "model_sha256": named.sha256, "features": folder}
    with Run(job, "predict", told) as run, alone(job, "predictions", named.name):
        labels = _column(before, "label")
        rows, fresh = predictions.predict(run.job, named, loaded, manifest.entries, labels=labels)
    where = job.predictions(named.name) / "slides.csv"
    verb = "predicted" if fresh else "nothing new:"
    return Said(
        (f"{verb} {len(rows)} slides with {named.name} → {where}", *loaded.notes),
        {
            "status": "done",
            "model": named.name,
            "slides": len(rows),
            "new": fresh,
            "outputs": [_in(job, where)],
            "warnings": list(loaded.notes),
        },
    )


def report(out: Path) -> Said:
    """Job → one HTML file.

    Raises:
        UsageError: the folder is no job.
    """
    from .report import render

    job = JobFolder(out)
    tables.read_manifest(job)
    with Run(job, "report", {}) as run:
        publish(run.job, job.report, render(job.root))
    return Said((f"report: {job.report}",), {"status": "done", "report": str(job.report)})


def run(
    slides: Sequence[Path] | Sources,
    out: Path,
    settings: Settings,
    *,
    labels: Path | None = None,
    model: str | None = None,
    name: str | None = None,
    target: str = "label",
    limit: int | None = None,
    shard: str | None = None,
    cluster: str | None = None,
    force: bool = False,
    offline: bool = False,
    quiet: bool = False,
    with_report: bool = True,
) -> Outcome:
    """Everything: features, then training (with labels) or prediction (with a model), heatmaps, report.

    A shard makes its features alone: what needs all slides is left to a run without a shard.

    Raises:
        UsageError: labels and a model at once; labels that do not fit.
    """
    if labels is not None and model is not None:
        raise UsageError("--labels trains a model, --model uses one: give one of the two.")
    check_job(out)
    job = JobFolder(out)
    local = replace(settings, extract=_here(settings.extract, cluster))
    _check_before(job, slides, local, labels, model, target, offline)
    outcome = extract(
        slides,
        out,
        settings,
        limit=limit,
        shard=shard,
        cluster=cluster,
        force=force,
        offline=offline,
        quiet=quiet,
    )
    part = shards.chosen(shard)
    if part is not None and part.count > 1:
        rest = f"features of shard {part} only. When all shards have ended: slidemil run … -o {out} without --shard"
        return replace(outcome, text=(*outcome.text, rest))
    manifest = tables.read_manifest(job)
    folder = str(outcome.more["features"])
    steps: list[Said] = []
    problem, code = None, ExitCode.DONE
    try:
        if labels is not None:
            table = pseudonyms.labels_of(labels, manifest.entries, target, Sources.of(slides).keyfile)
            learned = _learn(job, manifest, table, settings.train, name=name, features=folder, force=force, quiet=quiet)
            steps.append(learned)
            model = str(learned.data["model"])
        elif model is not None:
            steps.append(predict(out, model, features=folder))
        if model is not None:
            steps.append(_heatmap_if_any(out, model, features=folder, force=force, quiet=quiet))
    except Exception as error:
        known = exit_code_of(error)
        if known is None:
            raise
        problem, code = str(error), ExitCode(known)
    if with_report:
        steps.append(report(out))
    whole = _whole(outcome, steps, trained=labels is not None or model is not None)
    return replace(whole, problem=problem, problem_code=code)


def _check_before(
    job: JobFolder,
    slides: Sequence[Path] | Sources,
    settings: Settings,
    labels: Path | None,
    model: str | None,
    target: str,
    offline: bool,
) -> None:
    """Say what cannot end well before days of extraction, not after."""
    import mil

    if settings.train.head not in mil.HEADS:
        mil.create_head(settings.train.head, 1, 2)  # raises, and says which heads there are
    if labels is not None:
        from .learn import check_labels

        check_labels(labels, read_labels(labels, find_slides(slides).entries, column=target))
    if model is not None:
        from .extract import passport_of
        from .features import same_passport
        from .predictions import find_model

        named = find_model(job, model)
        made = passport_of(encoders_of(settings.extract, offline=offline)[0], settings.extract)
        same_passport(named.model.config.get("encoder") or made, made, what=f"model {named.name} on these settings")


def status(out: Path) -> Said:
    """How far each slide of a job is, with the cause where one failed."""
    from .status import describe

    job = JobFolder(out)
    return describe(job, tables.read_manifest(job), tables.rows_by_records(job))


def verify(out: Path, *, slides: bool = True, redo: bool = False, quiet: bool = False) -> Said:
    """Hash everything of a job again, and compare with what its records and ledgers say.

    Args:
        out: job folder.
        slides: whether the slides are read, too: about a second per GB.
        redo: take back that what is found wrong is done, so that the next run makes it anew.
        quiet: show no progress.

    Raises:
        UsageError: the folder is no job.
    """
    from .verify import Verification

    job = JobFolder(out)
    with progress("verify", "files", quiet=quiet) as bar:
        look = Verification(job, _manifest_or_none(job), slides, bar)
        said = look.run()
    if not (redo and look.found.lines):
        return said
    with Run(job, "verify", {"findings": len(look.found.lines)}) as run:
        back = look.take_back(run.job)
    told = f"{len(back)} outputs taken back: run the same command again, and they are made anew"
    return replace(said, text=(*said.text, told), data={**said.data, "taken_back": back})


def _manifest_or_none(job: JobFolder) -> Manifest:
    """Return the slides of a job; none where the table is damaged, which its hash tells."""
    try:
        return tables.read_manifest(job)
    except (UsageError, ValueError, KeyError):
        if not job.record(job.manifest).is_file():
            raise
        return Manifest(())


def why(out: Path, slide: str) -> Said:
    """What became of one slide, and the command that mends it.

    Raises:
        UsageError: the folder is no job, or has no such slide.
    """
    from .why import explain

    job = JobFolder(out)
    return explain(job, tables.read_manifest(job), slide)


def tiling_of(job: JobFolder, settings: ExtractSettings) -> Tiling:
    """Return the folder of the tiles that these settings make."""
    return job.tiling(tiling_name(settings.tile, settings.mpp, settings.overlap))


def _here(settings: ExtractSettings, cluster: str | None) -> ExtractSettings:
    """Return the settings of an encoder that, where a cluster does the work, is only asked who it is."""
    return settings if cluster is None else replace(settings, device="cpu")


def _extract(
    run: Run,
    mine: Manifest,
    settings: ExtractSettings,
    encoder: Any,
    *,
    also: Sequence[Any] = (),
    cluster: ClusterSpec | None = None,
    force: bool,
    quiet: bool,
    offline: bool = False,
) -> Outcome:
    from .extract import Extraction
    from .extract import extract as extract_all

    run.notes += mine.notes
    with progress("features", "tiles" if cluster is None else "slides", quiet=quiet) as bar:
        work = Extraction(run.job, settings, encoder, run, bar, force=force, also=also)
        try:
            if cluster is None:
                outcome = extract_all(work, mine)
            else:
                from .cluster.stage import extract_on

                say = (lambda _: None) if quiet else warn
                outcome = extract_on(cluster, work, mine, offline=offline, say=say)
        finally:
            run.facts |= {"slides_done": len(work.fresh), "slides_skipped": len(work.skipped)}
            tables.write_slides(run.job, work.facts, work.failures, work.output)
    run_facts = {**outcome.to_json(), "outputs": len(outcome.outputs)}
    run.finish(outcome.status, outcome=run_facts, bottleneck=outcome.bottleneck)
    folder = work.output("x").parent.relative_to(run.job.root).as_posix()
    return replace(outcome, warnings=(*mine.notes, *outcome.warnings), more={"features": folder, **outcome.more})


def _stored(run: Run, outcome: Outcome, mine: Manifest, store: str) -> Outcome:
    """Bring the zarr store of the features up to date."""
    from .convert import update_store
    from .records import read_record

    folder = Path(str(outcome.more["features"]))
    url = str(run.job.root / folder.with_name(f"{folder.name}.zarr")) if store == "zarr" else store
    records = {one.slide_id: read_record(run.job, run.job.root / folder / f"{one.slide_id}.h5") for one in mine.entries}
    with Claims(run.job, "store") as claims, claims.hold("store", seconds=_STORE_WAIT):
        said = update_store(run.job, folder, [(name, one.sha256) for name, one in records.items() if one], url)
    return replace(outcome, text=(*outcome.text, said), more={**outcome.more, "store": url})


def _learn(
    job: JobFolder,
    manifest: Manifest,
    labels: Labels,
    settings: LearnSettings,
    *,
    name: str | None = None,
    features: str | None = None,
    force: bool = False,
    quiet: bool = False,
) -> Said:
    from . import learn, predictions
    from .feature_sets import choose_folder, load_features

    folder = choose_folder(job, features)
    loaded = load_features(job, folder, [entry.slide_id for entry in manifest.entries])
    name = safe_name(name or settings.head)
    run = Run(job, "train", {"model": name, "features": folder, **dataclasses.asdict(settings)}, list(labels.notes))
    with run:
        with alone(job, "models", name), progress("training", "epochs", quiet=quiet) as bar:
            sides, fresh = learn.train(run.job, name, loaded, labels, settings, bar, force=force)
        named: NamedModel = predictions.find_model(job, name)
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
    force: bool = False,
    quiet: bool = False,
) -> Said:
    from . import cross_validation, evaluating, predictions
    from .feature_sets import choose_folder, load_features

    folder = choose_folder(job, features)
    loaded = load_features(job, folder, [entry.slide_id for entry in manifest.entries])
    name = safe_name(name or f"{settings.head}_cv")
    folds = cross_validation.deal(loaded, labels, settings, given)
    run = Run(job, "train", {"model": name, "features": folder, **dataclasses.asdict(settings)}, list(labels.notes))
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
    data: dict[str, Any] = {
        "status": "done",
        "model": named.name,
        "new": fresh,
        "metrics": _told_of(test),
        "outputs": [_in(job, named.folder), _in(job, job.predictions(named.name))],
        "warnings": list(notes),
    }
    if not test:
        lines.append("no patient is held out: nothing says how good the model is")
        data["warnings"].append(lines[-1])
    return Said((*lines, *notes), data)


def _told_of(test: dict[str, Any] | None) -> dict[str, Any] | None:
    """What `--json` says of the held-out slides."""
    if not test or "figures" in test:
        return test
    return {key: test[key] for key in ("n", "n_patients", "auc", "auc_interval")}


def _heatmap_if_any(out: Path, model: str, **options: Any) -> Said:
    """Draw heatmaps where the head has attention; a job with another head is whole without them."""
    try:
        return heatmap(out, model, **options)
    except NoAttentionError as error:
        return Said((str(error),), {"status": "done", "warnings": [str(error)]})


def _whole(outcome: Outcome, steps: Sequence[Said], *, trained: bool) -> Outcome:
    lines = [line for step in steps for line in step.text]
    warnings = [text for step in steps for text in step.data.get("warnings", ())]
    if not trained:
        lines.insert(0, "features only: give --labels to train a model, or --model to predict with one")
    more = {key: step.data[key] for step in steps for key in ("model", "metrics", "report") if key in step.data}
    more = {**outcome.more, **more}
    outputs = [text for step in steps for text in step.data.get("outputs", ())]
    return replace(
        outcome,
        outputs=(*outcome.outputs, *outputs),
        warnings=tuple(dict.fromkeys((*outcome.warnings, *warnings))),
        text=(*outcome.text, *lines),
        more=more,
    )


def _column(rows: Mapping[str, Mapping[str, Any]], name: str) -> dict[str, str]:
    return {slide: str(row[name]) for slide, row in rows.items() if row.get(name)}


def _in(job: JobFolder, path: Path) -> str:
    return Path(os.path.relpath(path, job.root)).as_posix()


def _number(value: float | None) -> str:
    return "not defined" if value is None else f"{value:.3f}"
