"""The stage behind `slidemil heatmap`: model and features → explanations, and what they are worth."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import tables_of_job as tables
from .alone import alone
from .errors import ExitCode, JobError, UsageError
from .jobfolder import JobFolder
from .manifest import SlideEntry
from .outcome import Said
from .progress import progress
from .provenance import Run
from .records import read_record
from .selection import read_selection
from .units import counted

if TYPE_CHECKING:
    from .explaining import Heatmaps


def heatmap(
    out: Path,
    model: str,
    *,
    methods: Sequence[str] = ("attention",),
    slides: Sequence[str] = (),
    select: str | None = None,
    target: str | None = None,
    scale: str = "log-ratio",
    zarr: bool = False,
    compare: bool = False,
    truth: Path | None = None,
    concepts: Path | None = None,
    weights: str | None = None,
    features: str | None = None,
    limit: int | None = None,
    force: bool = False,
    offline: bool = False,
    quiet: bool = False,
) -> Said:
    """Model and features → pictures and data of why the model says what it says.

    Raises:
        UsageError: there is no such method, class or slide; or the head or the encoder does not support it.
        NothingMatchedError: the selection takes no slide.
    """
    from . import predictions
    from .comparing import compare as compared
    from .comparing import lines as table
    from .concepts import lines as told_of
    from .concepts import score_concepts
    from .explainable import Means, check_class, choose_methods, means_of, needs_encoder
    from .explaining import Wish, draw_heatmaps
    from .feature_sets import choose_folder, load_features
    from .heatmap_files import SCALES
    from .true_regions import check_folder

    job = JobFolder(out)
    everything = tables.read_manifest(job).entries
    entries = chosen(everything, slides, select)[:limit]
    named = predictions.find_model(job, model)
    if scale not in SCALES:
        raise UsageError(f"--scale {scale}: there are {', '.join(SCALES)}.")
    check_class(named, target)
    if truth is not None and not compare:
        raise UsageError("--truth: true regions are for --compare. Add it, or leave --truth out.")
    check_folder(truth)
    if compare and not named.model.classes:
        raise UsageError(
            f"--compare: deletion and insertion follow the probability of a class; the model {named.name} answers "
            f"another question ({named.model.task.kind}). Leave --compare out."
        )
    folder = choose_folder(job, features, named.model.config.get("encoder"))
    if slides:
        for one in folder.split(","):
            _check_features(job, one, entries)
    # comparing trains the head again, on slides that need not be among those that are drawn
    damaged: dict[str, JobError] = {}
    needed = [entry.slide_id for entry in (everything if compare else entries)]
    loaded = load_features(job, folder, needed, damaged=damaged)
    predictions.check_fits(named, loaded)
    asked = needs_encoder(methods) or concepts is not None
    means = means_of(job, loaded, weights, offline=offline) if asked else Means()
    wish = Wish(choose_methods(methods, named, means), target, scale, zarr)
    told = {"model": named.name, "model_sha256": named.sha256, "features": folder, "method": ",".join(wish.methods)}
    with Run(job, "heatmap", told) as run, alone(job, "heatmaps", named.name):
        with progress("heatmaps", "slides", quiet=quiet) as bar:
            done = draw_heatmaps(run.job, named, loaded, entries, wish, means, bar, damaged=damaged, force=force)
        lines, data = _told(run.job, named.name, wish.methods, done)
        if compare:
            failed = {failure.slide for failure in done.failed}
            whole = [entry for entry in entries if entry.slide_id not in failed]
            with progress("comparing", "slides", quiet=quiet) as bar:
                found = compared(run.job, named, loaded, whole, wish.methods, target, truth, means, bar)
            lines += table(found)
            data["comparison"] = list(found.rows)
            data["outputs"].append(_in(job, found.path))
        if concepts is not None:
            scores, path = score_concepts(run.job, named, loaded, entries, concepts, target, means)
            lines += told_of(scores, path, named)
            data["concepts"] = [asdict(score) for score in scores]
    return Said((*lines, *done.warnings), data, ExitCode.SOME_FAILED if done.failed else ExitCode.DONE)


def _told(job: JobFolder, model: str, methods: Sequence[str], done: Heatmaps) -> tuple[list[str], dict[str, Any]]:
    """Say what was drawn, for people and for programs."""
    where = job.heatmaps(model)
    lines = [f"{counted(len(done.drawn), 'heatmap')} drawn, {len(done.skipped)} were there already → {where}"]
    lines += [f"  failed  {f.slide}: {f.cause}. {f.mend}" for f in done.failed]
    return lines, {
        "status": "partial" if done.failed else "done",
        "model": model,
        "method": ",".join(methods),
        "drawn": len(done.drawn),
        "skipped": len(done.skipped),
        "failed": [asdict(failure) for failure in done.failed],
        "outputs": [_in(job, where / f"{name}.png") for name in done.drawn],
        "warnings": done.warnings,
    }


def chosen(entries: Sequence[SlideEntry], wanted: Sequence[str], select: str | None = None) -> Sequence[SlideEntry]:
    """Return the slides of these names, all where none is named; of a selection, where there is one.

    Raises:
        UsageError: a slide that is named does not exist, or the selection does not take it.
        NothingMatchedError: the selection takes no slide.
    """
    known = {entry.slide_id: entry for entry in entries}
    strangers = [name for name in wanted if name not in known]
    if strangers:
        raise UsageError(f"--slide {strangers[0]}: no such slide; there are {', '.join(list(known)[:5])} …")
    picked = list(entries) if select is None else read_selection(select).of(entries)
    left = [name for name in wanted if known[name] not in picked]
    if left:
        raise UsageError(f"--slide {left[0]}: --select {select} does not take it. Leave one of the two out.")
    return [known[name] for name in wanted] if wanted else picked


def _check_features(job: JobFolder, folder: str, entries: Sequence[SlideEntry]) -> None:
    """Refuse slides asked for by name that have no features."""
    lacking = [
        e.slide_id
        for e in entries
        if read_record(job, job.root / folder / f"{e.slide_id}.h5") is None
        or not (job.root / folder / f"{e.slide_id}.h5").is_file()
    ]
    if lacking:
        raise UsageError(
            f"--slide {lacking[0]}: it has no features in {folder}, so there is nothing to explain. "
            f"`slidemil status {job.root}` tells why; `slidemil extract SLIDES -o {job.root}` makes them."
        )


def _in(job: JobFolder, path: Path) -> str:
    return Path(os.path.relpath(path, job.root)).as_posix()
