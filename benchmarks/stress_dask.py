"""What does one poison slide among 60 cost a run on dask?    python benchmarks/stress_dask.py [--quick]

Two workers with one slot and with four; the poison kills the process that works on it, or the dask worker above it,
too. All other slides must be done, none of them twice, the poison must have been tried at most twice.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from _poison_hook import environment
from _small import small_slides
from _summary import line, summary

LONGEST = 60.0
SHAPES = {"2x1": "poison-runner", "2x4": "poison-worker"}


def one(slides: Path, root: Path, shape: str) -> dict[str, float]:
    """Run over all slides and count what became of them."""
    env, struck = environment(root / f"hook{shape}")
    job = root / f"job{shape}"
    command = [sys.executable, "-m", "pipelines.cli", "extract", str(slides), "-o", str(job), "--json", "-q"]
    command += ["--tile", "64", "--set", "min_tissue=0", "--set", "quality=false", "--cluster", f"local:{shape}"]
    began = time.monotonic()
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=900, cwd=Path(__file__).parents[1])
    seconds = time.monotonic() - began
    said = json.loads(done.stdout)
    assert done.returncode == 3, (done.returncode, done.stderr)
    finished = Counter(
        event["slide"]
        for path in (job / "logs").glob("*.jsonl")
        for event in map(json.loads, path.read_text().splitlines())
        if event["event"] == "done"
    )
    return {
        "done": said["slides"]["done"],
        "failed": said["slides"]["failed"],
        "innocents_failed": sum(not one["slide"].startswith("poison") for one in said["failed"]),
        "poison_runs": len(struck.read_text().split()),
        "encoded_again": sum(count - 1 for count in finished.values()),
        "seconds": seconds,
        "cause": said["failed"][0]["cause"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="4 slides instead of 60, two workers with one slot")
    args = parser.parse_args()
    count = 4 if args.quick else 60
    shapes = {"2x1": SHAPES["2x1"]} if args.quick else SHAPES
    figures: dict[str, float] = {}
    goals: dict[str, tuple[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for shape, poison in shapes.items():
            slides = small_slides(root / f"slides{shape}", count - 1)
            (slides / f"{poison}.svs").write_bytes((slides / "s0000.svs").read_bytes())
            found = one(slides, root, shape)
            line(shape=shape, **found)
            figures |= {f"{shape}_{key}": value for key, value in found.items() if not isinstance(value, str)}
            goals |= {
                f"{shape}_done": (">=", count - 1),
                f"{shape}_failed": ("<=", 1),
                f"{shape}_innocents_failed": ("<=", 0),
                f"{shape}_poison_runs": ("<=", 2),
                f"{shape}_encoded_again": ("<=", 0),
            }
            if not args.quick:
                goals[f"{shape}_seconds"] = ("<=", LONGEST)
    versions = {name: importlib.metadata.version(name) for name in ("dask", "distributed")}
    load = round(os.getloadavg()[0], 1)
    summary("stress_dask", figures, goals, {**versions, "slides": count, "load": load, "kills": shapes})


if __name__ == "__main__":
    main()
