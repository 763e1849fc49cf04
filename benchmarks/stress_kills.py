"""Does `kill -9` at any moment lose anything?    python benchmarks/stress_kills.py [--quick]

A small extraction is killed at random moments and started again, until it ends: the main process alone, the whole
group, or a process that reads (which the run must survive). Nothing may lie under a final name that is not whole,
nothing finished may be done again, and the end must be the same bytes as an undisturbed run.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from _stress import (
    Forked,
    calm,
    corrupt,
    differ,
    finished,
    leftovers,
    preload,
    small_slides,
    tree,
    verify,
    words,
)
from _summary import line, summary

SLIDES = 6
GOALS = ("lost", "corrupt", "redone", "different", "failed", "readers_left", "verify_findings", "left_over")
WAYS = ("main", "group", "reader")
MORE = ("--set", "processes=1")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="3 kills instead of 200")
    parser.add_argument("--kills", type=int)
    args = parser.parse_args()
    wanted = args.kills or (3 if args.quick else 200)
    counts: Counter[str] = Counter(dict.fromkeys(GOALS, 0))
    with tempfile.TemporaryDirectory() as folder:
        run(Path(folder), wanted, random.Random(0), counts)
    how = {"slides": SLIDES, "ways": "main process, group, reading process", "python": sys.version.split()[0]}
    summary("stress_kills", dict(counts), dict.fromkeys(GOALS, ("<=", 0)), how)


def run(root: Path, wanted: int, rng: random.Random, counts: Counter[str]) -> None:
    slides = small_slides(root / "slides", SLIDES)
    preload(slides, root / "warm")
    began = time.monotonic()
    calm(slides, root / "calm", *MORE)
    whole, truth = time.monotonic() - began, tree(root / "calm")
    opening = first_record(slides, root / "first")
    number = 0
    while counts["kills"] < wanted:
        job = root / f"job{number}"
        number += 1
        for turn in range(60):
            way = WAYS[(number + turn) % len(WAYS)]
            began = time.monotonic()
            ended = killed_run(slides, job, rng.uniform(0.8 * opening, whole), way, counts)
            took = time.monotonic() - began
            if ended and turn == 0 and took < whole:  # the machine is not as busy any more
                opening, whole = opening * took / whole, took
            if ended or counts["kills"] >= wanted:
                break
        calm(slides, job, *MORE)
        counts["different"] += differ(truth, tree(job))
        counts["left_over"] += len(leftovers(job))
        counts["verify_findings"] += len(verify(job))
        subprocess.run(["rm", "-rf", str(job)], check=True)
        line(round=number, **counts)


def first_record(slides: Path, job: Path) -> float:
    """Return the seconds until a run begins to write: kills before that would test nothing."""
    process, began = Forked(words(slides, job, *MORE)), time.monotonic()
    while process.poll() is None and not (job / "runs").is_dir():
        time.sleep(0.002)
    seconds = time.monotonic() - began
    process.kill_group()
    return seconds


def killed_run(slides: Path, job: Path, after: float, way: str, counts: Counter[str]) -> bool:
    """Start the extraction, kill (a part of) it after some seconds; tell whether it had ended by itself."""
    before = finished(job)
    process = Forked(words(slides, job, *MORE))
    if process.wait(after) is not None:
        counts["failed"] += process.returncode != 0
        return True
    killed = kill(process.pid, way)
    if way == "reader":  # the run goes on: a reader that was killed from outside costs nothing
        counts["failed"] += process.wait(300) != 0
    elif way == "main":  # its readers end by themselves
        process.wait(30)
        until = time.monotonic() + 5
        while members(process.pid) and time.monotonic() < until:
            time.sleep(0.02)
        counts["readers_left"] += bool(members(process.pid))
    process.kill_group()
    there = finished(job)
    counts["kills"] += killed
    counts[f"kills_{way}"] += killed
    counts["corrupt"] += len(corrupt(job))
    counts["lost"] += len(before.keys() - there.keys())
    counts["redone"] += sum(there.get(path, stamp) != stamp for path, stamp in before.items())
    return process.returncode == 0


def kill(pid: int, way: str) -> bool:
    """Kill the main process, the group, or one other process of it; tell whether there was one."""
    if way == "group":
        os.killpg(pid, signal.SIGKILL)
        return True
    others = members(pid)
    target = pid if way == "main" else (others[-1] if others else None)
    if target is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(target, signal.SIGKILL)
    return target is not None


def members(group: int) -> list[int]:
    """Return the living processes of a group but its first."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            if int(fields[2]) == group and fields[0] != "Z" and int(path.parent.name) != group:
                found.append(int(path.parent.name))
    return sorted(found)


if __name__ == "__main__":
    main()
