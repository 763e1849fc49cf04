"""Slides whose reading ends the process: prepared as any other, then read by a reader that dies."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from pipelines import preparing
from wsi.readers.openslide import OpenSlideSlide

SIGNALS = (signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT)
really = preparing.prepared


def is_poison(name: str) -> bool:
    return name.startswith("poison-")


class DeadlySlide(OpenSlideSlide):
    """A slide whose name says by which signal reading it ends the process."""

    def _read(self, x: int, y: int, width: int, height: int, level: int) -> Any:
        if y > self.size[1] // 3:  # what lies above is read as from any other slide
            os.kill(os.getpid(), int(self.path.name.split("-")[1]))
        return super()._read(x, y, width, height, level)


def prepared(job: Any, tiling: Any, settings: Any, item: Any) -> Any:
    """Prepare a slide as the command does; one that is called poison gets its reader."""
    work, spent = really(job, tiling, settings, item)
    entry, _ = item
    if is_poison(entry.slide_id) and not isinstance(work, Exception):
        work.slide = DeadlySlide(Path(entry.path))
    return work, spent


def main() -> None:
    """Run the command with such slides."""
    from pipelines.cli import app

    preparing.prepared = prepared
    app()


if __name__ == "__main__":
    import _poison  # under the name by which other processes find it

    _poison.main()
