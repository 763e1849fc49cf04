"""Where output may go: never onto a slide, nor onto a file of the user's that is no earlier output of ours."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Collection, Sequence
from pathlib import Path

from .errors import UsageError
from .jobfolder import JobFolder
from .manifest import SlideEntry
from .tables import header_of


def check_table(path: Path, option: str, kind: str, columns: Collection[str], slides: Sequence[SlideEntry]) -> None:
    """Refuse to write a table where something else lies.

    Args:
        path: of the table.
        option: that named it.
        kind: what the table is, in words.
        columns: that an earlier table of this kind has.
        slides: that are looked at: the table may not lie among their files.

    Raises:
        UsageError: it is a slide, of a slide, a folder, or a file that is no such table.
    """
    check_no_slide(path, option, slides)
    if path.exists() and not set(columns) <= _header(path):
        raise UsageError(f"{option} {path}: this file is there already and is no {kind}. Name another file.")


def check_no_slide(path: Path, option: str, slides: Sequence[SlideEntry]) -> None:
    """Refuse to write a file onto a slide, among a slide's files, or onto what is no plain file.

    Raises:
        UsageError: it is.
    """
    import wsi
    from wsi.companions import would_belong
    from wsi.opening import SUFFIXES

    why = None
    if wsi.is_slide_file(path) or any(os.path.realpath(path) == os.path.realpath(entry.path) for entry in slides):
        why = "this is a slide, and would be overwritten"
    elif name := next((entry.path.name for entry in slides if would_belong(path, entry.path)), None):
        why = f"it would count as one of the files that {name} is made of"
    elif path.suffix.lower() in SUFFIXES:
        why = f"a file called {path.suffix} would be taken for a slide"
    elif path.is_dir():
        why = "this is a folder"
    elif path.exists() and not path.is_file():
        why = "this is no regular file"
    elif not _folder_above(path).is_dir():
        why = f"{_folder_above(path)} is no folder"
    if why:
        raise UsageError(f"{option} {path}: {why}. Name another file.")


def check_job(folder: Path) -> None:
    """Refuse a job folder that is a file, or whose tables are the user's own.

    Raises:
        UsageError: it is.
    """
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"-o {folder}: this is a file, and a job needs a folder. Name another folder.")
    job = JobFolder(folder)
    for table, columns in ((job.manifest, {"slide_id", "path", "series"}), (job.slides, {"slide_id", "status"})):
        if table.is_file() and not columns <= _header(table):
            raise UsageError(
                f"-o {folder}: a job would overwrite {table.name}, which lies there and is of no job. "
                "Name another folder."
            )


def check_layout(out: str, to: str, sources: Sequence[str], found: Sequence[Path]) -> None:
    """Refuse to write converted features among those that are read, or files of another tool into a job.

    Args:
        out: folder to write to; a URL is nobody's source.
        to: the format.
        sources: files and folders that are read.
        found: the feature files in them.

    Raises:
        UsageError: it is so.
    """
    if "://" in out:
        return
    folder = Path(out).resolve()
    job = next((one for one in (folder, *folder.parents) if _is_job(one)), None)
    read = (path.resolve() for path in found)
    if job is not None and (to not in ("slidemil", "zarr") or (to == "zarr" and job == folder)):
        why = f"files of {to} would lie in a job of slidemil, among its own"
    elif job == folder and any(one.is_relative_to(job) and JobFolder(job).record(one).is_file() for one in read):
        why = "what is read are the job's own features, which would be overwritten"
    elif any(Path(source).resolve() == folder for source in sources):
        why = f"this is what is read, and files of {to} would lie among it"
    else:
        return
    beside = f"{job or folder}-{to}"
    beside = beside if Path(out).is_absolute() else os.path.relpath(beside)
    raise UsageError(f"-o {out}: {why}. Name another folder, e.g. -o {beside}")


def _is_job(folder: Path) -> bool:
    return JobFolder(folder).settings.is_file() or JobFolder(folder).record(folder / "x").parent.is_dir()


def check_json(path: Path, option: str, kind: str, keys: Collection[str], slides: Sequence[SlideEntry] = ()) -> None:
    """Refuse to write JSON where something else lies.

    Raises:
        UsageError: it is a slide, a folder, or a file that is no such JSON.
    """
    check_no_slide(path, option, slides)
    if path.exists() and not set(keys) <= _keys(path):
        raise UsageError(f"{option} {path}: this file is there already and is no {kind}. Name another file.")


def _folder_above(path: Path) -> Path:
    """Return the nearest thing above a path that exists."""
    return next(above for above in Path(os.path.abspath(path)).parents if above.exists())  # noqa: PTH100


def _header(path: Path) -> set[str]:
    try:
        with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
            return set(header_of(file.readline(1 << 16) for _ in range(2)))
    except (OSError, csv.Error):
        return set()


def _keys(path: Path) -> set[str]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return set()
    return set(value) if isinstance(value, dict) else set()
