"""What the user filled in: a manifest that an earlier scan wrote, taken over by the next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from .manifest import Series, SlideEntry, read_table, safe_name, same_name

OF_THE_SCAN = ("stated_by_slide", "objective", "proposed", "to_do")
"""Columns of a manifest that each scan writes anew."""


@dataclass(frozen=True)
class Filled:
    """Slides with what the user said of them.

    Attributes:
        entries: the slides of this scan.
        others: slides of which the user said something, and which this scan does not look at.
        kept: how many of `entries` have something that the user filled in earlier.
    """

    entries: tuple[SlideEntry, ...]
    others: tuple[SlideEntry, ...] = ()
    kept: int = 0


def filled_in(entries: Sequence[SlideEntry], manifest: Path) -> Filled:
    """Take over what a manifest says of the slides; what `entries` say themselves wins.

    Raises:
        UsageError: cells of the manifest do not fit.
    """
    series = Series()
    before = {series.key(entry.path): _of_the_user(entry) for entry in read_table(manifest)}
    names = {same_name(entry.slide_id) for entry in entries}
    merged, kept = [], 0
    for entry in entries:
        known = before.pop(series.key(entry.path), None)
        if known is None:
            merged.append(entry)
            continue
        kept += says_something(known)
        slide_id = entry.slide_id
        if slide_id.startswith(safe_name(series.name(entry.path))) and same_name(known.slide_id) not in names:
            slide_id = known.slide_id  # renamed by the user
            names.add(same_name(slide_id))
        merged.append(_merged(entry, known, slide_id))
    ordered = sorted(merged, key=lambda entry: entry.slide_id)
    return Filled(tuple(ordered), tuple(entry for entry in before.values() if says_something(entry)), kept)


def says_something(entry: SlideEntry) -> bool:
    """Say whether the user said more of a slide than where it lies."""
    return entry.mpp is not None or entry.case_id != entry.slide_id or any(_of_the_user(entry).columns.values())


def _of_the_user(entry: SlideEntry) -> SlideEntry:
    return replace(entry, columns={key: value for key, value in entry.columns.items() if key not in OF_THE_SCAN})


def _merged(entry: SlideEntry, known: SlideEntry, slide_id: str) -> SlideEntry:
    case_id = entry.case_id
    if case_id == entry.slide_id:
        case_id = slide_id if known.case_id == known.slide_id else known.case_id
    said = {key: value for key, value in entry.columns.items() if value}
    mpp = known.mpp if entry.mpp is None else entry.mpp
    return replace(entry, slide_id=slide_id, case_id=case_id, mpp=mpp, columns={**known.columns, **said})
