"""Does the death of a reader cost any slide but its own?    python benchmarks/stress_deaths.py [--quick]

Runs of 20 slides. In some, three slides end whichever process reads them, by SIGKILL, SIGSEGV and SIGABRT: they must
fail and say so, the 17 others must be done once, with the bytes of an undisturbed run. In the others no slide is to
blame: processes are killed from outside at random moments, while they open, look through or read; all 20 must be done.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from _poison import SIGNALS
from _stress import tree
from _summary import line, summary
from _tree import look

GOALS = {
    "deaths": (">=", 50),
    "innocents_failed": ("<=", 0),
    "innocents_redone": ("<=", 0),
    "innocents_changed": ("<=", 0),
    "guilty_without_cause": ("<=", 0),
    "main_died": ("<=", 0),
}
HERE = Path(__file__).resolve().parent
OURS = ("wsi.remote_reader", "pipelines.losable")
"""What the command lines of processes that may be lost say."""
_REST = 1.5
"""Seconds between two deaths, beside three starts of a process: what was lost is read again alone, in a process of
its own, and must not be hit by the next."""


def begin(slides: Path, job: Path) -> subprocess.Popen[str]:
    command = [sys.executable, str(HERE / "_poison.py"), "extract", str(slides), "-o", str(job), "--json", "-q"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def outcome(process: subprocess.Popen[str]) -> dict[str, Any]:
    said, more = process.communicate()
    if process.returncode not in (0, 3):
        line(died=process.returncode, said=more[-2000:])
        return {"main_died": 1, "failed": [], "rates": {}}
    return dict(json.loads(said))


def events(job: Path) -> Counter[tuple[str, str]]:
    """Return how often each thing happened to each slide, by the log of the run."""
    (log,) = (job / "logs").glob("*.jsonl")
    told = [json.loads(text) for text in log.read_text().splitlines()]
    return Counter((one["event"], one["slide"]) for one in told if "slide" in one)


def judge(job: Path, found: dict[str, Any], guilty: dict[str, int], calm: dict[str, str]) -> dict[str, int]:
    """Return what is wrong with a run, by key of the summary."""
    failed = {one["slide"]: one["cause"] for one in found["failed"]}
    happened = events(job)
    here = tree(job)
    names = {name for name in calm if name.partition("/")[0][0].isdigit() or name.startswith(("contours", "thumb"))}
    return {
        "main_died": found.get("main_died", 0),
        "innocents_failed": len(failed.keys() - guilty.keys()),
        "innocents_redone": sum(count > 1 for (event, _), count in happened.items() if event in ("opened", "done")),
        "innocents_changed": sum(here.get(name) != calm[name] for name in names),
        "guilty_without_cause": sum(f"signal {number}" not in failed.get(name, "") for name, number in guilty.items()),
    }


def poisoned(root: Path, calm: dict[str, str], number: int) -> tuple[int, dict[str, int]]:
    """Run with three deadly slides among twenty; return the deaths and what is wrong."""
    slides, job = root / f"poisoned{number}", root / f"job-poisoned{number}"
    slides.mkdir()
    dice = random.Random(number)
    chosen = dict(zip(dice.sample(sorted((root / "slides").iterdir()), 3), SIGNALS, strict=True))
    guilty = {}
    for path in sorted((root / "slides").iterdir()):
        sign = chosen.get(path)
        name = path.name if sign is None else f"poison-{int(sign)}-{path.name}"
        os.link(path, slides / name)
        if sign is not None:
            guilty[Path(name).stem] = int(sign)
    found = outcome(begin(slides, job))
    spared = {Path(name).stem.removeprefix(f"poison-{sign}-") for name, sign in guilty.items()}
    mine = {name: digest for name, digest in calm.items() if not any(one in name for one in spared)}
    mine = {name: digest for name, digest in mine.items() if not name.endswith((".csv", ".yaml"))}
    deaths = int(found["rates"].get("read", {}).get("processes_lost", 0))
    return deaths, judge(job, found, guilty, mine)


def seconds_to_start() -> float:
    """Return what the start of a process takes just now: many times as long on a busy machine as on a quiet one."""
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", f"import {', '.join(OURS)}"], check=True)
    return time.monotonic() - began


def killed(root: Path, calm: dict[str, str], number: int, most: int) -> tuple[int, dict[str, int]]:
    """Run while processes are killed from outside; return the deaths and what is wrong."""
    job, dice = root / f"job-killed{number}", random.Random(100 + number)
    process = begin(root / "slides", job)
    deaths, due = 0, time.monotonic() + dice.uniform(2, 4)
    while process.poll() is None:
        time.sleep(0.02)
        if time.monotonic() < due or deaths == most:
            continue
        below = [one for one in look(process.pid) if any(word in one.command for word in OURS)]
        if below:
            victim = dice.choice(below)
            try:
                os.kill(victim.pid, dice.choice(SIGNALS))
            except ProcessLookupError:
                continue
            deaths += 1
            due = time.monotonic() + 3 * seconds_to_start() + _REST + dice.random()
    return deaths, judge(job, outcome(process), {}, calm)


def run(root: Path, rounds: int, kills: int, slides: int, size: int) -> dict[str, float]:
    from pipelines.demo_cohort import compose_cohort

    compose_cohort(root / "slides", patients=slides // 2, size=(size, size))
    found = outcome(begin(root / "slides", root / "calm"))
    assert not found["failed"], found
    calm = tree(root / "calm")
    figures: Counter[str] = Counter(dict.fromkeys(GOALS, 0))
    by_slides = 0
    for number in range(rounds):
        deaths, wrong = poisoned(root, calm, number)
        by_slides += deaths
        figures.update(wrong)
        line(round=number, by="slides", deaths=deaths, **wrong)
        shutil.rmtree(root / f"job-poisoned{number}")
    outside = number = 0
    while outside < kills:
        deaths, wrong = killed(root, calm, number, kills - outside)
        outside += deaths
        figures.update(wrong)
        line(round=number, by="kill", deaths=deaths, **wrong)
        shutil.rmtree(root / f"job-killed{number}")
        number += 1
    return {**figures, "deaths": by_slides + outside, "killed_from_outside": outside}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="6 slides, a handful of deaths")
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    rounds, kills, slides, size = (1, 1, 6, 1600) if args.quick else (5, 20, 20, 2016)
    goals = {**GOALS, "deaths": (">=", 5 if args.quick else 50)}
    with tempfile.TemporaryDirectory() as folder:
        figures = run(Path(folder), rounds, kills, slides, size)
    summary("stress_deaths", figures, goals, {"slides": slides, "python": sys.version.split()[0]})


if __name__ == "__main__":
    main()
