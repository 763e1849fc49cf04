"""The two tables of a job: `manifest.csv` (what is to be done) and `slides.csv` (how far each slide came)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from wsi.address import is_url
from wsi.remote_path import RemotePath, path_of

from .claims import Claims
from .config import ARTIFACTS, load_settings
from .errors import UsageError
from .files import csv_bytes, read_csv
from .jobfolder import JobFolder, tiling_name
from .manifest import Manifest, SlideEntry, name_after_path, same_name
from .outcome import Failure
from .records import is_kept, keep, read_failure, read_record

SLIDE_COLUMNS = (
    "slide_id",
    "case_id",
    "path",
    "status",
    "stage",
    "reader",
    "width",
    "height",
    "mpp_x",
    "mpp_y",
    "mpp_source",
    "tissue_share",
    *(f"{name}_share" for name in ARTIFACTS),
    "n_tiles",
    "n_missing",
    "warning",
    "cause",
    "mend",
)
_OWN = ("slide_id", "path", "case_id", "mpp", "series")
_LONGEST_WAIT = 60.0
"""Seconds after which the tables are written although another run seems to: the next run makes them whole again."""


@contextmanager
def alone(job: JobFolder) -> Iterator[None]:
    """Change the tables alone: what other runs write into them meanwhile would be lost."""
    with Claims(job, "tables") as claims, claims.hold("tables", seconds=_LONGEST_WAIT):
        yield


def write_manifest(job: JobFolder, manifest: Manifest) -> None:
    """Write `manifest.csv`; paths are relative to the job folder, so that both can move together."""
    keep(job, job.manifest, _manifest_bytes(job, manifest))


def is_written(job: JobFolder, manifest: Manifest) -> bool:
    """Tell whether `manifest.csv` says all this already: of a thousand parts of an array, one then has to write it."""
    return is_kept(job, job.manifest, _manifest_bytes(job, manifest))


def _manifest_bytes(job: JobFolder, manifest: Manifest) -> bytes:
    more = sorted({name for entry in manifest.entries for name in entry.columns})
    rows = [
        {
            **entry.columns,
            "slide_id": entry.slide_id,
            "path": _relative(entry.path, job),
            "case_id": entry.case_id,
            "mpp": entry.mpp,
            "series": "|".join(path.name for path in entry.series),
        }
        for entry in manifest.entries
    ]
    return csv_bytes((*_OWN, *more), rows)


def read_manifest(job: JobFolder) -> Manifest:
    """Read `manifest.csv` back.

    Raises:
        UsageError: the folder is no job.
    """
    if not job.manifest.is_file():
        raise UsageError(
            f"{job.root}: no job lies here (no manifest.csv). Start one: slidemil extract SLIDES -o {job.root}"
        )
    entries = []
    for row in read_csv(job.manifest, strip=False):
        path = path_of(row["path"]) if is_url(row["path"]) else Path(os.path.normpath(job.root / row["path"]))
        series = tuple(path.parent / name for name in row.get("series", "").split("|") if name)
        more = {name: value for name, value in row.items() if name not in _OWN and value}
        mpp = float(row["mpp"]) if row.get("mpp") else None
        entries.append(SlideEntry(row["slide_id"], path, row["case_id"], mpp, more, series))
    return Manifest(tuple(entries))


def keep_cases(job: JobFolder, manifest: Manifest, cases: Mapping[str, str]) -> Manifest:
    """Keep whose slides they are, as the labels tell, for later predictions."""
    with alone(job):
        there = read_manifest(job).entries
        told = tuple(replace(entry, case_id=cases.get(entry.slide_id, entry.case_id)) for entry in there)
        if told != there:
            write_manifest(job, Manifest(told))
            _write_rows(job, Manifest(told), {})
    entries = tuple(replace(entry, case_id=cases.get(entry.slide_id, entry.case_id)) for entry in manifest.entries)
    return Manifest(entries, manifest.notes)


def join(job: JobFolder, new: Manifest) -> tuple[Manifest, Manifest]:
    """Add slides to those the job has; return the slides of this run, renamed where needed, and all of them.

    A slide of the same name from another place, while the first still lies where it was, gets a name of its
    own: nothing is overwritten.
    """
    old = {entry.slide_id: entry for entry in read_manifest(job).entries} if job.manifest.is_file() else {}
    mine: list[SlideEntry] = []
    notes = list(new.notes)
    for entry in new.entries:
        if _is_other(old.get(entry.slide_id), entry):
            others = {same_name(known.slide_id) for known in (*old.values(), *mine) if _is_other(known, entry)}
            renamed = name_after_path(entry, entry.path.parent.parent, others)
            notes.append(f"{entry.path.name} is called {renamed.slide_id}: the job has another {entry.slide_id}")
            entry = renamed
        elif entry.slide_id in old and entry.case_id == entry.slide_id:
            entry = replace(entry, case_id=old[entry.slide_id].case_id)  # what labels told earlier
        mine.append(entry)
    everything = {**old, **{entry.slide_id: entry for entry in mine}}
    ordered = tuple(everything[name] for name in sorted(everything))
    return replace(new, entries=tuple(mine), notes=tuple(notes)), Manifest(ordered)


def write_slides(
    job: JobFolder,
    facts: Mapping[str, Mapping[str, Any]],
    failures: Mapping[str, Failure],
    output: Callable[[str], Path],
    *,
    others: bool = True,
) -> None:
    """Write `slides.csv`: what this run found, what records tell of the others, and else the rows there were.

    Args:
        job: the job folder.
        facts: of slides that this run finished, or found finished.
        failures: of this run.
        output: slide → the feature file that this run makes of it.
        others: whether records are read of slides that this run did not look at; each of a thousand parts of a job
            array would read those of all, and the run of each part tells of its own.
    """
    found = {name: _done(facts[name]) for name in facts} | {name: _failed(failures[name]) for name in failures}
    with alone(job):
        manifest = read_manifest(job)
        rest = [entry.slide_id for entry in manifest.entries if entry.slide_id not in found] if others else []
        _write_rows(job, manifest, found | {name: _recorded(job, name, output(name)) for name in rest})


def _write_rows(job: JobFolder, manifest: Manifest, found: Mapping[str, Mapping[str, Any]]) -> None:
    before = {row["slide_id"]: row for row in read_slides(job)}
    rows: list[dict[str, Any]] = []
    for entry in manifest.entries:
        name = entry.slide_id
        row = {"slide_id": name, "case_id": entry.case_id, "path": _relative(entry.path, job)}
        kept = {key: value for key, value in before.get(name, {}).items() if key not in row}
        rows.append(row | dict(found.get(name) or kept or {"status": "pending"}))
    keep(job, job.slides, csv_bytes(SLIDE_COLUMNS, rows))


def _recorded(job: JobFolder, name: str, output: Path) -> dict[str, Any]:
    """Return what the records of other runs tell of a slide; empty where they tell nothing."""
    record, failed = read_record(job, output), read_failure(job, output)
    if record is not None:
        return _done(record.facts)
    return {} if failed is None else _failed(Failure(name, failed.cause, failed.mend))


def _done(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {"status": "done", "stage": "features", **facts}


def _failed(failure: Failure) -> dict[str, Any]:
    told = {"cause": " ".join(failure.cause.split()), "mend": " ".join(failure.mend.split())}
    return {"status": "failed", "stage": "extract", **told}


def read_slides(job: JobFolder) -> Sequence[Mapping[str, str]]:
    """Read `slides.csv`; empty where no run came so far."""
    return read_csv(job.slides, strip=False) if job.slides.is_file() else []


def rows_by_records(job: JobFolder) -> Sequence[Mapping[str, str]]:
    """Return the rows of `slides.csv`, with what a run that was killed, or still goes on, has found since."""
    rows = {row["slide_id"]: dict(row) for row in read_slides(job)}
    done, failed = (_named_in(job.root / tree) for tree in (".done", ".failed"))
    scales = _scales(job)
    done = {name: path for name, path in done.items() if _at_all(scales, job, path)}
    for entry in read_manifest(job).entries:
        name = entry.slide_id
        row = rows.setdefault(name, {"slide_id": name, "status": "pending"})
        if row.get("status") == "failed" and name not in failed and name in done:
            rows[name] = {"slide_id": name, **_told_by_record(job, done[name])}
        elif row.get("status") == "pending" and name in failed:
            known = read_failure(job, failed[name])
            row |= _failed(Failure(name, known.cause, known.mend)) if known else {}
        elif row.get("status") == "pending" and name in done:
            row |= _told_by_record(job, done[name])
    return list(rows.values())


def _told_by_record(job: JobFolder, output: Path) -> dict[str, str]:
    """Return the row of a slide that is done, as text; what of its record cannot be read is left out."""
    record = read_record(job, output)
    facts = {} if record is None else record.facts
    return {name: str(value) for name, value in _done(facts).items() if value is not None}


def _scales(job: JobFolder) -> tuple[str, ...]:
    """Name the folders of the tiles that `job.yaml` asks for, where they are several; it may be written by hand."""
    try:
        asked = load_settings(job.settings).extract
    except UsageError:
        return ()
    several = len(asked.scales) > 1
    return tuple(tiling_name(asked.tile, mpp, asked.overlap) for mpp in asked.scales) if several else ()


def _at_all(scales: Sequence[str], job: JobFolder, path: Path) -> bool:
    """Tell whether features like those at `path` are recorded at all of some scales."""
    inside = Path(path.parent.name) / path.name
    return all(job.record(job.root / scale / inside).is_file() for scale in scales)


def _named_in(tree: Path) -> dict[str, Path]:
    """Return slide → feature file of all records in a tree."""
    found = tree.glob("*/features_*/*.h5.json")
    return {path.name.removesuffix(".h5.json"): tree.parent / path.relative_to(tree).with_suffix("") for path in found}


def _relative(path: Path, job: JobFolder) -> str:
    if isinstance(path, RemotePath):
        return str(path)
    return Path(os.path.relpath(path, job.root)).as_posix()


def _is_other(known: SlideEntry | None, entry: SlideEntry) -> bool:
    """Tell whether a slide of the job is another than this one, and still lies where it was."""
    if known is not None and (isinstance(known.path, RemotePath) or isinstance(entry.path, RemotePath)):
        return str(known.path) != str(entry.path)
    if known is not None and os.path.abspath(known.path) == os.path.abspath(entry.path):  # noqa: PTH100
        return False  # told without a look at the disk: each part of a job array asks this of all slides
    try:
        return known is not None and known.path.exists() and not known.path.samefile(entry.path)
    except OSError:
        return known is not None and known.path != entry.path
