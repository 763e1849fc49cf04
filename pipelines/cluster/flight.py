"""What a task has begun and ended, in a small file that outlives the process: who died of which slide is read there.

Written in place of the last one with no fsync: after a power cut the slides are merely done again.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipelines.outcome import Failure

DONE, SKIPPED, FAILED, PORTION = "done", "skipped", "failed", "portion"


class Flight:
    """The book of one task; used from the thread that opens slides and the one that ends them.

    Args:
        path: of the file; what an earlier process wrote there is taken over.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self.open: list[str] = []
        """Slides that were begun and have not ended."""
        self.ended: dict[str, dict[str, str]] = {}
        """Slide → its state; of one that failed, cause and mend."""
        said = _read(path)
        self.open += said.get("open", [])
        self.ended |= said.get("ended", {})

    def begin(self, slide: str) -> None:
        """Say, before anything is done with a slide, that it is being worked on."""
        with self._lock:
            if slide not in self.open:
                self.open.append(slide)
            self._write()

    def end(self, slide: str, state: str, failure: Failure | None = None) -> None:
        """Say what a slide has come to."""
        with self._lock:
            self.open = [name for name in self.open if name != slide]
            told = {} if failure is None else {"cause": failure.cause, "mend": failure.mend}
            self.ended[slide] = {"state": state, **told}
            self._write()

    def withdraw(self) -> None:
        """Say that the slides that are open were let go of in good order: no process died of them."""
        with self._lock:
            self.open = []
            self._write()

    @property
    def failures(self) -> Mapping[str, Failure]:
        """Why slides failed."""
        failed = {name: said for name, said in self.ended.items() if said.get("state") == FAILED}
        return {name: Failure(name, said.get("cause", ""), said.get("mend", "")) for name, said in failed.items()}

    def _write(self) -> None:
        draft = self._path.with_name(f".{self._path.name}.{os.getpid()}.tmp")
        self._path.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(json.dumps({"open": self.open, "ended": self.ended}), encoding="utf-8")
        draft.replace(self._path)


def _read(path: Path) -> dict[str, Any]:
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        return {
            "open": [str(name) for name in said["open"]],
            "ended": {
                str(name): {str(key): str(text) for key, text in one.items()} for name, one in said["ended"].items()
            },
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
