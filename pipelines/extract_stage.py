"""The stages behind `slidemil extract` and `slidemil plan`: slides → features, and what that would take."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import pseudonyms, shards
from . import tables_of_job as tables
from .claims import Claims
from .cluster.spec import ClusterSpec, parse_cluster
from .company import check_company
from .config import ExtractSettings, Settings, as_yaml
from .console import warn
from .encoding import devices_of, encoders_of, settled
from .errors import JobError, UsageError
from .files import sweep_leftovers
from .forecast import gone
from .helpers import arguments_of, helping
from .jobfolder import JobFolder, Tiling, tiling_name
from .manifest import Manifest, Sources
from .outcome import Outcome, Said
from .progress import progress
from .provenance import Run
from .records import keep
from .scales import Scale, facts_of_all, facts_of_each, scales_of, standing, together
from .stain_target import check_reference
from .targets import check_job
from .tissue_kept import keeping
from .tissue_of_slide import check_masks

if TYPE_CHECKING:
    from .extraction import Extraction

_STORE_WAIT = 600.0
"""Seconds after which a store is written although another run seems to write it: each slide is whole or not there."""


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
    check_company(job, settings.extract)
    found = pseudonyms.slides_of(slides, job)
    there = {entry.slide_id for entry in found.entries}
    if limit is not None:
        found = replace(found, entries=found.entries[:limit])
    check_reference(settings.extract)
    encoder, *also = encoders_of(here(settings.extract, cluster), offline=offline)
    if part is None or part.index == 0:  # it looks at every file of the job
        sweep_leftovers(out)
    mine, everything = tables.join(job, found)
    mine = mine if part is None else shards.take(part, mine, job)
    told = check_masks(settings.extract, job, [entry.slide_id for entry in mine.entries])
    with Run(job, "extract", {"slides": Sources.of(slides).names, **dataclasses.asdict(settings)}) as run:
        if not tables.is_written(job, everything):
            with tables.alone(job):
                mine, everything = tables.join(job, found)
                mine = mine if part is None else shards.take(part, mine, job)
                tables.write_manifest(run.job, everything)
        keep(run.job, job.settings, as_yaml(settings).encode())
        planned, missed = gone(job, {*there, *(entry.slide_id for entry in mine.entries)})
        mine = replace(mine, notes=(*mine.notes, *told, *((missed,) if missed else ())))
        run.facts |= {"followed_plan": planned} if planned else {}
        how: dict[str, Any] = {"also": also, "cluster": spec, "force": force, "offline": offline, "quiet": quiet}
        how["part"] = part
        devices = devices_of(settings.extract.device)[: 1 if force or spec else None]  # force: each would redo others'
        with helping(devices, arguments_of(slides, limit, shard, offline=offline), out, settings) as own:
            outcome = _extract(
                run, mine, settled(own.extract, encoder) if spec is None else own.extract, encoder, **how
            )
        if settings.extract.store:
            for folder in str(outcome.more["features"]).split(","):
                outcome = _stored(run, outcome, mine, Path(folder), settings.extract.store)
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
        UsageError: `seconds` is no number of seconds.
        NothingMatchedError: no slide was found.
        mil.WeightsError: the encoder has no weights.
    """
    from .planning import all_plans, make_plan, say_plan
    from .planning import keep as keep_plan

    if not (0 < seconds < math.inf):
        raise UsageError(f"--probe {seconds}: give a number of seconds, e.g. --probe 20.")
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
    scales = scales_of(settings.extract)
    said: list[Said] = []
    for one in scales:
        with progress("plan", "slides", quiet=quiet) as bar:
            made = make_plan(mine, one, encoder, job, seconds / len(scales), force=force, bar=bar)
        if job is not None:
            run = Run(job, "plan", {"slides": Sources.of(slides).names, **dataclasses.asdict(settings)})
            keep_plan(made, run, one, encoder)
        said.append(say_plan(made, one, encoder, (*mine.notes, *told)))
    return said[0] if len(said) == 1 else all_plans(scales, said)


def tiling_of(job: JobFolder, settings: ExtractSettings) -> Tiling:
    """Return the folder of the tiles that these settings make."""
    return job.tiling(tiling_name(settings.tile, settings.mpp, settings.overlap))


def here(settings: ExtractSettings, cluster: str | None) -> ExtractSettings:
    """Return the settings of an encoder that, where a cluster does the work, is only asked who it is."""
    return settings if cluster is None else replace(settings, device="cpu")


def _extract(
    run: Run, mine: Manifest, settings: ExtractSettings, encoder: Any, *, part: shards.Shard | None, **how: Any
) -> Outcome:
    """Extract at each µm/px, and say once in tables and records what all came to."""
    run.notes += mine.notes
    scales = scales_of(settings)
    works: list[Extraction] = []
    done: list[Scale] = []
    try:
        with keeping(run.job, several=len(scales) > 1):
            done += [_at_scale(run, mine, one, encoder, works, several=len(scales) > 1, **how) for one in scales]
    except BaseException:
        with contextlib.suppress(JobError):  # of a disk that is full, what met it first tells how much is needed
            _tell_slides(run, works, scales, part)
        raise
    _tell_slides(run, works, scales, part)
    if len(done) > 1:
        run.facts |= facts_of_all(done)
    outcome = together(done)
    run_facts = {**outcome.to_json(), "outputs": len(outcome.outputs)}
    run.finish(outcome.status, outcome=run_facts, bottleneck=outcome.bottleneck)
    return replace(outcome, warnings=(*mine.notes, *outcome.warnings))


def _tell_slides(
    run: Run, works: Sequence[Extraction], scales: Sequence[ExtractSettings], part: shards.Shard | None
) -> None:
    """Put what has become of the slides so far into the record of the run, and into the table."""
    facts, failures = standing(works, len(scales))
    run.facts |= {"slides_done": len({name for work in works for name in work.fresh})}
    run.facts |= {"slides_skipped": len(works[0].skipped) if works else 0}
    if works and (part is None or part.writes_table):
        last = tiling_of(run.job, scales[-1])

        def output(name: str) -> Path:
            return last.features(works[0].folder_name, name)

        tables.write_slides(run.job, facts, failures, output, others=part is None)


def _at_scale(
    run: Run,
    mine: Manifest,
    settings: ExtractSettings,
    encoder: Any,
    works: list[Extraction],
    *,
    several: bool,
    also: Sequence[Any] = (),
    cluster: ClusterSpec | None = None,
    force: bool,
    quiet: bool,
    offline: bool = False,
) -> Scale:
    """Extract at one µm/px; the extraction stands in `works` from the first, whatever becomes of it."""
    from .extract import extract as extract_all
    from .extraction import Extraction

    title = f"features at {settings.mpp:g} µm/px" if several else "features"
    with progress(title, "tiles" if cluster is None else "slides", quiet=quiet) as bar:
        work = Extraction(run.job, settings, encoder, run, bar, force=force, also=also)
        works.append(work)
        if cluster is None:
            outcome = extract_all(work, mine)
        else:
            from .cluster.stage import extract_on

            say = (lambda _: None) if quiet else warn
            outcome = extract_on(cluster, work, mine, offline=offline, say=say)
    return Scale(work, outcome, facts_of_each(run.facts))


def _stored(run: Run, outcome: Outcome, mine: Manifest, folder: Path, store: str) -> Outcome:
    """Bring the zarr store of a feature folder up to date."""
    from .convert import update_store
    from .records import read_record

    url = str(run.job.root / folder.with_name(f"{folder.name}.zarr")) if store == "zarr" else store
    records = {one.slide_id: read_record(run.job, run.job.root / folder / f"{one.slide_id}.h5") for one in mine.entries}
    with Claims(run.job, "store") as claims, claims.hold("store", seconds=_STORE_WAIT):
        said = update_store(run.job, folder, [(name, one.sha256) for name, one in records.items() if one], url)
    urls = [*filter(None, [outcome.more.get("store")]), url]
    return replace(outcome, text=(*outcome.text, said), more={**outcome.more, "store": ",".join(urls)})
