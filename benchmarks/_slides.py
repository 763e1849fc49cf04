"""The large slides of the benchmarks: made once, kept between runs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SHARED = Path(os.environ.get("SLIDEMIL_SHARED", "../shared"))
KEPT = Path(os.environ.get("SLIDEMIL_BENCH", Path(__file__).resolve().parent.parent / ".bench")) / "slides"


def large_slide(width: int, height: int, codec: str = "jpeg", folder: Path = KEPT) -> Path:
    """Return a slide of real H&E pixels: 0.25 µm/px, tiles of 256 px, 45 % tissue."""
    path = folder / f"{width}x{height}-{codec}.svs"
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    print(f"{path.name} is made once …", file=sys.stderr, flush=True)
    raw = folder / f".{os.getpid()}-{path.name}"
    source = ["--source", SHARED / "data/tiles/crc_nuclei", "--codec", codec]
    command = [sys.executable, SHARED / "tools/make_large_slide.py", *source, "--width", width, "--height", height, raw]
    try:
        subprocess.run([str(word) for word in command], check=True, stdout=subprocess.DEVNULL)
        raw.rename(path)
    finally:
        raw.unlink(missing_ok=True)
    return path
