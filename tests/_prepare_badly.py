"""Preparing a slide as the pipeline does, but for slides whose names ask for trouble."""

from __future__ import annotations

import os
import signal
import time

import numpy as np

import wsi
from pipelines.preparing import hashed, prepared


def prepared_badly(job, tiling, settings, item):
    entry, _ = item
    if entry.slide_id.startswith("abort"):
        os.write(2, b"GLib-ERROR: failed to allocate 480 GB\n")
        os.abort()
    if entry.slide_id.startswith("bug"):
        raise KeyError("a bug of ours")
    if entry.slide_id.startswith("slow"):
        time.sleep(60)
    if entry.slide_id.startswith("greedy"):
        wsi.find_tissue = lambda _: np.ones(10**10, np.uint8)  # what a hard slide asks for
    if entry.slide_id.startswith("killed"):
        mark = entry.path.with_suffix(".once")
        if not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
    return prepared(job, tiling, settings, item)


def hashed_slowly(job, entry):
    if entry.slide_id.startswith("slow"):
        time.sleep(60)
    return hashed(job, entry)
