"""Tables of the user's: what separates their cells, and the names other tools use for the same column."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator
from itertools import chain

ALIASES: dict[str, tuple[str, ...]] = {
    "slide_id": ("slide_id", "sample_id", "slide", "SLIDE", "name"),
    "path": ("path", "wsi", "image_path", "filename", "FILENAME", "slide_path"),
    "case_id": ("case_id", "patient_id", "PATIENT", "patient", "case"),
    "mpp": ("mpp", "spacing_at_level_0", "mpp_x"),
    "split": ("split", "fold", "set"),
}
_SEPARATORS = ",;\t"
"""What spreadsheets put between cells; `;` where the decimal sign is a comma."""

_FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""What a spreadsheet takes for the beginning of a formula, and runs."""


class CellsError(ValueError):
    """A row of a table does not fit its header."""


def first_of(columns: Iterable[str], kind: str) -> str | None:
    """Return the first column that means `kind`, None where there is none."""
    present = set(columns)
    return next((name for name in ALIASES[kind] if name in present), None)


def rows_of(lines: Iterable[str], *, separator: str | None = None) -> Iterator[dict[str, str]]:
    """Yield the rows of a table with a header as column → cell.

    Args:
        lines: of the table.
        separator: between cells; None looks which of `,`, `;` and tab the header has most of.

    Raises:
        CellsError: a row has more cells than there are columns: an unquoted comma would shift all that follows it.
    """
    rest = iter(lines)
    header = next(rest, "")
    if separator is None:
        separator, header = _separator(header, rest)
    reader = csv.DictReader(chain([header], rest), delimiter=separator, restkey="")
    names = len(reader.fieldnames or ())
    for row in reader:
        beyond = row.get("")
        if isinstance(beyond, list) and any(cell.strip() for cell in beyond):
            sign = "tab" if separator == "\t" else f"`{separator}`"
            raise CellsError(
                f"line {reader.line_num} has {names + len(beyond)} cells, and the table {names} columns. "
                f"Put a cell that holds a {sign} in quotes, or write its number with a point."
            )
        yield {key or "": value for key, value in row.items() if isinstance(value, str)}


def header_of(lines: Iterable[str]) -> list[str]:
    """Return the names of a table's columns."""
    rest = iter(lines)
    separator, header = _separator(next(rest, ""), rest)
    return [name.strip() for name in next(csv.reader([header], delimiter=separator), [])]


def _separator(first: str, rest: Iterator[str]) -> tuple[str, str]:
    """Return what separates cells, and the header: the first line, or the second below a note of Excel's."""
    if first.lower().startswith("sep=") and len(first.rstrip("\r\n")) == 5:
        return first[4], next(rest, "")
    return max(_SEPARATORS, key=lambda sign: len(next(csv.reader([first], delimiter=sign), []))), first


def number_of(cell: str) -> float:
    """Return the number in a cell, a comma taken for the decimal sign; NaN where there is none."""
    try:
        return float(cell.replace(",", ".", 1) if "." not in cell else cell)
    except ValueError:
        return float("nan")


def shown_plainly(cell: str) -> str:
    """Return the text of a cell so that no spreadsheet runs it: what looks like a formula gets a `'` in front.

    Numbers stay. `written_plainly` takes the sign away again; so a text that begins with it gets one more.

    Source: OWASP, CSV Injection.
    """
    text = cell.lstrip("'")
    return f"'{cell}" if text.startswith(_FORMULA) and not _is_number(cell) else cell


def written_plainly(cell: str) -> str:
    """Return what was given to `shown_plainly`."""
    return cell[1:] if cell.startswith("'") and cell.lstrip("'").startswith(_FORMULA) else cell


def _is_number(cell: str) -> bool:
    return re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", cell, re.IGNORECASE | re.ASCII) is not None
