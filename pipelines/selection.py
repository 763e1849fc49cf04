"""`--select review.csv`: only the slides that a table names, or that were accepted in it.

`review.csv` alone takes what was accepted; `review.csv:flag` or `review.csv:accept,flag` what has one of these; and
`review.csv:not-reject` every slide but those, also slides that the table does not name. A table without a column
`status` takes the slides it lists.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .errors import NothingMatchedError, UsageError
from .files import read_csv
from .manifest import SlideEntry
from .tables import first_of

STATUSES = ("accept", "reject", "flag")
_NOT = "not-"


@dataclass(frozen=True)
class Selection:
    """Which slides are wanted.

    Attributes:
        path: the table.
        names: in the table with a wanted status; or with an unwanted one, where `inverted`.
        inverted: whether all other slides are wanted.
    """

    path: Path
    names: frozenset[str]
    inverted: bool = False

    def of(self, entries: Sequence[SlideEntry]) -> tuple[SlideEntry, ...]:
        """Return the slides that are wanted.

        Raises:
            NothingMatchedError: none is.
        """
        chosen = tuple(entry for entry in entries if (entry.slide_id in self.names) is not self.inverted)
        if not chosen:
            examples = ", ".join(entry.slide_id for entry in entries[:3])
            raise NothingMatchedError(f"--select {self.path}: it takes none of {len(entries)} slides ({examples} …).")
        return chosen


def read_selection(text: str) -> Selection:
    """Return what `--select` means.

    Raises:
        UsageError: no such table, no such status, or no column that names slides.
    """
    path, wanted, inverted = _parts(text)
    if not path.is_file():
        raise UsageError(f"--select {text}: no such file. `slidemil serve JOB` writes JOB/review.csv.")
    rows = read_csv(path)
    column = first_of(rows[0], "slide_id") if rows else "slide_id"
    if column is None:
        raise UsageError(f"--select {path}: no column slide_id (found: {', '.join(rows[0])}).")
    status = next((name for name in rows[0] if name.lower() == "status"), None) if rows else None
    if status is not None:
        rows = [row for row in rows if row.get(status, "").lower() in wanted]
    elif text != str(path):
        raise UsageError(f"--select {text}: {path} has no column status.")
    return Selection(path, frozenset(row[column] for row in rows), inverted)


def _parts(text: str) -> tuple[Path, frozenset[str], bool]:
    name, colon, told = text.rpartition(":")
    if not colon or Path(text).is_file():
        return Path(text), frozenset({"accept"}), False
    inverted = told.startswith(_NOT)
    wanted = frozenset(told.removeprefix(_NOT).split(","))
    strangers = wanted - set(STATUSES)
    if strangers:
        raise UsageError(f"--select {text}: no status {sorted(strangers)[0]!r}; there are {', '.join(STATUSES)}.")
    return Path(name), wanted, inverted
