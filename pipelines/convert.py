"""`slidemil convert` and `slidemil check`: feature files from and to other tools."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from .errors import CheckFailedError, ExitCode, JobError, NothingMatchedError, UsageError
from .features import coords_bytes, decisive, feature_bytes
from .files import open_h5, read_csv
from .formats import NAMES, adapter, kind_of, read, zarr_store
from .formats.slide_features import Given, SlideFeatures
from .formats.trident import attributes_of
from .jobfolder import JobFolder, tiling_name
from .manifest import Manifest, SlideEntry
from .outcome import Said
from .records import finish
from .slide_work import passport_name
from .targets import check_layout
from .units import counted

_APART = ("patches", "tiles", "heatmaps", "models", ".done", ".failed", ".state")
_SLOW_CHUNK = 256
_EXAMPLES = 3
_NO_NUMBERS = "values that are no numbers"
_SUPPOSED = Given(mpp=0.5, footprint=512)
"""What has to be said of some formats, where it does not matter: for a look."""


@dataclass(frozen=True)
class Found:
    """One feature file.

    Attributes:
        path: the file; of a zarr store, the store.
        kind: its format.
    """

    path: Path
    kind: str


def convert(
    sources: Sequence[str],
    out: str,
    to: str,
    *,
    came_from: str | None = None,
    given: Given | None = None,
    slides: Path | None = None,
) -> Said:
    """Features of other tools → ours, and back.

    Args:
        sources: files, folders (searched recursively), or zarr stores.
        out: folder to write to; for `zarr` a folder or an fsspec URL.
        to: the format to write; `slidemil` makes a job folder that `train` and `predict` take.
        came_from: the format of the sources, where content alone must not decide.
        given: what the user says of all slides.
        slides: CSV with `slide_id` and `mpp` (and `footprint`), for slides that differ.

    Raises:
        NothingMatchedError: no feature file was found.
        UsageError: there is no such format, or it would be written among what is read.
        CheckFailedError: features that may not be mixed in one store.
    """
    if to != "zarr":
        adapter(to)
    given = given or Given()
    files = _files_of(sources, came_from)
    check_layout(out, to, sources, [one.path for one in files])
    told = _told(slides)
    done: list[SlideFeatures] = []
    failed: list[str] = []
    notes: Counter[str] = Counter()
    writer = _writer(to, out)
    for label, load in _each(sources, files, given, told):
        try:
            slide = load()
            if not np.isfinite(slide.features).all():
                raise CheckFailedError(f"{label}: {_NO_NUMBERS}. Extract the slide anew.")
            writer(slide)
        except (CheckFailedError, JobError) as error:
            failed.append(str(error) if label in str(error) else f"{label}: {error}")
            continue
        notes.update(slide.notes)
        done.append(replace(slide, features=slide.features[:0], xy=slide.xy[:0]))
    _close(to, out, done)
    lines = [f"{counted(len(done), 'slide')} → {out} ({to})"]
    warnings = [f"{note} ({counted(count, 'slide')})" for note, count in notes.items()]
    lines += [f"  failed  {text}" for text in failed] + [f"  note    {text}" for text in warnings]
    told_all = {"done": len(done), "failed": failed, "warnings": warnings, "to": to, "out": out}
    status = "done" if not failed else "partial" if done else "failed"
    code = ExitCode.DONE if not failed else ExitCode.SOME_FAILED if done else ExitCode.CHECK_FAILED
    return Said(tuple(lines), {"status": status, **told_all}, code)


def check(sources: Sequence[str]) -> Said:
    """Say what each file is, and whether all may be mixed; exit code 7 where not, or where one is damaged.

    Raises:
        NothingMatchedError: no feature file was found.
    """
    lines: list[str] = []
    rows: list[dict[str, Any]] = []
    bad: list[str] = []
    files = _files_of(sources)
    supposed = dict(_each(sources, files, _SUPPOSED, {}))
    for label, load in _each(sources, files, Given(), {}):
        try:
            slide, lacks = _looked_at(load, supposed[label])
        except (CheckFailedError, JobError) as error:
            bad.append(str(error))
            lines.append(f"BAD   {error}")
            continue
        problem = _values(slide)
        advice = "; ".join(filter(None, (lacks, _advice(Path(label)))))
        kind = "zarr" if zarr_store.is_store(label.partition("#")[0]) else kind_of(Path(label))
        rows.append(_row(label, kind, slide))
        lines.append(_line(rows[-1]) + (f"  ({advice})" if advice else ""))
        if problem:
            bad.append(f"{label}: {problem}")
            lines.append(f"BAD   {label}: {problem}")
    verdict, differ = _mixable(rows)
    lines.append(verdict)
    told = {"status": "failed" if bad or differ else "done", "files": rows, "bad": bad, "differ": differ}
    return Said(tuple(lines), told, ExitCode.CHECK_FAILED if bad or differ else ExitCode.DONE)


def _looked_at(load: Any, suppose: Any) -> tuple[SlideFeatures, str]:
    """Return a slide for a look; what its file does not say is supposed, and told."""
    try:
        return load(), ""
    except CheckFailedError as error:
        if "--slide-mpp" not in str(error) and "--footprint" not in str(error):
            raise
        return suppose(), "its file does not say how large its tiles are on level 0: convert asks for it"


def update_store(job: JobFolder, folder: Path, slides: Sequence[tuple[str, str]], url: str) -> str:
    """Bring the zarr store of a job's feature folder up to date; says what was done.

    Args:
        job: the job.
        folder: of the features, relative to it.
        slides: name and SHA-256 of each finished slide.
        url: the store.
    """

    def reader(name: str) -> Any:
        return lambda: read(job.root / folder / f"{name}.h5", Given(), kind="slidemil")

    written, kept = zarr_store.write(url, [(name, digest, reader(name)) for name, digest in slides])
    return f"zarr store {url}: {written} slides written, {kept} were there"


def find(sources: Sequence[str], came_from: str | None = None) -> list[Found]:
    """Return the feature files of files and folders; a tensor whose HDF5 lies beside it is not taken twice.

    Raises:
        NothingMatchedError: there is none.
        UsageError: a source does not exist.
    """
    found: list[Found] = []
    seen: list[str] = []
    for source in sources:
        path = Path(source)
        if not path.exists():
            raise UsageError(f"{source}: no such file or folder.")
        if path.is_file():
            found.append(Found(path, came_from or kind_of(path)))
            continue
        files = sorted(one for kind in ("*.h5", "*.pt", "*.npz") for one in path.rglob(kind))
        whole = {one.stem for one in files if one.parent.name == "h5_files"}
        for one in files:
            seen.append(one.name)
            kind = _kind_in_folder(one, path, whole)
            if kind is not None:
                found.append(Found(one, came_from or kind))
    if not found:
        examples = ", ".join(seen[:_EXAMPLES]) or "nothing of that kind"
        raise NothingMatchedError(f"no feature file in {', '.join(sources)} (seen: {examples}).")
    return found


def _kind_in_folder(path: Path, root: Path, whole: set[str]) -> str | None:
    """Return the format of a file among others; None for coordinates, scores, slide features and copies."""
    above = path.relative_to(root).parts[:-1]
    if path.parent.name == "pt_files" and path.stem in whole:
        return None
    if any((part in _APART and part != "patches") or part.startswith("slide_features") for part in above):
        return None
    try:
        return kind_of(path)
    except CheckFailedError:
        passed_over = path.parent.name == "patches" or path.suffix == ".npz" or path.name.endswith(".scores.h5")
        return None if passed_over else "unknown"


def _files_of(sources: Sequence[str], came_from: str | None = None) -> list[Found]:
    """Return the feature files of all sources that are no stores."""
    files = [source for source in sources if not zarr_store.is_store(source)]
    return find(files, came_from) if files else []


def _each(
    sources: Sequence[str], files: Sequence[Found], given: Given, told: dict[str, Given]
) -> Iterator[tuple[str, Any]]:
    """Yield a label and what reads it, for every slide of the stores among the sources, and of the files."""
    for store in filter(zarr_store.is_store, sources):
        for slide in zarr_store.read(store):
            yield f"{store}#{slide.slide_id}", lambda slide=slide: slide
    for one in files:
        own = told.get(one.path.stem, told.get(one.path.name.partition(".")[0], Given()))
        merged = Given(
            mpp=own.mpp or given.mpp,
            footprint=own.footprint or given.footprint,
            tile=given.tile,
            encoder=given.encoder,
        )
        yield (
            str(one.path),
            lambda one=one, merged=merged: read(one.path, merged, kind=None if one.kind == "unknown" else one.kind),
        )


def _told(slides: Path | None) -> dict[str, Given]:
    """Return what a table says of single slides."""
    if slides is None:
        return {}
    rows = read_csv(slides)
    if not rows or "slide_id" not in rows[0]:
        raise UsageError(f"{slides}: it needs a column slide_id, and mpp or footprint.")
    try:
        return {
            row["slide_id"]: Given(
                mpp=float(row["mpp"]) if row.get("mpp") else None,
                footprint=int(row["footprint"]) if row.get("footprint") else None,
            )
            for row in rows
        }
    except ValueError as error:
        raise UsageError(f"{slides}: {error}.") from error


def _writer(to: str, out: str) -> Any:
    if to == "zarr":
        root = zarr_store.open_store(out, "a")
        return lambda slide: zarr_store.add(root, slide)
    if to == "slidemil":
        return lambda slide: _into_job(slide, JobFolder(Path(out)))
    module = adapter(to)
    return lambda slide: module.write(slide, Path(out))


def _into_job(slide: SlideFeatures, job: JobFolder) -> None:
    """Write coordinates and features of one slide into a job, with their records."""
    slide.needs_mpp("a job of slidemil")
    tiling = job.tiling(tiling_name(slide.tile, slide.cohort_mpp, slide.overlap))
    attributes, name = attributes_of(slide), slide.slide_id
    parts = {"converted": decisive(slide.passport)}
    finish(job, tiling.patches(name), coords_bytes(attributes, slide.xy), parts)
    data = feature_bytes(attributes, slide.xy, slide.features, (), slide.passport, {})
    path = tiling.features(passport_name({"id": slide.encoder}), name)
    facts: dict[str, Any] = {
        "n_tiles": len(slide.xy),
        "n_missing": 0,
        "width": slide.slide_size[0],
        "height": slide.slide_size[1],
    }
    assert slide.mpp is not None, "asked for above"
    facts |= {"mpp_x": slide.mpp[0], "mpp_y": slide.mpp[1], "mpp_source": "converted", "reader": "converted"}
    finish(job, path, data, parts, facts, (tiling.patches(name),))


def _close(to: str, out: str, done: Sequence[SlideFeatures]) -> None:
    """Write what belongs to all slides together."""
    if to == "zarr":
        zarr_store.close(zarr_store.open_store(out, "a"))
    if to == "slidemil" and done:
        from .tables_of_job import alone, join, write_manifest, write_slides

        job = JobFolder(Path(out))
        entries = tuple(SlideEntry(one.slide_id, Path(out) / one.slide_id, one.slide_id) for one in done)
        with alone(job):
            write_manifest(job, join(job, Manifest(entries))[1])
        tiling = job.tiling(tiling_name(done[0].tile, done[0].cohort_mpp, done[0].overlap))
        write_slides(job, {}, {}, lambda name: tiling.features(passport_name({"id": done[0].encoder}), name))


def _values(slide: SlideFeatures) -> str | None:
    """Return what is wrong with the values themselves."""
    if not np.isfinite(slide.features).all():
        return _NO_NUMBERS
    if len(slide.xy) and (slide.xy < 0).any():
        return "tiles outside the slide"
    if len(np.unique(slide.xy, axis=0)) < len(slide.xy):
        return "two tiles at one place"
    return None


def _advice(path: Path) -> str:
    """Return what makes a file slow."""
    if path.suffix != ".h5" or not path.is_file():
        return ""
    with open_h5(path) as file:
        data = file.get("features", file.get("feats"))
        chunks = getattr(data, "chunks", None)
        if chunks and chunks[0] < _SLOW_CHUNK and len(data) > chunks[0]:
            return f"stored {chunks[0]} row{'s' * (chunks[0] > 1)} at a time: slow to read, `slidemil convert` mends it"
        if getattr(data, "compression", None):
            return f"compressed with {data.compression}: slow to read, `slidemil convert` mends it"
    return ""


def _row(label: str, kind: str, slide: SlideFeatures) -> dict[str, Any]:
    return {
        "file": label,
        "format": kind,
        "slide": slide.slide_id,
        "tiles": len(slide.xy),
        "dim": int(slide.features.shape[1]),
        "dtype": str(slide.features.dtype),
        "footprint": list(slide.footprint),
        "encoder": slide.encoder,
        "passport": decisive(slide.passport),
    }


def _line(row: dict[str, Any]) -> str:
    width, height = row["footprint"]
    return (
        f"{row['format']:10}  {row['slide']}: {row['tiles']:,} tiles x {row['dim']} {row['dtype']}, "
        f"each {width} x {height} px of level 0, encoder {row['encoder']}"
    )


def _mixable(rows: Sequence[dict[str, Any]]) -> tuple[str, list[str]]:
    """Say whether the features of all files may be mixed, and else in what they differ."""
    if len(rows) < 2:
        return "one file: nothing to mix", []
    fields = sorted({name for row in rows for name in row["passport"]} | {"dim"})
    values = {name: {repr(row["passport"].get(name, row.get(name))) for row in rows} for name in fields}
    differ = [f"{name}: {' against '.join(sorted(found))[:160]}" for name, found in values.items() if len(found) > 1]
    if differ:
        return f"these may not be mixed: {'; '.join(differ[:4])}", differ
    if any(
        row["passport"].get("weights_sha256") is None and row["passport"].get("kind") == "converted" for row in rows
    ):
        return (
            "alike as far as their files say, which is little: other tools do not record weights and preprocessing",
            [],
        )
    return f"all {len(rows)} were made alike and may be mixed", []


__all__ = ["NAMES", "check", "convert", "find", "update_store"]
