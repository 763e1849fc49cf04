"""Does anything about how a run is made change a byte?    python benchmarks/stress_same_bytes.py [--quick]

Three slides, twelve runs: 1, 2 and 4 readers; forwards and backwards; batches of 1, 7 and 64; in a process of its own
or not; killed and resumed; in shards; on dask. All must end in the same bytes as the first (CPU), but for `runs/`,
`logs/` and `.state/`, and for `job.yaml` and its record where a setting was changed.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from _small import small_slides
from _summary import line, summary

ROOT = Path(__file__).resolve().parent.parent
APART = ("runs", "logs", ".state", "job.yaml", ".done/job.yaml.json")
TILES = ["--tile", "64", "--set", "min_tissue=0", "--stain", "macenko", "-q"]
LONGEST = 180.0


@dataclass
class Bench:
    """Where the runs go, and the slides."""

    root: Path
    slides: list[Path]

    def command(self, job: Path, *more: str, backwards: bool = False) -> list[str]:
        """Return a run over the slides."""
        slides = [str(path) for path in (reversed(self.slides) if backwards else self.slides)]
        return [sys.executable, "-m", "pipelines.cli", "extract", *slides, "-o", str(job), *TILES, *more]

    def run(self, job: Path, *more: str, backwards: bool = False) -> None:
        """Let it run to its end."""
        subprocess.run(self.command(job, *more, backwards=backwards), check=True, stdout=subprocess.DEVNULL, cwd=ROOT)

    def killed(self, job: Path, after: float) -> None:
        """Kill it with all its processes after some seconds."""
        process = subprocess.Popen(
            self.command(job), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT, start_new_session=True
        )
        try:
            process.wait(after)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def tree(job: Path) -> dict[str, str]:
    """Return relative path → SHA-256 of everything that must be the same bytes."""
    return {
        name: hashlib.sha256((job / name).read_bytes()).hexdigest()
        for name in sorted(path.relative_to(job).as_posix() for path in job.rglob("*") if path.is_file())
        if name not in APART and name.partition("/")[0] not in APART
    }


def one_by_one(bench: Bench, job: Path) -> None:
    """Each slide by a run of its own, the last one first."""
    for count in (3, 2, 1):
        part = Bench(bench.root, bench.slides[count - 1 :])
        part.run(job)


def resumed(bench: Bench, job: Path, whole: float) -> None:
    rng = random.Random(1)
    for _ in range(2):
        bench.killed(job, whole * rng.uniform(0.5, 1.0))
    bench.run(job)


def in_shards(bench: Bench, job: Path) -> None:
    for part in range(2):
        bench.run(job, "--shard", f"{part}/2")


def shapes(whole: float) -> dict[str, Callable[[Bench, Path], None]]:
    """Return how each run but the first is made."""
    return {
        "2 readers": lambda b, job: b.run(job, "--workers", "2"),
        "4 readers, backwards": lambda b, job: b.run(job, "--workers", "4", backwards=True),
        "batch 1": lambda b, job: b.run(job, "--batch-size", "1", "--workers", "4"),
        "batch 7, backwards": lambda b, job: b.run(job, "--batch-size", "7", backwards=True),
        "no process apart": lambda b, job: b.run(job, "--set", "processes=0"),
        "two processes": lambda b, job: b.run(job, "--set", "processes=2", "--workers", "2"),
        "one slide after the other": one_by_one,
        "killed twice": lambda b, job: resumed(b, job, whole),
        "two shards": in_shards,
        "dask, 2 workers": lambda b, job: b.run(job, "--cluster", "local:2"),
        "dask, 1 worker of 2, batch 7": lambda b, job: b.run(job, "--cluster", "local:1x2", "--batch-size", "7"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="3 runs instead of 12")
    args = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        bench = Bench(root, sorted(small_slides(root / "slides", 3).iterdir()))
        bench.run(root / "first", "--workers", "1")
        wanted, whole = tree(root / "first"), time.monotonic() - began
        chosen = shapes(whole)
        names = ["killed twice", "dask, 2 workers"] if args.quick else list(chosen)
        different = 0
        for number, name in enumerate(names):
            job = root / f"job{number}"
            chosen[name](bench, job)
            found = tree(job)
            differ = sorted(path for path in {*wanted, *found} if wanted.get(path) != found.get(path))
            different += len(differ)
            line(run=name, files=len(found), different=differ[:5])
    seconds = time.monotonic() - began
    figures = {"runs": len(names) + 1, "files": len(wanted), "different": different, "seconds": seconds}
    goals = {"different": ("<=", 0.0), "files": (">=", 20.0)}
    if not args.quick:
        goals |= {"runs": (">=", 12.0), "seconds": ("<=", LONGEST)}
    summary("stress_same_bytes", figures, goals, {"slides": 3, "load": round(os.getloadavg()[0], 1), "runs": names})


if __name__ == "__main__":
    main()
