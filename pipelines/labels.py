"""Labels: a CSV of the user's → which slide has which class, of which patient, in which part of the split."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .errors import NoColumnError, NothingMatchedError, UsageError
from .files import read_csv
from .manifest import SlideEntry, safe_name, slide_stem
from .tables import ALIASES, first_of

_NO_LABEL = ("", "nan", "na", "n/a", "none", "null")
_FIRST = ("negative", "neg", "normal", "benign", "control", "wildtype", "wild type", "wt", "no", "false")
"""Names that stand for the negative class; without one of them classes are ordered by alphabet."""
_SUFFIXES = (".svs", ".tif", ".tiff", ".ndpi", ".mrxs", ".scn", ".bif", ".dcm", ".h5", ".qptiff")


@dataclass(frozen=True)
class Labels:
    """What the user says of the slides.

    Attributes:
        label: slide → class name.
        case: slide → patient or case.
        split: slide → what the table's split column says (`train`, `val`, `test`); empty without one.
        notes: what is worth saying, e.g. slides without a label.
        target: the column, or columns, that were asked for, see `pipelines.questions`.
        cells: slide → column → cell, of those columns and of further ones that were asked for; empty for one column.
        clinical: slide → column → cell of the clinical variables, also of slides without a label.
    """

    label: Mapping[str, str]
    case: Mapping[str, str]
    split: Mapping[str, str]
    notes: tuple[str, ...] = ()
    target: str = "label"
    cells: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    clinical: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def cell(self, slide: str, column: str) -> str:
        """What the table says of a slide."""
        return self.cells[slide][column] if self.cells else self.label[slide]

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in order: numbers as numbers, `negative` before `positive`, else by alphabet."""
        return tuple(sorted(set(self.label.values()), key=class_order))


def is_label(cell: str) -> bool:
    """Say whether a cell says anything."""
    return cell.strip().lower() not in _NO_LABEL


def read_labels(path: Path, slides: Sequence[SlideEntry], *, column: str = "label", more: Sequence[str] = ()) -> Labels:
    """Read a label table and match it with the slides of a job.

    A row names its slide by `slide_id` (or an alias of it), with or without extension. It has a label where one of the
    columns says something.

    Args:
        path: of the table.
        slides: of the job.
        column: that is to be predicted; several are joined by commas and `+`.
        more: further columns whose cells are wanted, e.g. the site.

    Raises:
        NoColumnError: a column that is to be predicted is not there.
        UsageError: the file or its other columns do not fit.
        NothingMatchedError: no row belongs to a slide; the message shows the first differences.
    """
    rows = _rows(path)
    columns = set(rows[0])
    key = first_of(columns, "slide_id") or first_of(columns, "path")
    if key is None:
        known = ", ".join(ALIASES["slide_id"])
        found = ", ".join(sorted(columns))
        raise UsageError(f"{path}: no column names the slides (found: {found}; taken: {known}).")
    asked = [column] if column in columns else column.replace("+", ",").split(",")
    for name in (*asked, *more):
        if name not in columns:
            lacks = f"{path}: no column `{name}` (found: {', '.join(sorted(columns))})."
            if name in asked:
                raise NoColumnError(f"{lacks} Name yours with --target.")
            raise UsageError(f"{lacks} Name one that there is.")
    case, split = first_of(columns, "case_id"), first_of(columns, "split")
    said = [name for name in (*asked, *more, case, split) if name]
    by_name = _names(slides)
    matched: dict[str, dict[str, str]] = {}
    strangers: list[str] = []
    for row in rows:
        entry = _meant(path, row[key], by_name)
        if entry is None:
            strangers.append(row[key])
        elif any(matched.get(entry.slide_id, row).get(name) != row.get(name) for name in said):
            raise UsageError(f"{path}: {row[key]} stands there twice and differently. Keep one row per slide.")
        elif any(is_label(row.get(name, "")) for name in asked):
            matched[entry.slide_id] = row
    if not matched:
        raise NothingMatchedError(_no_match(path, strangers, slides))
    entries = {entry.slide_id: entry for entry in slides}
    return Labels(
        label={name: " | ".join(row[one] for one in asked) for name, row in matched.items()},
        case={name: (row.get(case, "") if case else "") or entries[name].case_id for name, row in matched.items()},
        split=_splits(split, matched) if split else {},
        notes=(*_notes(strangers, slides, matched, case), *_odd_cells(rows, asked)),
        target=column,
        cells={name: {one: row.get(one, "") for one in (*asked, *more)} for name, row in matched.items()},
    )


def _rows(path: Path) -> list[dict[str, str]]:
    try:
        rows = read_csv(path)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror}). Check the path.") from error
    if not rows:
        raise UsageError(f"{path}: the table has no rows.")
    return rows


def _names(slides: Iterable[SlideEntry]) -> dict[str, list[SlideEntry]]:
    """Return every name a slide may go by: its own, its file's, and the end of its path."""
    names: dict[str, list[SlideEntry]] = {}
    for entry in slides:
        ends = [Path(*entry.path.parts[-length:]).as_posix() for length in range(1, len(entry.path.parts) + 1)]
        for name in {entry.slide_id, _bare(entry.path.name), *ends}:
            names.setdefault(name, []).append(entry)
    return names


def _meant(path: Path, name: str, names: Mapping[str, list[SlideEntry]]) -> SlideEntry | None:
    """Return the slide a row means, by its path where that tells slides apart, else by its name.

    Raises:
        UsageError: the name stands for several slides.
    """
    found = names.get(Path(name).as_posix()) or names.get(_bare(name)) or []
    own = [entry for entry in found if entry.slide_id == name]
    if len(found) > 1 and len(own) != 1:
        listed = ", ".join(entry.slide_id for entry in found[:4])
        raise UsageError(f"{path}: {name} may be any of {listed}. Write the name that slides.csv gives the slide.")
    return next(iter(own or found), None)


def _bare(name: str) -> str:
    path = Path(name)
    return safe_name(slide_stem(path) if path.suffix.lower() in _SUFFIXES else path.name)


def _splits(column: str, rows: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    return {name: row[column] for name, row in rows.items() if row.get(column)}


def _notes(
    strangers: Sequence[str],
    slides: Sequence[SlideEntry],
    matched: Mapping[str, Mapping[str, str]],
    case: str | None,
) -> tuple[str, ...]:
    notes = []
    if strangers:
        notes.append(f"{len(strangers)} labels belong to no slide of the job, e.g. {', '.join(strangers[:3])}")
    without = [entry.slide_id for entry in slides if entry.slide_id not in matched]
    if without:
        notes.append(f"{len(without)} slides have no label and are only predicted, e.g. {', '.join(without[:3])}")
    own = all(entry.case_id == entry.slide_id for entry in slides)
    if case is None and own:
        notes.append(
            "no column `case_id`: each slide counts as a patient of its own; where patients have several slides, "
            "name them, or the same patient is trained on and tested on"
        )
    return tuple(notes)


def _odd_cells(rows: Sequence[Mapping[str, str]], asked: Sequence[str]) -> list[str]:
    """Say which words count as no label, and which differ by case alone: either may be meant otherwise."""
    notes = []
    for name in asked:
        cells = {row[name].strip() for row in rows if row[name].strip()}
        empty = sorted(cell for cell in cells if cell.lower() in ("none", "null"))
        if empty:
            notes.append(f"`{name}`: {', '.join(empty)} counts as no label. Write another word where it is one")
        same: dict[str, list[str]] = {}
        for cell in sorted(filter(is_label, cells)):
            same.setdefault(cell.casefold(), []).append(cell)
        notes += [f"`{name}`: {' and '.join(words)} are taken for different" for words in same.values() if words[1:]]
    return notes


def _no_match(path: Path, strangers: Sequence[str], slides: Sequence[SlideEntry]) -> str:
    table = ", ".join(repr(name) for name in strangers[:3])
    job = ", ".join(repr(entry.slide_id) for entry in slides[:3])
    return (
        f"{path}: none of its {len(strangers)} rows belongs to a slide of the job. "
        f"The table says {table}; the job has {job}. Make the column `slide_id` say what the job says."
    )


def class_order(name: str) -> tuple[int, float, str]:
    """Key by which class names are sorted: numbers as numbers, names of the negative class first, else by alphabet."""
    try:
        number = float(name)
    except ValueError:
        number = math.nan
    if math.isfinite(number):
        return 0, number, name
    return 1, -1.0 if name.lower() in _FIRST else 0.0, name
