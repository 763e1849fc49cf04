"""What a training says epoch by epoch, as CSV and JSONL; and where it stands, so that a stopped one goes on."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import mil

from .files import csv_bytes, write_bytes
from .jobfolder import JobFolder
from .progress import Progress
from .records import key_of
from .tracking import Tracker, figures_of

EPOCH_FILES = ("epochs.csv", "epochs.jsonl")
_SECONDS = 20.0  # between two checkpoints: a kill costs as much training as that


def epoch_files(history: Sequence[Mapping[str, Any]]) -> dict[str, bytes]:
    """Return the epochs as a table and as JSON lines."""
    columns = list(history[0]) if history else ["number"]
    lines = "".join(json.dumps(dict(row)) + "\n" for row in history)
    return {"epochs.csv": csv_bytes(columns, [dict(row) for row in history]), "epochs.jsonl": lines.encode()}


class EpochLog:
    """Tells of each epoch, and keeps a checkpoint in `.state/` until the model is written.

    Args:
        job: the job.
        name: of the model.
        parts: what the model depends on: a checkpoint of anything else is not taken up.
        progress: the bar.
        shown: who else is told.
    """

    def __init__(
        self, job: JobFolder, name: str, parts: Mapping[str, Any], progress: Progress, shown: Sequence[Tracker] = ()
    ) -> None:
        self._path = job.root / ".state" / "training" / f"{name}.{key_of(parts)[:16]}.safetensors"
        self._progress, self._last, self._shown = progress, time.monotonic(), shown

    def epoch(self, epoch: mil.Epoch) -> None:
        """Tell of one epoch."""
        score = "" if epoch.validation_score is None else f", score {epoch.validation_score:.3f}"
        for tracker in self._shown:
            tracker.epoch(figures_of(epoch), epoch.number)
        self._progress.advance(1, note=f"validation loss {epoch.validation_loss:.3f}{score}")

    def keep(self, data: Callable[[], bytes]) -> None:
        """Write a checkpoint, but not more often than every few seconds."""
        if time.monotonic() - self._last >= _SECONDS:
            write_bytes(self._path, data())
            self._last = time.monotonic()

    def left_over(self) -> bytes | None:
        """Return the checkpoint of a training of the same model that was stopped."""
        return self._path.read_bytes() if self._path.is_file() else None

    def done(self) -> None:
        """The model is written: nothing is left to go on from."""
        self._path.unlink(missing_ok=True)
