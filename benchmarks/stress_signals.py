"""Do SIGINT and SIGTERM end a run in time, with its code, and lose nothing?    python benchmarks/stress_signals.py

Twenty signals at random moments, to the main process or to the whole group, as a terminal and a batch system send them.
Within ten seconds: exit code 130 or 75, the ledger closed, no claim and no temporary file left; the next run ends with
the bytes of an undisturbed one.
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

from _stress import calm, corrupt, differ, leftovers, preload, small_slides, tree, verify, words
from _summary import line, summary

CODES = {signal.SIGINT: 130, signal.SIGTERM: 75}
ENDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "pre-empted"}
GOALS = ("wrong_code", "corrupt", "different", "ledger_open", "claims_left", "left_over", "verify_findings")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="2 signals instead of 20")
    args = parser.parse_args()
    counts: Counter[str] = Counter(dict.fromkeys(GOALS, 0))
    with tempfile.TemporaryDirectory() as folder:
        slowest = run(Path(folder), 2 if args.quick else 20, random.Random(0), counts)
    goals: dict[str, tuple[str, float]] = {**dict.fromkeys(GOALS, ("<=", 0)), "slowest_seconds": ("<=", 10)}
    figures = {**counts, "slowest_seconds": slowest}
    summary("stress_signals", figures, goals, {"slides": 6, "python": sys.version.split()[0]})


def started(slides: Path, job: Path) -> subprocess.Popen[bytes]:
    """Start the command as a user would, the first of a group of its own."""
    command = [sys.executable, "-m", "pipelines.cli", *words(slides, job)]
    return subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def run(root: Path, wanted: int, rng: random.Random, counts: Counter[str]) -> float:
    slides = small_slides(root / "slides", 6)
    preload(slides, root / "warm")
    began = time.monotonic()
    calm(slides, root / "calm")
    whole, truth = time.monotonic() - began, tree(root / "calm")
    slowest, trial = 0.0, 0
    while counts["signals"] < wanted and trial < 4 * wanted:
        job, number, group = root / f"job{trial}", list(CODES)[trial % 2], trial % 4 >= 2
        trial += 1
        process = started(slides, job)
        while process.poll() is None and not list((job / "runs").glob("*.ledger.jsonl")):
            time.sleep(0.02)  # before that nothing has begun, and Python itself answers
        time.sleep(rng.uniform(0, 0.7) * whole)
        if process.poll() is not None:
            continue
        began = time.monotonic()
        (os.killpg if group else os.kill)(process.pid, number)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(30)
        slowest = max(slowest, time.monotonic() - began)
        if process.returncode == 0 or last_line(job).get("status") == "done":  # it had just ended
            subprocess.run(["rm", "-rf", str(job)], check=True)
            continue
        counts["signals"] += 1
        counts["wrong_code"] += process.returncode != CODES[number]
        counts["ledger_open"] += last_line(job).get("status") != ENDS[number]
        counts["claims_left"] += len([p for p in (job / ".state" / "claims").glob("slides/*") if p.name[0] != "."])
        counts["left_over"] += len(leftovers(job))
        counts["corrupt"] += len(corrupt(job))
        calm(slides, job)
        counts["different"] += differ(truth, tree(job))
        counts["verify_findings"] += len(verify(job))
        line(trial=trial, signal=number.name, group=group, code=process.returncode, slowest=slowest, **counts)
        subprocess.run(["rm", "-rf", str(job)], check=True)
    return slowest


def last_line(job: Path) -> dict[str, str]:
    (path,) = (job / "runs").glob("*.ledger.jsonl")
    return dict(json.loads(path.read_text().rstrip("\n").split("\n")[-1]))


if __name__ == "__main__":
    main()
