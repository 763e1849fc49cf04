"""The process in which a worker works on slides, and may lose: it extracts, and tells what it has come to.

One for each slot of a dask worker, started anew and never forked, kept for the next task with its encoder loaded. It
ends at once where the worker is gone, and lets go of its slides in good order where it is told to stop.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import wsi
from pipelines import portions
from pipelines.config import ExtractSettings
from pipelines.console import exit_code_of
from pipelines.encoding import encoders_of, settled
from pipelines.extract import extract
from pipelines.extraction import Extraction
from pipelines.features import decisive
from pipelines.jobfolder import JobFolder
from pipelines.manifest import Manifest, SlideEntry
from pipelines.passports import passport_of
from pipelines.processes import this_process
from pipelines.provenance import Run
from pipelines.records import Record
from pipelines.signals import Preempted
from pipelines.slide_work import SlideWork, check_read

from .flight import DONE, FAILED, PORTION, SKIPPED, Flight
from .task import Answer, KnownEncoder, News, Task

if TYPE_CHECKING:
    from mil import Encoder

STOP = b"stop"
_TELL_EVERY = 1.0


@dataclass
class Charged(Extraction):
    """An extraction that says, slide by slide, what it is working on."""

    flight: Flight | None = None
    ended: Callable[[], None] = lambda: None
    portion: tuple[int, int] | None = None

    def pending(
        self, entries: Sequence[SlideEntry], digest_of: Callable[[SlideEntry], str]
    ) -> Iterator[tuple[SlideEntry, dict[str, Any]]]:
        """Yield as ever, and announce each slide before it is opened."""
        whole = self.portion is None
        for entry, parts in super().pending(entries, digest_of) if whole else self._held_by_client(entries, digest_of):
            self._flight.begin(entry.slide_id)
            yield entry, parts

    def _held_by_client(
        self, entries: Sequence[SlideEntry], digest_of: Callable[[SlideEntry], str]
    ) -> Iterator[tuple[SlideEntry, dict[str, Any]]]:
        """Yield slides of which portions are made: the client holds the claim for all who make them."""
        for entry in entries:
            parts = self._hashed(entry, digest_of)
            if parts is not None:
                yield entry, parts

    def _bring(self, work: SlideWork) -> None:
        if self.portion is not None:
            portions.read_in(self.job, self.as_each_has_it(work))  # an earlier run may have cut it otherwise
            work.read_only(np.intersect1d(portions.rows_of(work.grid, *self.portion), portions.still_out(work)))
        elif self.splits:
            portions.take_in(self.job, self.as_each_has_it(work))

    def close(self, work: SlideWork) -> None:
        """Write what a complete slide has become, then say so."""
        if self.portion is not None:
            self._close_portion(work, *self.portion)
            return
        super().close(work)
        name = work.entry.slide_id
        if name not in self.failures:
            self._flight.end(name, DONE)
            self.ended()

    def _close_portion(self, work: SlideWork, number: int, count: int) -> None:
        """Keep a portion, then say so; the slide goes on."""
        try:
            check_read(work)
            portions.keep(self.job, self.as_each_has_it(work), number, count)
        except wsi.SlideError as error:
            self.fail(work.entry, error)
            return
        finally:
            work.slide.close()
            for one in self.beside:
                one.drop(work.entry.slide_id)
        self.run.log("portion", slide=work.entry.slide_id, number=number, count=count, tiles=len(work.to_read))
        self._flight.end(work.entry.slide_id, PORTION)

    def fail(self, entry: SlideEntry, error: wsi.SlideError) -> None:
        """Keep a failure, then say so."""
        super().fail(entry, error)
        self._flight.end(entry.slide_id, FAILED, self.failures[entry.slide_id])
        if self.portion is None:
            self.ended()

    def _skip(self, entry: SlideEntry, record: Record) -> None:
        super()._skip(entry, record)
        self._flight.end(entry.slide_id, SKIPPED)
        self.ended()

    @property
    def _flight(self) -> Flight:
        assert self.flight is not None, "nobody to announce slides to"
        return self.flight


class Teller:
    """Tells the worker how far the task is, once a second.

    Args:
        send: takes the news.
    """

    def __init__(self, send: Callable[[News], None]) -> None:
        self._send, self._told = send, time.monotonic()
        self._tiles = self._ended = 0
        self.extraction: Extraction | None = None

    def total(self, total: int, *, exact: bool = True) -> None:
        """Say nothing: the client counts slides."""

    def advance(self, steps: int = 1, note: str | None = None) -> None:
        """Count tiles, and speak once a second."""
        self._tiles += steps
        if time.monotonic() - self._told >= _TELL_EVERY:
            self.tell(note or "")

    def end(self) -> None:
        """Count a slide."""
        self._ended += 1

    def tell(self, note: str = "") -> None:
        """Speak now."""
        self._told = time.monotonic()
        news = News(self._tiles, self._ended, note)
        self._tiles = self._ended = 0
        self._send(news)


class Desk:
    """What a process keeps between tasks: its encoders, and the ledger of the run it works for."""

    def __init__(self) -> None:
        self._for: ExtractSettings | None = None
        self._encoders: list[Encoder] = []
        self._run: Run | None = None
        self._named = ""

    def encoders(self, settings: ExtractSettings, *, offline: bool) -> list[Encoder]:
        """Return the encoders, loaded where they are others than the last task's."""
        if self._for != settings:
            self._encoders, self._for = [], None  # where they fill a GPU, the old ones make room first
            self._encoders, self._for = encoders_of(settings, offline=offline), settings
        return self._encoders

    def run(self, task: Task) -> Run:
        """Return this process's part of a run: one ledger and one log, however many tasks it does."""
        if self._run is None or self._named != task.run:
            self.close()
            me = this_process()
            name = f"{task.run}-{me.host}-{me.pid}"
            run = Run(JobFolder(Path(task.job)), "work", {"for": task.run}, name=name)
            self._run, self._named = run.__enter__(), task.run
        return self._run

    def close(self) -> None:
        """Close the ledger."""
        if self._run is not None:
            self._run.__exit__(None, None, None)
            self._run = None


def work_on(task: Task, desk: Desk, send: Callable[[News], None]) -> Answer:
    """Work on the slides of a task that no process was lost on before."""
    settings = task.settings if task.settings.processes != "0" else replace(task.settings, processes="auto")
    encoders = desk.encoders(settings, offline=task.offline)
    settings = settled(settings, encoders[0])
    if not task.entries:
        return Answer(task.id, encoders=tuple(KnownEncoder(one.passport(), one.device, one.dim) for one in encoders))
    other = _other_passport(task, [decisive(passport_of(one, settings)) for one in encoders])
    if other:
        return Answer(task.id, trouble=other)
    flight = Flight(JobFolder(Path(task.job)).flight(task.run, task.id))
    seen = {*flight.open, *flight.ended}  # dask gave this task to another worker before, which was lost
    entries = tuple(entry for entry in task.entries if entry.slide_id not in seen)
    teller = Teller(send)
    began = time.monotonic()
    run = desk.run(task)
    first, *also = encoders
    work = Charged(
        run.job, settings, first, run, teller, task.force, also, flight=flight, ended=teller.end, portion=task.portion
    )
    try:
        outcome = extract(work, Manifest(entries))
    except Preempted:
        flight.withdraw()
        return Answer(task.id, stopped=True)
    finally:
        teller.tell()
    return Answer(
        task.id,
        seconds=time.monotonic() - began,
        tiles=int(outcome.rates.get("read", {}).get("tiles", 0)),
        rates=outcome.rates,
        verdict=run.facts.get("verdict", {}),
        warnings=outcome.warnings,
    )


def _other_passport(task: Task, own: Sequence[Mapping[str, Any]]) -> str:
    """Say in what the encoders here differ from the others'; "" where they do not."""
    for mine, wanted in zip(own, task.passports, strict=bool(task.passports)):
        differ = sorted(name for name in {*mine, *wanted} if mine.get(name) != wanted.get(name))
        if differ:
            said = ", ".join(f"{name} is {mine.get(name)!r}, not {wanted.get(name)!r}" for name in differ[:2])
            return f"its encoder makes other features ({said})"
    return ""


def serve(descriptor: int) -> None:
    """Work off tasks that come through a pipe until its other end is closed; the life of the process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group: the client tells us to stop
    inbox: queue.SimpleQueue[Task] = queue.SimpleQueue()
    pipe = Connection(descriptor)
    signal.signal(signal.SIGTERM, _preempted)
    threading.Thread(target=_listen, args=(pipe, inbox), name="listen", daemon=True).start()
    desk, lock = Desk(), threading.Lock()

    def send(message: News | Answer) -> None:
        with lock:
            pipe.send_bytes(pickle.dumps(message))

    try:
        while True:
            task = inbox.get()
            send(_answered(task, desk, send))
    except Preempted:  # dismissed between two tasks
        desk.close()


def _answered(task: Task, desk: Desk, send: Callable[[News], None]) -> Answer:
    try:
        return work_on(task, desk, send)
    except Preempted:  # it came before the first slide, or after the last
        return Answer(task.id, stopped=True)
    except Exception as error:
        code = exit_code_of(error)
        if code is not None:
            return Answer(task.id, fault=(type(error).__name__, str(error)))
        return Answer(task.id, bug=traceback.format_exc())


def _preempted(*_: object) -> None:
    raise Preempted


def _listen(pipe: Connection, inbox: queue.SimpleQueue[Task]) -> None:
    """Take tasks, and what is urgent, while the main thread works."""
    with contextlib.suppress(EOFError, OSError):
        while True:
            message = pipe.recv_bytes()
            if message == STOP:
                os.kill(os.getpid(), signal.SIGTERM)
            else:
                inbox.put(pickle.loads(message))  # noqa: S301 - from the worker that started us
    os._exit(0)  # the worker is gone; the processes that read for us end with us


def environment(cores: int, device: str) -> dict[str, str]:
    """Return the environment of such a process.

    Args:
        cores: that it may use.
        device: CUDA devices that it may see; "" for those that the worker sees.
    """
    threads = {name: str(cores) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    return {
        **os.environ,
        **threads,
        "SLIDEMIL_CORES": str(cores),
        "PYTHONPATH": os.pathsep.join(path or os.curdir for path in sys.path),
        **({"CUDA_VISIBLE_DEVICES": device} if device else {}),
    }
