"""The two tables of a job: `manifest.csv` (what is to be done) and `slides.csv` (how far each slide came)."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from .config import ARTIFACTS
from .errors import UsageError
from .files import read_csv, write_csv
from .jobfolder import JobFolder
from .manifest import Manifest, SlideEntry, name_after_path, same_name
from .outcome import Failure

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


def write_manifest(job: JobFolder, manifest: Manifest) -> None:
    """Write `manifest.csv`; paths are relative to the job folder, so that both can move together."""
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
    write_csv(job.manifest, (*_OWN, *more), rows)


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
        path = Path(os.path.normpath(job.root / row["path"]))
        series = tuple(path.parent / name for name in row.get("series", "").split("|") if name)
        more = {name: value for name, value in row.items() if name not in _OWN and value}
        mpp = float(row["mpp"]) if row.get("mpp") else None
        entries.append(SlideEntry(row["slide_id"], path, row["case_id"], mpp, more, series))
    return Manifest(tuple(entries))


def keep_cases(job: JobFolder, manifest: Manifest, cases: Mapping[str, str]) -> Manifest:
    """Keep whose slides they are, as the labels tell, for later predictions."""
    entries = tuple(replace(entry, case_id=cases.get(entry.slide_id, entry.case_id)) for entry in manifest.entries)
    if entries != manifest.entries:
        write_manifest(job, Manifest(entries))
        write_slides(job, Manifest(entries), {}, {})
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
    manifest: Manifest,
    facts: Mapping[str, Mapping[str, Any]],
    failures: Mapping[str, Failure],
) -> None:
    """Write `slides.csv`; slides this run did not touch keep the row they had."""
    before = {row["slide_id"]: row for row in read_slides(job)}
    rows: list[dict[str, Any]] = []
    for entry in manifest.entries:
        name = entry.slide_id
        row = {"slide_id": name, "case_id": entry.case_id, "path": _relative(entry.path, job)}
        if name in facts:
            row |= {"status": "done", "stage": "features", **facts[name]}
        elif name in failures:
            failure = failures[name]
            row |= {
                "status": "failed",
                "stage": "extract",
                "cause": " ".join(failure.cause.split()),
                "mend": " ".join(failure.mend.split()),
            }
        else:
            kept = {key: value for key, value in before.get(name, {}).items() if key not in row}
            row |= kept or {"status": "pending"}
        rows.append(row)
    write_csv(job.slides, SLIDE_COLUMNS, rows)


def read_slides(job: JobFolder) -> Sequence[Mapping[str, str]]:
    """Read `slides.csv`; empty where no run came so far."""
    return read_csv(job.slides, strip=False) if job.slides.is_file() else []


def rows_by_records(job: JobFolder) -> Sequence[Mapping[str, str]]:
    """Return the rows of `slides.csv`, with slides a killed run had finished: their records say so."""
    rows = {row["slide_id"]: dict(row) for row in read_slides(job)}
    known = {path.name.removesuffix(".h5.json") for path in (job.root / ".done").glob("*/features_*/*.h5.json")}
    for entry in read_manifest(job).entries:
        row = rows.setdefault(entry.slide_id, {"slide_id": entry.slide_id, "status": "pending"})
        if row.get("status") != "failed" and entry.slide_id in known:
            row["status"] = "done"
    return list(rows.values())


def _relative(path: Path, job: JobFolder) -> str:
    return Path(os.path.relpath(path, job.root)).as_posix()


def _is_other(known: SlideEntry | None, entry: SlideEntry) -> bool:
    """Tell whether a slide of the job is another than this one, and still lies where it was."""
    try:
        return known is not None and known.path.exists() and not known.path.samefile(entry.path)
    except OSError:
        return known is not None and known.path != entry.path
