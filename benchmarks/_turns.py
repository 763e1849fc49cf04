"""Candidates in processes of their own, that take turns; ratios are taken inside a round."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from _summary import line

HERE = Path(__file__).resolve().parent
ENVIRONMENTS = Path(os.environ.get("SLIDEMIL_BENCH", HERE.parent / ".bench"))
HOUSE = "house"
GROUPS = {  # where each peer lives, and which packages say its version
    "ours": (HOUSE, ("numpy", "simplejpeg")),
    "limit": (HOUSE, ("simplejpeg",)),
    "openslide": (HOUSE, ("openslide-python", "openslide-bin", "pillow")),
    "openslide_cv2": ("readers", ("openslide-python", "openslide-bin", "opencv-python-headless")),
    "tiffslide": ("readers", ("tiffslide", "tifffile")),
    "pyvips": ("readers", ("pyvips", "pyvips-binary")),
    "slideio": ("readers", ("slideio",)),
    "cucim": ("cucim", ("cucim-cu12",)),
    "hs2p": ("hs2p", ("hs2p", "cucim-cu12")),
}


class AbsentError(Exception):
    """A candidate that cannot take part, and why."""


@dataclass(frozen=True)
class Candidate:
    """One reader in one setting.

    Attributes:
        reader: its name.
        threads: per process.
        processes: each reads its share and keeps the pixels.
    """

    reader: str
    threads: int = 1
    processes: int = 1

    @property
    def name(self) -> str:
        workers = f"_{self.threads}_threads" * (self.threads > 1) + f"_{self.processes}_processes" * (
            self.processes > 1
        )
        return self.reader + workers


class Worker:
    """A process that works on command (`_worker.py`, or another script)."""

    def __init__(self, group: str, script: str = "_worker.py") -> None:
        python = Path(sys.executable) if group == HOUSE else ENVIRONMENTS / group / "bin" / "python"
        if not python.exists():
            raise AbsentError(f"no environment {group}: make bench-env")
        one_thread = dict.fromkeys(("OMP_NUM_THREADS", "VIPS_CONCURRENCY", "OPENBLAS_NUM_THREADS"), "1")
        self._process = subprocess.Popen(
            [str(python), str(HERE / script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, **one_thread, "WANDB_MODE": "disabled"},
        )

    def send(self, **command: Any) -> None:
        assert self._process.stdin
        try:
            print(json.dumps(command), file=self._process.stdin, flush=True)
        except OSError as error:
            raise AbsentError(f"its process ended ({self._process.wait()})") from error

    def answer(self) -> dict[str, Any]:
        assert self._process.stdout
        text = self._process.stdout.readline()
        if not text:
            raise AbsentError(f"its process ended ({self._process.wait()})")
        answer: dict[str, Any] = json.loads(text)
        if "error" in answer:
            raise AbsentError(answer["error"])
        return answer

    def ask(self, **command: Any) -> dict[str, Any]:
        self.send(**command)
        return self.answer()

    def close(self) -> None:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(60)


class Field:
    """All candidates' processes; made when first needed, ended together."""

    def __init__(self) -> None:
        self._workers: dict[tuple[str, int], Worker] = {}
        self.absent: dict[str, str] = {}
        self.versions: dict[str, str] = {}

    def __enter__(self) -> Field:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers.values():
            worker.close()

    def workers(self, candidate: Candidate) -> list[Worker]:
        """Return the candidate's processes.

        Raises:
            AbsentError: it has no environment here.
        """
        return [self._worker(candidate.reader, number) for number in range(candidate.processes)]

    def _worker(self, reader: str, number: int) -> Worker:
        if (reader, number) not in self._workers:
            group, packages = GROUPS[reader]
            worker = self._workers[reader, number] = Worker(group)
            self.versions |= worker.ask(do="versions", of=packages)
        return self._workers[reader, number]

    def read(self, candidate: Candidate, case: Path, rows: Sequence[tuple[int, int]]) -> dict[str, float]:
        """Return the CPU and wall seconds of one tile, and the mean of the middle pixels."""
        workers = self.workers(candidate)
        n = len(workers)
        for i, worker in enumerate(workers):
            share = [(a + (b - a) * i // n, a + (b - a) * (i + 1) // n) for a, b in rows]
            worker.send(do="read", reader=candidate.reader, case=str(case), rows=share, threads=candidate.threads)
        answers = [worker.answer() for worker in workers]
        tiles = sum(one["tiles"] for one in answers)
        return {
            "cpu": sum(one["cpu"] for one in answers) / tiles,
            "wall": max(one["wall"] for one in answers) / tiles,
            "mean": sum(one["mean"] * one["tiles"] for one in answers) / tiles,
            "tiles": tiles,
        }


class Seconds:
    """What each candidate of a case took, round by round; a candidate that failed once is out."""

    def __init__(self) -> None:
        self.of: dict[str, list[dict[str, float]]] = {}

    def add(self, name: str, found: dict[str, float]) -> None:
        self.of.setdefault(name, []).append(found)

    def median(self, name: str, clock: str = "cpu") -> float:
        return median(one[clock] for one in self.of[name])

    def best(self, names: Sequence[str], clock: str = "cpu") -> str | None:
        """Return who of these is quickest."""
        there = [name for name in names if name in self.of]
        return min(there, key=lambda name: self.median(name, clock)) if there else None

    def ratios(self, over: str, under: str, clock: str = "cpu") -> list[float]:
        """Return, round by round, how many times the seconds of `under` those of `over` are."""
        return [a[clock] / b[clock] for a, b in zip(self.of[over], self.of[under], strict=True)]


def shuffled(candidates: Sequence[Candidate], dice: random.Random) -> list[Candidate]:
    order = list(candidates)
    dice.shuffle(order)
    return order


def figure(name: str, ratios: list[float], **more: Any) -> float:
    """Print a ratio with its quartiles and return its median."""
    middle = median(ratios)
    low, high = (quantiles(ratios, n=4)[i] for i in (0, 2)) if len(ratios) > 1 else (middle, middle)
    line(figure=name, median=round(middle, 3), quartiles=[round(low, 3), round(high, 3)], **more)
    return middle
