"""How quickly does `slidemil serve` answer?    python benchmarks/viewer.py [--quick]

The real command serves a job with one slide of 40,000 x 30,000 px; clients are threads of this process that ask over
the loopback. Three things: the first tile of a slide that nobody has opened (each round in a fresh server); panning,
which is columns of tiles never asked before, at full and at half resolution, with six connections as browsers have;
and ten clients that look at the same places at once. Medians over the rounds.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from urllib.parse import urlsplit

from _slides import KEPT, large_slide
from _summary import line, summary

GOALS = {"first_tile_ms": ("<=", 300.0), "pan_tiles_per_s": (">=", 50.0), "ten_clients_tiles_per_s": (">=", 50.0)}
CONNECTIONS = 6
SIDE = 256


def make_job(folder: Path, slide: Path) -> Path:
    """Make a job of one slide that was listed and not yet worked on: tiles of the picture need no more."""
    from pipelines.jobfolder import JobFolder
    from pipelines.manifest import Manifest, SlideEntry
    from pipelines.tables_of_job import write_manifest

    job = JobFolder(folder / "job")
    write_manifest(job, Manifest((SlideEntry("a", slide, "a"),)))
    return job.root


@contextmanager
def serving(job: Path) -> Iterator[tuple[str, int]]:
    """Serve a job by the command, in a process of its own; yields its address and number."""
    words = [sys.executable, "-m", "pipelines.cli", "serve", str(job), "--port", "0", "--json"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield json.loads(process.stdout.readline())["url"], process.pid
        finally:
            process.terminate()


class Client:
    """One connection that stays open."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.root = parts.path
        self.line = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=60)

    def get(self, path: str) -> bytes:
        """Return what lies at a path; fails unless all went well."""
        self.line.request("GET", self.root + path)
        answer = self.line.getresponse()
        data = answer.read()
        assert answer.status == 200, (answer.status, data[:200])
        return data


def tile(level: int, column: int, row: int) -> str:
    return f"slides/a/tiles/{level}/{column}_{row}.jpg"


def first_tile(url: str) -> float:
    """Milliseconds from asking for the whole slide in one tile to having it; the slide is not open yet."""
    client = Client(url)
    client.get("api/about")
    begin = time.perf_counter()
    client.get(tile(0, 0, 0))
    return (time.perf_counter() - begin) * 1e3


def rate(url: str, shares: Sequence[Sequence[str]]) -> float:
    """Tiles per second of clients that each ask for their own list."""
    clients = [Client(url) for _ in shares]
    for client in clients:
        client.get("api/about")
    lost: list[BaseException] = []

    def ask(client: Client, paths: Sequence[str]) -> None:
        try:
            for path in paths:
                client.get(path)
        except BaseException as error:
            lost.append(error)

    threads = [threading.Thread(target=ask, args=pair) for pair in zip(clients, shares, strict=True)]
    begin = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not lost, lost[0]
    return sum(map(len, shares)) / (time.perf_counter() - begin)


def pan(info: dict[str, int], below: int, count: int, dice: random.Random) -> list[str]:
    """Paths along a walk over the slide: columns of five tiles, one after the other, as when it is dragged."""
    level = info["top"] - below
    across, along = (-(-(info[side] >> below) // SIDE) for side in ("width", "height"))
    row, first = dice.randrange(max(1, along - 5)), dice.randrange(max(1, across // 2))
    walk = [(column % across, row + down) for column in range(first, first + across) for down in range(5)]
    return [tile(level, column, down) for column, down in walk if down < along][:count]


def cpu_ms(process: int) -> float:
    """CPU time that a process and its children have taken so far; other work on the machine does not count."""
    ticks = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended since
            facts = path.read_text().rpartition(")")[2].split()
            if process in (int(path.parent.name), int(facts[1])):
                ticks += sum(map(int, facts[11:13]))
    return ticks / os.sysconf("SC_CLK_TCK") * 1e3


def play(url: str, process: int, count: int, seed: int) -> dict[str, float]:
    Client(url).get("api/about")
    before = cpu_ms(process)
    found = {"first_tile_ms": first_tile(url)}
    found["first_tile_cpu_ms"] = cpu_ms(process) - before
    info = json.loads(Client(url).get("slides/a/info"))
    dice = random.Random(seed)
    for name, below in (("pan_tiles_per_s", 0), ("pan_half_tiles_per_s", 1)):
        paths = pan(info, below, count, dice)
        before = cpu_ms(process)
        found[name] = rate(url, [paths[at::CONNECTIONS] for at in range(CONNECTIONS)])
        found[f"{name}_of_cpu"] = len(paths) / max(10.0, cpu_ms(process) - before) * 1e3
    same = pan(info, 2, count // 2, dice)
    found["ten_clients_tiles_per_s"] = rate(url, [dice.sample(same, len(same)) for _ in range(10)])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--quick", action="store_true", help="a slide of a 64th of the area, one round")
    args = parser.parse_args()
    rounds = args.rounds or (1 if args.quick else 7)
    shrink, count = (8, 40) if args.quick else (1, 600)
    from pipelines.errors import EnvironmentFault
    from pipelines.viewer import asset

    try:
        asset.check()
    except EnvironmentFault as error:
        summary("viewer", {}, GOALS, {"lacks": str(error)}, set(GOALS))
        return
    with tempfile.TemporaryDirectory() as folder:
        slide = large_slide(40_000 // shrink, 30_000 // shrink, folder=Path(folder) if args.quick else KEPT)
        job = make_job(Path(folder), slide)
        turns = []
        for number in range(rounds):
            with serving(job) as (url, process):
                turns.append(play(url, process, count, number))
            line(**turns[-1])
    figures = {key: median(turn[key] for turn in turns) for key in turns[0]}
    how = {"slide": slide.name, "rounds": rounds, "cores": len(os.sched_getaffinity(0)), "load": os.getloadavg()[0]}
    summary("viewer", figures, GOALS, {**how, "python": sys.version.split()[0]})


if __name__ == "__main__":
    main()
