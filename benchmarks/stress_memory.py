"""Does a run over 1,000 slides grow, what do hard slides take?    python benchmarks/stress_memory.py [--quick]

1,000 small slides of several formats, every twentieth damaged, go through `slidemil extract`; memory and open files of
the command and of each process below it are looked at four times a second. Growth is the last fifth of the slides over
the second fifth. A thread that reads holds two descriptors (clock and wire), and threads are added where storage is
slow: what is open beyond that has leaked. Then slides that are hard on memory, each with `--memory 1`: tiles of 8,192
pixels, strips as wide as the slide, one level of 30,000 pixels a side; what the largest process takes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from _bad_slides import write_zoo
from _summary import line, summary
from _tree import Watch

GOALS = {
    "growth": ("<=", 0.05),
    "files_leaked": ("<=", 0),
    "wrong": ("<=", 0),
    "hard_worst_mb": ("<=", 1500),
}
SLOW_TO_SHOW = ("growth", "files_leaked")
"""Twenty slides are over while processes still begin."""
KINDS = (
    "good/aperio.svs",
    "good/plain.tiff",
    "good/ome.ome.tiff",
    "good/jpeg_tables.tiff",
    "good/jpeg2000.svs",
    "good/white.svs",
    "format/strips.tiff",
    "damaged/tile_noise.svs",
    "damaged/deflate_checksum.tiff",
    "truncated/first_50_percent.svs",
    "file/noise.svs",
    "bomb/tile_size_absurd.tiff",
)
_DAMAGED = 7
"""The first of them that fails."""


def cohort(folder: Path, count: int) -> int:
    """Write so many small slides, each a file of its own; return how many of them are damaged."""
    zoo = folder.with_name("zoo")
    write_zoo(zoo, lambda case: case["file"] in KINDS)
    folder.mkdir()
    bad = 0
    for number in range(count):
        damaged = number % 20 == 19
        kinds = KINDS[_DAMAGED:] if damaged else KINDS[:_DAMAGED]
        source = zoo / kinds[number % len(kinds)]
        bad += damaged
        (folder / f"{number:04}{''.join(source.suffixes)}").write_bytes(source.read_bytes())
    return bad


def watched(slides: Path, job: Path, *more: str) -> tuple[int, dict[str, Any], Watch, float]:
    """Run the command; return its exit code, what it said, and how its processes looked meanwhile."""
    command = [sys.executable, "-m", "pipelines.cli", "extract", str(slides), "-o", str(job), "--slide-mpp", "0.5"]
    began = time.monotonic()
    process = subprocess.Popen([*command, "--json", "-q", *more], stdout=subprocess.PIPE, text=True)
    with Watch(process.pid, every=0.25, keep=True) as watch:
        said, _ = process.communicate()
    told = json.loads(said) if process.returncode in (0, 3) else {}
    return process.returncode, told, watch, time.monotonic() - began


def role(command: str) -> str:
    return next((name for name in ("remote_reader", "losable") if name in command), "command")


def growth(watch: Watch) -> tuple[dict[str, float], dict[str, int]]:
    """Return by role how much memory grew, and the files that leaked, from the second fifth to the end."""
    memory: dict[str, list[tuple[int, int, int]]] = defaultdict(list)
    for _, seen in watch.looks:
        by_role: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
        for one in seen:
            if one.files > 0:
                by_role[role(one.command)][0] += one.own
                by_role[role(one.command)][1] += one.files
                by_role[role(one.command)][2] += one.threads
        for name, (own, files, threads) in by_role.items():
            memory[name].append((own, files, threads))
    grown, leaked = {}, {}
    for name, looks in memory.items():
        fifth = max(1, len(looks) // 5)
        before, after = looks[fifth : 2 * fifth], looks[-fifth:]
        own, files, threads = ([median(look[k] for look in some) for some in (before, after)] for k in range(3))
        grown[name] = own[1] / own[0] - 1
        leaked[name] = round(files[1] - files[0] - 2 * max(0, threads[1] - threads[0]))
        some = looks[:: max(1, len(looks) // 12)]
        line(role=name, mb=[round(one[0] / 1e6, 1) for one in some], files_and_threads=[one[1:] for one in some])
    return grown, leaked


def many(root: Path, count: int) -> dict[str, float]:
    bad = cohort(root / "slides", count)
    code, said, watch, seconds = watched(root / "slides", root / "job")
    counts = said["slides"]
    line(code=code, slides=counts, seconds=round(seconds, 1), together_mb=round(watch.together / 1e6))
    grown, leaked = growth(watch)
    line(growth=grown, files=leaked)
    return {
        "growth": max(grown.values()),
        "files_leaked": max(leaked.values()),
        "wrong": abs(counts["done"] - (count - bad)) + abs(counts["failed"] - bad),
        "seconds": seconds,
        "together_mb": watch.together / 1e6,
    }


def hard(root: Path, side: int) -> dict[str, float]:
    """Extract slides that are hard on memory, one by one; return what the largest process took."""
    import tifffile

    folder = root / "hard"
    folder.mkdir()
    rng = np.random.default_rng(0)
    tile = rng.integers(120, 220, (side // 2, side // 2, 3)).astype(np.uint8) // (1, 2, 1)
    options: dict[str, Any] = {"photometric": "rgb", "metadata": None, "software": False}
    big = np.zeros((side, side, 3), np.uint8)
    for y in (0, side // 2):
        for x in (0, side // 2):
            big[y : y + side // 2, x : x + side // 2] = tile
    tifffile.imwrite(folder / "tiles.tif", big, tile=(side // 2, side // 2), compression="deflate", **options)
    tifffile.imwrite(folder / "strips.tif", big, rowsperstrip=side // 4, compression="deflate", **options)
    tifffile.imwrite(folder / "jpeg.tif", big, tile=(side // 2, side // 2), compression="jpeg", **options)
    del big
    worst = 0.0
    for path in sorted(folder.iterdir()):
        code, said, watch, seconds = watched(path, root / f"job-{path.stem}", "--memory", "1", "--mpp", "2")
        most = max(watch.peaks.values(), default=0) / 1e6
        worst = max(worst, most)
        line(hard=path.name, code=code, failed=said.get("failed"), mb=round(most), seconds=round(seconds, 1))
    return {"hard_worst_mb": worst}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="20 slides; growth and leaks without meaning")
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    count, side = (20, 2048) if args.quick else (1000, 16384)
    goals = {key: goal for key, goal in GOALS.items() if not (args.quick and key in SLOW_TO_SHOW)}
    with tempfile.TemporaryDirectory() as folder:
        figures = many(Path(folder), count) | hard(Path(folder), side)
    summary("stress_memory", figures, goals, {"slides": count, "python": sys.version.split()[0]})


if __name__ == "__main__":
    main()
