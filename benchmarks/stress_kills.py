"""Does `kill -9` at any moment lose anything?    python benchmarks/stress_kills.py [--quick]

A small extraction is killed at random moments and started again, until it ends. Nothing may lie under a final
name that is not whole, nothing finished may be done again, and the end must be the same bytes as an undisturbed run.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from _summary import line, summary

APART = ("runs", "logs", ".state")


def command(slides: Path, job: Path) -> list[str]:
    return [sys.executable, "-m", "pipelines.cli", "extract", str(slides), "-o", str(job), "-q", "--batch-size", "8"]


def tree(job: Path) -> dict[str, str]:
    """Return relative path → SHA-256 of everything that must be the same bytes."""
    files = {}
    for path in sorted(job.rglob("*")):
        relative = path.relative_to(job)
        if path.is_file() and relative.parts[0] not in APART:
            files[relative.as_posix()] = hashlib.sha256(path.read_bytes()).hexdigest()
    return files


def finished(job: Path) -> dict[str, int]:
    """Return the finished feature files with the time they were written."""
    records = (job / ".done").rglob("features_*/*.h5.json")
    outputs = [job / path.relative_to(job / ".done").with_suffix("") for path in records]
    return {path.as_posix(): path.stat().st_mtime_ns for path in outputs if path.is_file()}


def corrupt(job: Path) -> list[str]:
    """Name the finished outputs whose bytes are not those their record vouches for."""
    bad = []
    for record in (job / ".done").rglob("*.json") if (job / ".done").is_dir() else ():
        output = job / record.relative_to(job / ".done").with_suffix("")
        try:
            wanted = json.loads(record.read_text())["sha256"]
        except (ValueError, KeyError):
            bad.append(str(record))
            continue
        if not output.is_file() or hashlib.sha256(output.read_bytes()).hexdigest() != wanted:
            bad.append(str(output))
    return bad


def killed_run(slides: Path, job: Path, after: float) -> bool:
    """Start the extraction, kill it `after` seconds; tell whether it had ended by itself."""
    process = subprocess.Popen(
        command(slides, job), start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        process.wait(after)
        return True
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)
        return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="3 kills instead of 40")
    parser.add_argument("--kills", type=int)
    args = parser.parse_args()
    wanted = args.kills or (3 if args.quick else 40)
    rng = random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        kills, lost, torn, redone, different = run(root, wanted, rng)
    figures = {"kills": kills, "lost": lost, "corrupt": torn, "redone": redone, "different": different}
    goals = dict.fromkeys(("lost", "corrupt", "redone", "different"), ("<=", 0))
    summary("stress_kills", figures, goals, {"slides": 6, "kills": kills, "python": sys.version.split()[0]})


def run(root: Path, wanted: int, rng: random.Random) -> tuple[int, int, int, int, int]:
    from pipelines.demo_cohort import compose_cohort

    slides = root / "slides"
    compose_cohort(slides, patients=3, size=(2016, 2016))
    began = time.monotonic()
    subprocess.run(command(slides, root / "calm"), check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    whole, calm = time.monotonic() - began, tree(root / "calm")
    kills = lost = torn = redone = different = rounds = 0
    while kills < wanted:
        job = root / f"job{rounds}"
        rounds += 1
        ended = False
        for _ in range(60):
            before = finished(job)
            ended = killed_run(slides, job, whole * rng.uniform(0.05, 1.0))
            after = finished(job)
            kills += not ended
            torn += len(corrupt(job))
            lost += len(before.keys() - after.keys())
            redone += sum(after.get(path, time_) != time_ for path, time_ in before.items())
            if ended or kills >= wanted:
                break
        if not ended:
            subprocess.run(command(slides, job), check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        here = tree(job)
        different += sum(here.get(name) != digest for name, digest in calm.items()) + len(here.keys() - calm.keys())
        line(round=rounds, kills=kills, lost=lost, corrupt=torn, redone=redone, different=different)
    return kills, lost, torn, redone, different


if __name__ == "__main__":
    main()
