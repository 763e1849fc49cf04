"""`slidemil scan`: an inventory of slides with everything odd about them, before a run of days meets it."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import wsi

from . import losable
from .errors import ExitCode, UsageError
from .files import sha256_file
from .filled_in import Filled, filled_in
from .manifest import SlideEntry, Sources, find_slides
from .progress import progress
from .scan_slide import LIGHTS, Finding, ScanSettings, SlideRow, Task, alike, look, seconds_for
from .scan_tables import INVENTORY, MANIFEST, as_object, write_inventory, write_manifest
from .scan_text import lines_of
from .targets import check_table

_MEMORY = 6 * 2**30
"""Bytes of data that one slide may need while it is looked at."""


@dataclass(frozen=True)
class Scanned:
    """What was found.

    Attributes:
        rows: one per slide, by name.
        notes: what is worth saying about how the slides were found.
        written: files written, and what each is.
    """

    rows: tuple[SlideRow, ...]
    notes: tuple[str, ...] = ()
    written: tuple[str, ...] = ()

    @property
    def exit_code(self) -> ExitCode:
        """3 where a slide would fail."""
        return ExitCode.SOME_FAILED if any(row.light == "red" for row in self.rows) else ExitCode.DONE

    def to_json(self) -> dict[str, Any]:
        """Return the object that `--json` prints."""
        return {
            "status": "done" if self.exit_code is ExitCode.DONE else "partial",
            "lights": {light: sum(row.light == light for row in self.rows) for light in LIGHTS},
            "slides": [as_object(row) for row in self.rows],
            "notes": list(self.notes),
            "written": list(self.written),
        }

    def lines(self) -> list[str]:
        """Return what people read."""
        return lines_of(self.rows, self.notes, self.written)


def scan(
    sources: Sequence[Path] | Sources,
    settings: ScanSettings,
    *,
    out: Path | None = None,
    manifest: Path | None = None,
    limit: int | None = None,
    quiet: bool = False,
) -> Scanned:
    """Look at every slide in processes that may be lost, and compare them with one another.

    Args:
        sources: folders, slides, or CSV manifests.
        settings: what a job would be asked, and how closely to look.
        out: CSV to write the inventory to.
        manifest: CSV to write that `slidemil run` takes, with a column `mpp` to be filled in.
        limit: only the first so many slides.
        quiet: show no progress.

    Raises:
        NothingMatchedError: no slide was found.
        UsageError: a table would overwrite something else.
        EnvironmentFault: a table cannot be written.
    """
    found = find_slides(sources)
    _check_targets(out, manifest, found.entries)
    before = Filled(found.entries[:limit])
    if manifest is not None and manifest.exists():
        before = filled_in(before.entries, manifest)
    entries = before.entries
    rows = {row.entry.slide_id: row for row in _looked_at(entries, settings, quiet)}
    ordered = _compared([rows[entry.slide_id] for entry in entries])
    written = []
    if out is not None:
        written.append(write_inventory(out, ordered))
    if manifest is not None:
        written.append(write_manifest(manifest, ordered, before))
    return Scanned(tuple(ordered), found.notes, tuple(written))


def _check_targets(out: Path | None, manifest: Path | None, slides: Sequence[SlideEntry]) -> None:
    if out is not None:
        check_table(out, "-o", "inventory of a scan", INVENTORY[:4], slides)
    if manifest is not None:
        check_table(
            manifest,
            "--manifest",
            "manifest of a scan",
            MANIFEST[:5],
            slides,
        )
    if out is not None and manifest is not None and os.path.realpath(out) == os.path.realpath(manifest):
        raise UsageError(f"-o and --manifest both name {out}. Name two files.")


def _looked_at(entries: Sequence[SlideEntry], settings: ScanSettings, quiet: bool) -> Iterator[SlideRow]:
    tasks = (Task(entry, settings) for entry in entries)
    with progress("scan", "slides", quiet=quiet) as bar:
        bar.total(len(entries))
        workers = min(wsi.available_cores(), max(1, len(entries)))
        for task, answer in losable.each(look, tasks, workers=workers, seconds=seconds_for, memory=_MEMORY):
            yield answer.value if isinstance(answer, losable.Done) else _lost(task, answer)
            bar.advance()


def _lost(task: Task, lost: losable.Lost) -> SlideRow:
    mends = {
        "died": "A job would lose it, too: leave it out, or convert it anew.",
        "late": "Copy it to a faster disk, or leave it out.",
        "raised": "This is a bug: report it, with the slide if you may.",
    }
    return SlideRow(task.entry).having(Finding("red", f"lost-{lost.kind}", lost.what, mends[lost.kind]))


def _compared(rows: list[SlideRow]) -> list[SlideRow]:
    """Add what shows only when slides are compared: copies of one another."""
    same_bytes = _same_bytes(rows)
    named = {row.entry.slide_id: row for row in rows}
    for group in same_bytes:
        _tell(named, group, "duplicate", "the same bytes as {}", "Leave all but one out.")
    copies = {name for group in same_bytes for name in group[1:]}  # the first stands for them
    for group in _same_picture(row for row in rows if row.entry.slide_id not in copies):
        _tell(named, group, "same-picture", "the same picture as {}", "Leave all but one out.")
    return [named[row.entry.slide_id] for row in rows]


def _tell(named: dict[str, SlideRow], group: Sequence[str], code: str, what: str, mend: str) -> None:
    for name in group:
        others = [other for other in group if other != name]
        listed = ", ".join(others[:3]) + (f" and {len(others) - 3} more" if len(others) > 3 else "")
        named[name] = named[name].having(Finding("amber", code, what.format(listed), mend))


def _same_bytes(rows: Iterable[SlideRow]) -> list[list[str]]:
    """Return the names of slides that are copies: candidates by size and some blocks, then by all their bytes."""
    candidates: dict[tuple[int, str], list[SlideRow]] = defaultdict(list)
    for row in rows:
        if row.total_bytes and row.digest:
            candidates[row.total_bytes, row.digest].append(row)
    entries = [row.entry for group in candidates.values() if len(group) > 1 for row in group]
    groups: dict[str, list[str]] = defaultdict(list)
    workers = min(wsi.available_cores(), max(1, len(entries)))
    for entry, answer in losable.each(digest_of, entries, workers=workers, seconds=_seconds_to_read):
        if isinstance(answer, losable.Done) and answer.value is not None:
            groups[answer.value].append(entry.slide_id)
    return sorted(sorted(group) for group in groups.values() if len(group) > 1)


def digest_of(entry: SlideEntry) -> str | None:
    """Return a hash of all bytes of a slide's files, None where they cannot be read."""
    try:
        return "".join(sha256_file(path) for path in entry.files if path.is_file())
    except OSError:
        return None


def _seconds_to_read(entry: SlideEntry) -> float:
    return 60.0 + sum(path.stat().st_size for path in entry.files if path.is_file()) / 1e7


def _same_picture(rows: Iterable[SlideRow]) -> list[list[str]]:
    """Return the names of slides of one size that show one picture, each in one group."""
    by_size: dict[tuple[int, int], list[SlideRow]] = defaultdict(list)
    for row in rows:
        if row.signature is not None:
            by_size[row.levels[0]].append(row)
    groups: list[list[str]] = []
    for same in by_size.values():
        left = list(same)
        while left:
            first = left.pop(0)
            twins = [row for row in left if alike(first, row)]
            left = [row for row in left if row not in twins]
            if twins:
                groups.append([row.entry.slide_id for row in (first, *twins)])
    return groups
