"""Preparing a slide as the pipeline does, but for slides whose names ask for trouble."""

from __future__ import annotations

import os
import signal

from pipelines.preparing import prepared


def prepared_badly(job, tiling, settings, item):
    entry, _ = item
    if entry.slide_id.startswith("abort"):
        os.write(2, b"GLib-ERROR: failed to allocate 480 GB\n")
        os.abort()
    if entry.slide_id.startswith("bug"):
        raise KeyError("a bug of ours")
    if entry.slide_id.startswith("killed"):
        mark = entry.path.with_suffix(".once")
        if not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
    return prepared(job, tiling, settings, item)
