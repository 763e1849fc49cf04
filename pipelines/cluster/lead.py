"""Leads a run on a cluster: gives out tasks, reads from the files what became of them, and gives out what is left.

dask carries tasks and answers; what is done is decided by the files of the job alone. A slide that a process was lost
on is tried once more when all others are done, alone on its worker: a second loss is then its own.
"""

from __future__ import annotations

import contextlib
import shutil
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import wsi
from pipelines import __version__, portions
from pipelines.config import ExtractSettings
from pipelines.counting import size_of
from pipelines.errors import ExitCode, JobError
from pipelines.extraction import Extraction
from pipelines.features import decisive
from pipelines.files import write_text
from pipelines.manifest import SlideEntry

from . import worker as remote
from .batches import Batches
from .board import Board
from .flight import FAILED, PORTION, Flight
from .splits import Portion, Split
from .task import Answer, KnownEncoder, Task
from .workforce import Workforce

if TYPE_CHECKING:
    from distributed import Future

_LOOK = 0.05
_TRIES = 3
"""How often a slide is given out that comes back undone with no process lost, before the run gives up on it."""
_STOP = 8.0
"""Seconds for workers to let go of their slides."""
_LOST = ("KilledWorker", "FutureCancelledError", "CancelledError", "CommClosedError", "FutureLostError")


class WorkerFault(JobError):  # noqa: N818 - like EnvironmentFault
    """A worker met what stops the whole job: the disk is full, weights are missing."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        weights = kind in ("WeightsError", "WeightsRefusedError")
        usage = kind in ("UsageError", "StainError", "MilError")
        self.exit_code = ExitCode.WEIGHTS if weights else ExitCode.USAGE if usage else ExitCode.ENVIRONMENT


class Under:
    """A task that is under way.

    Attributes:
        task: what was given out.
        future: of dask; None where the scheduler could not be told.
        where: the worker it is bound to; "" where any may take it.
    """

    def __init__(self, task: Task, future: Future[Answer] | None, where: str) -> None:
        self.task, self.future, self.where = task, future, where

    @property
    def portion(self) -> Portion | None:
        """Its portion of a slide; None where it is of whole slides."""
        return None if self.task.portion is None else Portion(self.task.entries[0].slide_id, self.task.portion[0])


class Lead:
    """One run on a cluster.

    Args:
        workforce: who works.
        extraction: the run as the client sees it: where outputs lie, and what has failed.
        settings: of the workers, which may compute on another device than the client.
        offline: open no connection for weights.
        gpus: CUDA devices that the workers of this machine share out.

    Attributes:
        answers: of the tasks, in the order in which they came.
        lost: slide → how the process was lost that worked on it, each time.
        states: slide → what the books of the tasks say that it came to.
        tasks: how many were given out.
        whole: large slides that were not cut into portions, because maps are not made so.
    """

    def __init__(
        self, workforce: Workforce, extraction: Extraction, settings: ExtractSettings, *, offline: bool, gpus: int = 0
    ) -> None:
        self.workforce, self.extraction = workforce, extraction
        self.answers: list[Answer] = []
        self.lost: dict[str, list[str]] = {}
        self.states: dict[str, str] = {}
        self.tasks = 0
        self.whole: list[str] = []
        self._settings, self._offline, self._gpus = settings, offline, gpus
        self._passports: tuple[Mapping[str, Any], ...] = ()
        self._board = Board()
        self._under: dict[str, Under] = {}
        self._tries: dict[str, int] = {}
        self._entries: dict[str, SlideEntry] = {}
        self._sizes: dict[str, int] = {}
        self._splits: dict[str, Split] = {}

    def __call__(self, entries: Iterable[SlideEntry]) -> None:
        """Have all slides done.

        Raises:
            EnvironmentFault: no worker can work, or the scheduler is gone for good.
            WorkerFault: a worker met what stops the whole job.
        """
        self._entries = {entry.slide_id: _absolute(entry) for entry in entries}
        self._sizes = {name: size_of(entry) for name, entry in self._entries.items()}
        passports = (self.extraction.passport, *(one.passport for one in self.extraction.beside))
        self._passports = tuple(decisive(passport) for passport in passports)
        write_text(self._proof, self._run)
        self._subscribe()
        self.workforce.look(now=True)
        suspects = [name for name in self.lost if name in self._entries]
        self._together(Batches({name: size for name, size in self._sizes.items() if name not in suspects}))
        self._alone()

    def ask(self) -> tuple[KnownEncoder, ...]:
        """Ask a worker what the encoders are there; the client's own may compute otherwise, on another device.

        Raises:
            EnvironmentFault: no worker can work.
            WorkerFault: no worker has weights, or room.
        """
        write_text(self._proof, self._run)
        while True:
            self.workforce.look(now=True)
            if self.workforce.usable():
                self._give([])
                (under,) = self._under.values()
                while under.future is not None and not under.future.done() and self.workforce.connection.alive:
                    time.sleep(_LOOK)
                    self.workforce.look()
                answer = self._answer(under)
                self._drop(under)
                if answer.trouble:
                    self.workforce.bar(answer.worker, answer.trouble)
                if answer.encoders:
                    return answer.encoders
            time.sleep(_LOOK)

    def stop(self) -> None:
        """Have the workers let go of what is under way; what they were told to do is over afterwards."""
        futures = [under.future for under in self._under.values() if under.future is not None]
        if futures and self.workforce.connection.alive:
            with contextlib.suppress(Exception):
                self.workforce.connection.client.run(remote.stop_run, self._run, wait=False)
            until = time.monotonic() + _STOP
            while time.monotonic() < until and not all(future.done() for future in futures):
                time.sleep(_LOOK)
        for future in futures:
            with contextlib.suppress(Exception):
                future.cancel(force=True)
        for under in list(self._under.values()):
            self._drop(under)
        for slide in self._splits:
            self.extraction.claims.release(slide)

    def tidy(self) -> None:
        """Take away what the run needed while it went, and the processes that wait for tasks."""
        with contextlib.suppress(Exception):
            if self.workforce.connection.alive:
                self.workforce.connection.client.run(remote.end_idle, wait=False)
        shutil.rmtree(self._proof.parent, ignore_errors=True)

    # giving out

    def _together(self, batches: Batches) -> None:
        while len(batches) or self._under:
            while len(self._under) < self.workforce.room and (names := batches.next(self.workforce.room)):
                if not self._split(names, batches):
                    self._give(names)
            self._turn(batches)

    def _split(self, names: Sequence[str], batches: Batches) -> bool:
        """Cut a slide that is large into portions, which wait in its place; say whether that was done."""
        slide, slots = names[0], self.workforce.room
        if len(names) > 1 or slide in self._splits or isinstance(slide, Portion):
            return False
        count = batches.portions(slide, slots)
        if count > 1 and self._settings.dense:
            self.whole.append(slide)
        if count < 2 or self._settings.dense or not self.extraction.claims.take(slide):
            return False
        if self.extraction.force:  # what an earlier run made
            portions.drop(self.extraction.job, slide)
        self._splits[slide] = Split(slide, count)
        batches.add({Portion(slide, number): self._sizes[slide] // count for number in range(count)})
        self.extraction.run.log("split", slide=slide, portions=count)
        return True

    def _alone(self) -> None:
        """Try slides once more that processes were lost on: one at a time on each worker, and nothing beside it."""
        batches = Batches({name: self._sizes[name] for name in self.lost if name in self._entries})
        while len(batches) or self._under:
            busy = {under.where for under in self._under.values()}
            for address in [one for one in self.workforce.usable() if one not in busy][: len(batches)]:
                self._give(batches.one(), where=address)
            self._turn(batches)

    def _give(self, names: Sequence[str], where: str = "") -> None:
        part = names[0] if names and isinstance(names[0], Portion) else None
        names = names if part is None else [part.slide]
        task = Task(
            id=uuid.uuid4().hex[:12],
            run=self._run,
            version=__version__,
            job=str(self.extraction.job.root.resolve()),
            proof=(self._proof.relative_to(self.extraction.job.root).as_posix(), self._run),
            entries=tuple(self._entries[name] for name in names),
            sizes={name: self._sizes[name] for name in names},
            settings=self._settings,
            force=self.extraction.force,
            offline=self._offline,
            hosts=self.workforce.sharing(),
            gpus=self._gpus,
            passports=self._passports,
            portion=None if part is None else (part.number, self._splits[part.slide].count),
        )
        future: Future[Answer] | None = None
        with contextlib.suppress(Exception):  # where the scheduler went away this moment, the next turn finds out
            client = self.workforce.connection.client
            options = self.workforce.options(where)
            future = client.submit(remote.work, task, key=f"slidemil-{task.id}", pure=False, **options)
        self.tasks += 1
        self._under[task.id] = Under(task, future, where)

    # taking in

    def _turn(self, batches: Batches) -> None:
        """Look once at everything that is under way."""
        if not self.workforce.connection.alive:
            self._without_scheduler(batches)
            return
        self.workforce.look()
        note = self._board.line(self.workforce.count, len(self._under))
        self.extraction.progress.advance(self._board.ended(), note=note)
        under = list(self._under.values())
        done = [one for one in under if one.future is None or one.future.done()]
        for one in done:
            self._take_in(one, batches)
        for one in under:  # a task that is bound to a worker that is gone would wait for ever
            if one.where and one not in done and not self.workforce.is_there(one.where):
                if one.future is not None:
                    one.future.cancel(force=True)
                self._was_lost(one, "the worker was lost", batches)
        if not done:
            time.sleep(_LOOK)

    def _take_in(self, under: Under, batches: Batches) -> None:
        answer = self._answer(under)
        self.answers.append(answer)
        if answer.lost:
            self._was_lost(under, answer.lost, batches)
            return
        flight = self._drop(under)
        if under.portion is not None:
            self._portion_is_back(under.portion, under.task, flight, batches, answer)
            return
        batches.learn([name for name in flight.ended if name in under.task.sizes], answer.seconds)
        if answer.trouble and not self._gone_here(under.task):
            self.workforce.bar(answer.worker, answer.trouble)
        self._give_again(under, [*flight.ended], batches, blame=not (answer.trouble or answer.stopped))

    def _answer(self, under: Under) -> Answer:
        """Return what a task came to; nearly always, an error of dask means that a worker was lost.

        Raises:
            WorkerFault: it met what stops the whole job.
            RuntimeError: a bug of ours.
        """
        future = under.future
        if future is None:
            return Answer(under.task.id, lost="the scheduler was lost")
        error = future.exception() if future.status == "error" else None
        answer: Answer | None = future.result() if future.status == "finished" else None
        future.release()
        if answer is None:
            kind = type(error).__name__
            if error is None or kind in _LOST:
                return Answer(under.task.id, lost="the worker was lost")
            if isinstance(error, ImportError):
                raise WorkerFault("EnvironmentFault", f"a worker lacks slidemil, or a part of it: {error}")
            raise RuntimeError(f"dask could not run a task ({kind}: {error})")
        if answer.fault[0]:
            raise WorkerFault(*answer.fault)
        if answer.bug:
            raise RuntimeError(f"a bug on worker {answer.worker}:\n{answer.bug}")
        return answer

    def _was_lost(self, under: Under, how: str, batches: Batches) -> None:
        """A process was lost on a task: the slides it had open are suspects, the others go on."""
        flight = self._drop(under)
        self.extraction.run.log("lost", task=under.task.id, how=how, open=flight.open)
        if under.portion is not None:
            self._portion_is_back(under.portion, under.task, flight, batches, Answer(under.task.id, lost=how))
            return
        for name in (name for name in flight.open if name in under.task.sizes):
            self.lost.setdefault(name, []).append(how)
            if under.where:
                self._condemn(name)
        self._give_again(under, [*flight.ended, *flight.open], batches, blame=False)

    def _give_again(self, under: Under, settled: Sequence[str], batches: Batches, *, blame: bool) -> None:
        """Let slides wait again that a task was to do and did not come to."""
        left = [name for name in under.task.sizes if name not in settled]
        for name in left:
            self._tries[name] = self._tries.get(name, 0) + blame
        batches.put_back([name for name in left if self._tries[name] < _TRIES])
        for name in (name for name in left if self._tries[name] >= _TRIES):
            self._fail(name, "it was given out and came back undone", "Run again; if it stays, report it.")

    def _drop(self, under: Under) -> Flight:
        self._under.pop(under.task.id, None)
        self._board.forget(under.task.id)
        flight = Flight(self.extraction.job.flight(self._run, under.task.id))
        if under.portion is None:
            self.states |= {name: said["state"] for name, said in flight.ended.items()}
        return flight

    def _portion_is_back(self, portion: Portion, task: Task, flight: Flight, batches: Batches, answer: Answer) -> None:
        """Take in one portion; behind the last, one worker encodes what is missing and makes the feature file."""
        slide, number = portion.slide, portion.number
        split, state = self._splits[slide], flight.ended.get(slide, {}).get("state")
        if answer.trouble and not self._gone_here(task):
            self.workforce.bar(answer.worker, answer.trouble)
        if answer.lost and split.slide in flight.open:
            split.lost = True
            self.lost.setdefault(split.slide, []).append(answer.lost)
        if state == PORTION:
            batches.learn([portion], answer.seconds)
        elif state == FAILED:
            split.failed = True
        elif split.again(number, _TRIES):
            batches.put_back([portion])
            return
        split.out.discard(number)
        if split.failed or split.lost:
            split.out -= {one for one in split.out if batches.take_out(Portion(slide, one))}
        if not split.out:
            self._all_are_back(split, batches)

    def _all_are_back(self, split: Split, batches: Batches) -> None:
        self.extraction.claims.release(split.slide)
        if split.failed:
            portions.drop(self.extraction.job, split.slide)
            self.states[split.slide] = FAILED
            self.extraction.progress.advance(1)
        elif not split.lost:  # else it is a suspect, and goes last
            batches.add({split.slide: 0})

    def _gone_here(self, task: Task) -> bool:
        """Tell whether slides that a worker does not see are gone for the client, too: the slides' fault, then."""
        gone = [entry.slide_id for entry in task.entries if task.sizes[entry.slide_id] and not size_of(entry)]
        self._sizes |= dict.fromkeys(gone, 0)
        return bool(gone)

    def _without_scheduler(self, batches: Batches) -> None:
        """Wait for the scheduler; what was under way is given out again. Claims hold off those who still work on it."""
        self.extraction.run.log("scheduler lost", under=len(self._under))
        self.workforce.find_scheduler()
        self._subscribe()
        for under in list(self._under.values()):
            flight = self._drop(under)
            if under.portion is not None:
                self._portion_is_back(under.portion, under.task, flight, batches, Answer(under.task.id))
            else:
                self._give_again(under, [*flight.ended], batches, blame=False)

    def _subscribe(self) -> None:
        self.workforce.connection.client.subscribe_topic(f"{remote.NEWS}-{self._run}", self._board.take)

    # slides that cannot be done

    def _condemn(self, name: str) -> None:
        hows = "; ".join(dict.fromkeys(self.lost[name]))
        what = f"the process that worked on it was lost twice, the second time with this slide alone ({hows})"
        self._fail(name, what, "Give it more memory, copy it again, or leave it out; another run tries it again.")

    def _fail(self, name: str, what: str, mend: str) -> None:
        entry = self._entries[name]
        self.extraction.fail(entry, wsi.UnreadableSlideError(entry.path.name, what, mend))
        self.extraction.progress.advance(1)

    @property
    def _run(self) -> str:
        return self.extraction.run.name

    @property
    def _proof(self) -> Path:
        return self.extraction.job.flight(self._run, "run")


def _absolute(entry: SlideEntry) -> SlideEntry:
    """Return a slide whose paths hold in any folder."""
    return replace(entry, path=entry.path.absolute(), series=tuple(path.absolute() for path in entry.series))
