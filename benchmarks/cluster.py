"""Do eight readers on dask read eight times as fast, and what does dask cost?    python benchmarks/cluster.py [--quick]

1. Slides whose reads wait for storage (they sleep, 20 ms on average), read by 1, 2, 4 and 8 dask workers with one
   reader each. Slides are given out and answers taken in by the code of a run (`lead`, `batches`, `flight`); only what
   a worker does with a task is replaced by reading. Efficiency: tiles per second over those of one worker, and over
   the workers; within a round of half a minute for each number of workers, which take turns; the median of the rounds.
   A round must be long against a task: the last task of each worker costs the same in a round of ten seconds as in a
   night. Beside it, `occupied`: the share of the time in which readers were reading, by what the reads really took.
   The two differ where a busy machine wakes readers late: that lengthens reads, and is no loss of ours.
2. What the process that leads (our loop, dask's client and its scheduler) computes for a task and for a slide; how many
   operations on files a slide takes; what one process computes for a slide before a run, after it and for `slidemil
   status`, in a job of 20,000 slides that were made up (files of one real slide under many names).
3. From these figures, and assumptions that are printed: 1,000,000 slides on 1,000 workers (`_scale.py`, docs/scale.md).
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import os
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

from _made_up import made_up
from _scale import Site, most_workers, simulate
from _small import small_slides
from _summary import line, summary

from pipelines.cluster import lead as leading
from pipelines.cluster.batches import Batches
from pipelines.cluster.connect import Connection, connected
from pipelines.cluster.lead import Lead
from pipelines.cluster.spec import Local
from pipelines.cluster.task import Answer, Task
from pipelines.cluster.workforce import Workforce
from pipelines.config import ExtractSettings, Settings
from pipelines.jobfolder import JobFolder
from pipelines.manifest import SlideEntry

WORKERS = (1, 2, 4, 8)
LATENCY = 0.020
"""Seconds of a read, on average."""
TILES = 40
"""Tiles of a slide."""
MADE_UP = 20_000
"""Slides of the job that was never run."""
GOALS = {"efficiency_8": (">=", 0.85)}


def read(task: Task) -> Answer:
    """Read the slides of a task with one reader; what dask calls here in place of `worker.work`."""
    import random

    import numpy as np
    from distributed import get_worker

    import wsi
    from pipelines.cluster.flight import DONE, Flight

    dice = random.Random(task.id)
    pixels = np.full((64, 64 * TILES, 3), 200, np.uint8)
    flight = Flight(JobFolder(Path(task.job)).flight(task.run, task.id))
    began, tiles, read = time.monotonic(), 0, 0.0

    def wait() -> None:
        nonlocal read
        before = time.monotonic()
        time.sleep(dice.expovariate(1 / LATENCY))
        read += time.monotonic() - before

    def slides() -> Iterator[tuple[wsi.Slide, wsi.TileGrid]]:
        for entry in task.entries:
            flight.begin(entry.slide_id)
            slide = wsi.MemorySlide([pixels], mpp=0.5, on_read=lambda *_: wait())
            yield slide, wsi.tile_grid(slide, None, wsi.TileSpec(64, 0.5))

    with wsi.stream(slides(), batch_size=TILES, workers=1) as stream:
        for batch in stream:
            tiles += int(batch.ok.sum())
    for entry in task.entries:
        flight.end(entry.slide_id, DONE)
    seconds = time.monotonic() - began
    rates = {"read": {"busy": read}}
    return Answer(task.id, worker=get_worker().address, seconds=seconds, tiles=tiles, rates=rates)


def nothing(task: Task) -> Answer:
    """Do nothing with the slides of a task but write its book, as a worker would."""
    from pipelines.cluster.flight import DONE, Flight

    flight = Flight(JobFolder(Path(task.job)).flight(task.run, task.id))
    flight.ended = {entry.slide_id: {"state": DONE} for entry in task.entries[:-1]}
    flight.end(task.entries[-1].slide_id, DONE)
    return Answer(task.id, seconds=0.01)


@dataclass
class Client:
    """What a run is to the code that leads it: a folder, and nothing that can fail."""

    job: JobFolder
    run: Any = field(default_factory=lambda: SimpleNamespace(name="bench", log=lambda *_, **__: None))
    progress: Any = field(default_factory=lambda: SimpleNamespace(advance=lambda *_, **__: None))
    force: bool = False
    passport: dict[str, Any] = field(default_factory=dict)
    beside: tuple[Any, ...] = ()


@contextlib.contextmanager
def doing(work: Callable[[Task], Answer]) -> Iterator[None]:
    """Have tasks done by another function."""
    really = leading.remote.work
    leading.remote.work = work
    try:
        yield
    finally:
        leading.remote.work = really


def led(connection: Connection, folder: Path, count: int) -> tuple[Lead, float, float]:
    """Lead slides through workers; return the lead, and the seconds and core seconds of this process."""
    folder.mkdir(exist_ok=True)
    slides = [SlideEntry(f"s{n}", folder / f"s{n}.svs", f"s{n}") for n in range(count)]
    workforce = Workforce(connection, gpu=False, say=lambda _: None)
    lead = Lead(workforce, Client(JobFolder(folder)), ExtractSettings(), offline=True)  # type: ignore[arg-type]
    began, core = time.monotonic(), time.process_time()
    lead(slides)
    spent = time.monotonic() - began, time.process_time() - core
    assert len(lead.states) == count, "every slide was done"
    lead.tidy()
    return lead, *spent


def efficiency(root: Path, workers: tuple[int, ...], rounds: int, each: int) -> dict[str, float]:
    """Return tiles per second for each number of workers, which take turns, and the efficiency of the most."""
    rates: dict[int, list[float]] = {count: [] for count in workers}
    occupied: list[float] = []
    with doing(read):
        for turn in range(rounds):
            for count in workers:
                with connected(Local(count, 1), root, lambda _: None) as connection:
                    while len(connection.workers()) < count:
                        time.sleep(0.05)
                    led(connection, root / f"warm{turn}-{count}", count)  # libraries are loaded
                    lead, seconds, _ = led(connection, root / f"read{turn}-{count}", each * count)
                rates[count].append(each * count * TILES / seconds)
                busy = sum(answer.rates["read"]["busy"] for answer in lead.answers) / count / seconds
                occupied += [busy] if count == workers[-1] else []
                line(workers=count, tiles_per_s=rates[count][-1], occupied=busy, tasks=lead.tasks, seconds=seconds)
    ones = rates.pop(workers[0])
    return {
        f"efficiency_{count}": median(rate / count / one for rate, one in zip(found, ones, strict=True))
        for count, found in rates.items()
    } | {f"occupied_{workers[-1]}": median(occupied)}


class Singly(Batches):
    """Slides of which each is a task."""

    def next(self, slots: int) -> list[str]:  # noqa: ARG002 - one is one
        """Return the next one."""
        return self.one() if len(self) else []


def costs(root: Path, tasks: int) -> dict[str, float]:
    """Return milliseconds of a core that leading takes for a task, and for a slide of a task of many."""
    with connected(Local(2, 4), root, lambda _: None) as connection, doing(nothing):
        led(connection, root / "warm", 50)
        whole = leading.Batches
        try:
            leading.Batches = Singly  # type: ignore[misc]
            _, seconds, singly = led(connection, root / "singly", tasks)
        finally:
            leading.Batches = whole  # type: ignore[misc]
        lead, _, together = led(connection, root / "together", 10 * tasks)
    slide = 1e3 * together / (10 * tasks)
    line(tasks=tasks, seconds=seconds, core_s=singly, then_slides=10 * tasks, in_tasks=lead.tasks, core_s_then=together)
    return {"task_ms": 1e3 * singly / tasks - slide, "slide_ms": slide}


class Watched:
    """Counts operations on files under a folder, as Python's audit hook sees them; the hook stays for good."""

    KINDS = ("open", "os.rename", "os.link", "os.remove", "os.mkdir", "os.listdir", "os.scandir")

    def __init__(self) -> None:
        self.folder, self.counts = "", Counter[str]()
        sys.addaudithook(self._saw)

    def _saw(self, event: str, given: tuple[Any, ...]) -> None:
        if self.folder and event in self.KINDS and isinstance(given[0], str | Path):
            self.counts[event] += str(given[0]).startswith(self.folder)


def operations(root: Path, few: int, many: int) -> tuple[float, Path]:
    """Return operations on files of the job for a slide: from two runs, in one process, so that the hook sees all.

    Files opened, made, renamed, linked, removed, folders listed; not what only asks whether a file is there.

    Returns:
        The count, and the job of the larger run.
    """
    from pipelines import stages

    watched, totals = Watched(), []
    settings = Settings(extract=replace(ExtractSettings(), tile=64, min_tissue=0.0, quality=False, processes="0"))
    for count in (few, many):
        slides, job = small_slides(root / f"slides{count}", count, side=256), root / f"job{count}"
        watched.folder = str(job)
        watched.counts.clear()
        stages.extract([slides], job, settings, quiet=True)
        totals.append(sum(watched.counts.values()))
        line(slides=count, operations=dict(watched.counts))
    watched.folder = ""
    return (totals[1] - totals[0]) / (many - few), job


def looking(root: Path, like: Path, count: int) -> dict[str, float]:
    """Return what it takes one process to look at a job of very many slides that are done: before a run and after it.

    Milliseconds of a core for a slide: of the run (`end_ms`), and of `slidemil status` (`status_ms`); and memory.
    """
    from pipelines.cluster import stage
    from pipelines.encoding import encoder_of
    from pipelines.extraction import Extraction
    from pipelines.files import sweep_leftovers
    from pipelines.manifest import Sources, find_slides
    from pipelines.progress import progress
    from pipelines.provenance import Run
    from pipelines.status import describe
    from pipelines.tables_of_job import join, read_manifest, rows_by_records, write_manifest, write_slides

    made_up(like, root / "many", root / "many-slides", count)
    settings = replace(ExtractSettings(), tile=64, min_tissue=0.0, quality=False, processes="0", device="cpu")
    job, spent, before = JobFolder(root / "many"), dict[str, float](), _memory()

    def timed(name: str, work: Callable[[], Any]) -> Any:
        began = time.process_time()
        found = work()
        spent[name] = 1e3 * (time.process_time() - began) / count
        return found

    encoder, run = encoder_of(settings, offline=True), Run(job, "extract", {})
    with progress("x", "slides", quiet=True) as bar:
        first, last = (Extraction(job, settings, encoder, run, bar) for _ in range(2))
    timed("sweep", lambda: sweep_leftovers(job.root))
    found = timed("find", lambda: find_slides(Sources((root / "many-slides",))))
    mine, everything = timed("join", lambda: join(job, found))
    timed("manifest", lambda: write_manifest(job, everything))
    assert not timed("before", lambda: stage._undone(first, mine.entries))
    timed("after", lambda: stage._collect(last, mine.entries, {entry.slide_id: "done" for entry in mine.entries}))
    assert len(last.fresh) == count
    timed("slides", lambda: write_slides(job, last.facts, {}, last.output))
    end = sum(spent.values())
    said = timed("status", lambda: describe(job, read_manifest(job), rows_by_records(job)))
    assert said.data["slides"]["done"] == count
    memory = (_memory() - before) / count
    line(made_up_slides=count, **{f"{name}_ms": value for name, value in spent.items()}, kilobytes=memory)
    return {"end_ms": end, "status_ms": spent["status"], "kilobytes_a_slide": memory}


def _memory() -> float:
    """Return the most memory this process ever took, in kilobytes."""
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def on_paper(site: Site, slides: int, workers: int) -> dict[str, float]:
    """Simulate clusters of several sizes; return the figures of the one that was asked for."""
    found = simulate(site, slides, workers)
    line(slides=slides, workers=workers, **found)
    line(slides=slides, workers=workers, one_slide_a_task=True, **simulate(site, slides, workers, single=True))
    for more in (workers // 10, workers * 10):
        line(slides=slides, workers=more, **simulate(site, slides, more))
    line(most_workers=most_workers(site, 5), most_workers_one_slide_a_task=most_workers(site, 1))
    return {f"million_{name}": value for name, value in found.items() if not isinstance(value, str)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="1 and 2 workers, 100 times fewer slides")
    args = parser.parse_args()
    workers, rounds, each = ((1, 2), 1, 3) if args.quick else (WORKERS, 3, 36)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        figures = efficiency(root, workers, rounds, each)
        found = costs(root, 30 if args.quick else 500)
        count, job = operations(root, 1, 2 if args.quick else 6)
        found |= {"operations": count, **looking(root, job, 200 if args.quick else MADE_UP)}
    site = Site(found["task_ms"] / 1e3, found["slide_ms"] / 1e3, found["end_ms"] / 1e3, found["operations"])
    figures |= found | (on_paper(site, 10_000, 100) if args.quick else on_paper(site, 1_000_000, 1_000))
    versions = {name: importlib.metadata.version(name) for name in ("dask", "distributed")}
    how = {**versions, "latency_ms": 1e3 * LATENCY, "rounds": rounds, "assumed": asdict(site)}
    goals = {} if args.quick else GOALS
    summary("cluster", figures, goals, {**how, "load": round(os.getloadavg()[0], 1)})


if __name__ == "__main__":
    main()
