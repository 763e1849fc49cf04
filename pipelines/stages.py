"""One plain function per verb: files in → files out, and a result that can be printed.

Those of features, of learning and of heatmaps have files of their own; here are the whole job and what looks at one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from . import shards
from . import tables_of_job as tables
from .config import Settings
from .console import exit_code_of
from .encoding import encoders_of
from .errors import ExitCode, NoAttentionError, UsageError
from .extract_stage import extract, here, plan, tiling_of
from .heatmap_stage import heatmap
from .jobfolder import JobFolder
from .learn_stage import evaluate, learn_one, predict, train
from .manifest import Manifest, Sources, find_slides
from .outcome import Outcome, Said
from .progress import progress
from .provenance import Run
from .records import publish
from .scales import scales_of
from .targets import check_job
from .training_table import training_table
from .units import counted

__all__ = [
    "evaluate",
    "extract",
    "heatmap",
    "plan",
    "predict",
    "report",
    "run",
    "status",
    "tiling_of",
    "train",
    "verify",
    "why",
]


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
    local = replace(settings, extract=here(settings.extract, cluster))
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
    folder, picked = str(outcome.more["features"]), Sources.of(slides).select
    steps: list[Said] = []
    problem, code = None, ExitCode.DONE
    try:
        if labels is not None:
            keyfile = Sources.of(slides).keyfile
            table = training_table(labels, manifest.entries, target, settings.train, keyfile=keyfile)
            how: dict[str, Any] = {"name": name, "features": folder, "select": picked, "force": force, "quiet": quiet}
            learned = learn_one(job, manifest, table, settings.train, **how)
            steps.append(learned)
            model = str(learned.data["model"])
        elif model is not None:
            steps.append(predict(out, model, features=folder, select=picked))
        if model is not None:
            drawn = _heatmap_if_any(out, model, features=folder, force=force, quiet=quiet)
            steps.append(drawn)
            if drawn.exit_code:
                problem, code = f"{counted(len(drawn.data['failed']), 'heatmap')} could not be drawn", drawn.exit_code
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
    from .trainer import check_head

    check_head(settings.train)
    if labels is not None:
        from .learn import check_labels

        table = training_table(labels, find_slides(slides).entries, target, settings.train)
        check_labels(labels, table, settings.train)
    if model is not None:
        from .features import same_passport
        from .joined import joined_passport
        from .passports import passport_of
        from .predictions import find_model

        named = find_model(job, model)
        encoder = encoders_of(settings.extract, offline=offline)[0]
        each = [passport_of(encoder, one) for one in scales_of(settings.extract)]
        made = each[0] if len(each) == 1 else joined_passport(each)
        known, what = named.model.config.get("encoder") or made, f"model {named.name} on these settings"
        same_passport(known, made, what=what, but=("augment",))


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
