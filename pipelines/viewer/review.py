"""`review.csv`: what people decided about slides. One row a slide; written whole at every change."""

from __future__ import annotations

import threading
from pathlib import Path

from pipelines.errors import UsageError
from pipelines.files import read_csv, write_csv
from pipelines.selection import STATUSES

COLUMNS = ("slide_id", "status", "note")
LONGEST_NOTE = 500


class Review:
    """Decisions by slide.

    Attributes:
        path: of the table.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()

    def rows(self) -> dict[str, dict[str, str]]:
        """Return slide → row, as it lies on the disk: others may write, too.

        Raises:
            UsageError: the table cannot be read.
        """
        if not self.path.is_file():
            return {}
        rows = read_csv(self.path)
        if rows and "slide_id" not in rows[0]:
            raise UsageError(f"{self.path}: no column slide_id. Move the file away, or name another with --review.")
        return {row["slide_id"]: row for row in rows}

    def decide(self, slide_id: str, status: str, note: str | None = None) -> dict[str, str]:
        """Keep a decision; return the row.

        Args:
            slide_id: the slide.
            status: one of `STATUSES`, or nothing, which takes the decision back.
            note: words; None leaves what was there.

        Raises:
            UsageError: there is no such status, or the note is too long.
            EnvironmentFault: the table cannot be written.
        """
        if status not in ("", *STATUSES):
            raise UsageError(f"no status {status!r}: there are {', '.join(STATUSES)}.")
        if note is not None and len(note) > LONGEST_NOTE:
            raise UsageError(f"a note of {len(note)} signs: at most {LONGEST_NOTE}.")
        with self._lock:
            rows = self.rows()
            row = {**rows.pop(slide_id, {}), "slide_id": slide_id, "status": status}
            row["note"] = row.get("note", "") if note is None else " ".join(note.split())
            if status or row["note"]:
                rows[slide_id] = row
            more = dict.fromkeys(name for one in rows.values() for name in one if name not in COLUMNS)
            write_csv(self.path, (*COLUMNS, *more), [rows[name] for name in sorted(rows)])
        return row
