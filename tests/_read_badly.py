"""The process that reads the viewer's slides, but for slides whose names ask for trouble."""

from __future__ import annotations

import os
import time
from pathlib import Path

import wsi
from pipelines.viewer import reading

SERVE = "import sys; from _read_badly import main; main(*map(int, sys.argv[1:]), {})"


def main(control, _, owner, **given):
    honest = wsi.open_slide

    def opening(path, **more):
        if Path(path).stem.startswith("abort"):
            time.sleep(0.3)  # so that others are read at the same time
            os.write(2, b"GLib-ERROR: failed to allocate 480 GB\n")
            os.abort()
        if Path(path).stem.startswith("hang"):
            time.sleep(3600)
        return honest(path, **more)

    wsi.open_slide = opening
    reading.main(control, _, owner, **given)
