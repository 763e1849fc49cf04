"""Do two runs on one job folder each do their share, also where one is killed?    python benchmarks/stress_two_runs.py

Two commands start together on the same slides; one of them is killed at a random moment. The other must end with all
slides done, must not wait for the dead, and every slide must have been made whole, and once but for those that were in
the hands of the dead.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from _stress import Forked, calm, corrupt, differ, finished, leftovers, preload, small_slides, tree, verify, words
from _summary import line, summary

SLIDES = 8
UNDER_WAY = 4
"""Slides that one run may hold at a time: two ahead in the queue, one that is read, one that is prepared."""
GOALS = ("not_done", "corrupt", "different", "twice", "late", "verify_findings", "left_over", "claims_left")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="1 kill instead of 20")
    args = parser.parse_args()
    counts: Counter[str] = Counter(dict.fromkeys(GOALS, 0))
    with tempfile.TemporaryDirectory() as folder:
        run(Path(folder), 1 if args.quick else 20, random.Random(0), counts)
    goals: dict[str, tuple[str, float]] = {"killed": (">=", 1 if args.quick else 20), **dict.fromkeys(GOALS, ("<=", 0))}
    how = {"slides": SLIDES, "python": sys.version.split()[0]}
    summary("stress_two_runs", dict(counts), goals, how)


def run(root: Path, trials: int, rng: random.Random, counts: Counter[str]) -> None:
    slides = small_slides(root / "slides", SLIDES)
    preload(slides, root / "warm")
    began = time.monotonic()
    calm(slides, root / "calm")
    whole, truth, trial = time.monotonic() - began, tree(root / "calm"), -1
    while counts["killed"] < trials and trial < 4 * trials:
        trial += 1
        job = root / f"job{trial}"
        undisturbed = trial % 5 == 4
        one, two = Forked(words(slides, job)), Forked(words(slides, job))
        began = time.monotonic()
        if not undisturbed:
            dead, done = rng.choice([one, two]), rng.randrange(SLIDES - 1)
            while dead.poll() is None and len(finished(job)) < done:
                time.sleep(0.005)
            time.sleep(rng.uniform(0, 0.2) * whole)
            counts["killed"] += dead.poll() is None
            if dead.poll() is None:
                os.killpg(dead.pid, signal.SIGKILL)
        for process in (one, two):
            counts["late"] += process.wait(20 * whole + 60) is None  # it waits for the dead
            process.kill_group()
            counts["not_done"] += process.returncode not in (0, -signal.SIGKILL)
        counts["corrupt"] += len(corrupt(job))
        written = Counter(made(job))
        twice = sum(times - 1 for times in written.values())
        counts["twice"] += max(0, twice - (0 if undisturbed else UNDER_WAY))
        counts["not_done"] += len(written.keys() ^ {path.stem for path in slides.glob("*.svs")})
        counts["different"] += differ(truth, tree(job))
        counts["verify_findings"] += len(verify(job))
        calm(slides, job)  # a third run sweeps what the dead left
        counts["left_over"] += len(leftovers(job))
        counts["claims_left"] += len([p for p in (job / ".state" / "claims").glob("slides/*") if p.name[0] != "."])
        counts["different"] += differ(truth, tree(job))
        shares = sorted((len(list(names)) for names in by_run(job)), reverse=True)
        line(trial=trial, undisturbed=undisturbed, shares=shares, **counts)
        subprocess.run(["rm", "-rf", str(job)], check=True)


def made(job: Path) -> list[str]:
    """Return the slides that any run finished, once for each time."""
    return [name for names in by_run(job) for name in names]


def by_run(job: Path) -> list[list[str]]:
    """Return which slides each run finished, by its ledger."""
    found = []
    for path in sorted((job / "runs").glob("*.ledger.jsonl")):
        lines = [json.loads(text) for text in path.read_text().split("\n")[:-1]]
        wrote = [one["path"] for one in lines if one["event"] == "wrote" and "/features_" in one["path"]]
        found.append([Path(one).stem for one in wrote])
    return found


if __name__ == "__main__":
    main()
