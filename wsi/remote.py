"""Reading in processes that may be lost: a library that aborts or hangs costs the slide it was reading, never the run.

Plans are sent to the processes once (`pickle`: a slide travels as the way to open it, never as a handle); tiles are
written by them straight into the ring, so that only numbers pass. A thread of the queue that reads is here a thread
that asks and waits.

Who is to blame for a lost process is found out, not guessed: what it was reading is read once more, each request alone
in a fresh process. The slide on which that one is lost, too, is given up; all others lose nothing.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import pickle
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi import errors
from wsi.errors import SlideError, TileReadError
from wsi.reader_process import ReaderProcess
from wsi.request import Place, ReadPlan, ReadRequest, StoppedError
from wsi.ring import Ring
from wsi.stopwatch import Stopwatch
from wsi.thread_clock import Spent, spent_elsewhere
from wsi.wire import Wire

_END_SECONDS = 10.0
_CANNOT_TRAVEL = (TypeError, AttributeError, pickle.PicklingError)


class Readers:
    """The processes of one stream.

    Args:
        processes: how many.
        seconds: the most that a request may take, without the time that it waits for room.
        slide_seconds: the most that the requests of one slide may take together, likewise.
    """

    def __init__(self, processes: int, seconds: float, slide_seconds: float = math.inf) -> None:
        self._count, self._seconds, self.slide_seconds = processes, seconds, slide_seconds
        self.ring = Ring()
        self.lost = 0
        self.core = 0.0
        """Core seconds that requests took in the processes."""
        self.stopped = False
        self._lock = threading.RLock()  # the finalizer of a stream may run in a thread that holds it
        self._one_alone = threading.Lock()
        self._processes: list[ReaderProcess] = []
        self._all: list[ReaderProcess] = []
        self._numbers = itertools.count()

    def begin(self) -> None:
        """Wait until the processes serve, or have ended: their start is no part of what a read takes."""
        for process in list(self._processes):
            process.begins()

    def stop(self) -> None:
        """End the processes; returns at once."""
        with self._lock:
            self.stopped = True
            for process in self._all:
                process.kill()
            self.ring.close()

    def join(self, seconds: float = _END_SECONDS) -> None:
        """Wait until they have ended."""
        for process in self._all:
            process.ended(seconds)

    def plan(self, name: str, plan: ReadPlan) -> ReadPlan:
        """Return a plan that does the same in the processes; the plan itself where its slide lies in memory."""
        try:
            sent = pickle.dumps(plan, pickle.HIGHEST_PROTOCOL)
        except _CANNOT_TRAVEL:
            return plan
        self._start()
        return RemotePlan(self, next(self._numbers), name, plan, sent)

    def note(self, spent: Spent, opening: float) -> None:
        """Note what a request of this thread took in a process, and the core seconds of opening its slide there."""
        spent_elsewhere(spent)
        with self._lock:
            self.core += spent.core + opening

    def done_with(self, plan: ReadPlan) -> None:
        """Let the processes close a slide."""
        if isinstance(plan, RemotePlan):
            with self._lock:
                for process in self._processes:
                    process.done_with.append(plan.number)

    @contextlib.contextmanager
    def shared(self) -> Iterator[Seat]:
        """Give the least busy process."""
        with self._lock:
            process = min(self._processes, key=lambda one: one.busy) if not self.stopped else None
            if process is None:
                raise StoppedError
            if not process.alive:  # it died while it had nothing to do
                self._count_loss(process)
                place = self._processes.index(process)
                process = self._processes[place] = self._new()
            process.busy += 1
        try:
            with self._seat(process) as seat:
                yield seat
        finally:
            with self._lock:
                process.busy -= 1

    @contextlib.contextmanager
    def alone(self, check: Callable[[], None]) -> Iterator[Seat]:
        """Give a fresh process that nobody else uses, one at a time; `check` may find that it is no longer needed."""
        with self._one_alone:
            check()
            with self._lock:
                if self.stopped:
                    raise StoppedError
                process = self._new()
            try:
                with self._seat(process) as seat:
                    yield seat
            finally:
                process.kill()

    @contextlib.contextmanager
    def _seat(self, process: ReaderProcess) -> Iterator[Seat]:
        """Give a wire of a process; it is used again only where all that was said was understood."""
        if not process.begins():
            raise NotBegunError(str(self.loss(process)))
        try:
            wire = process.take_wire()
        except EOFError:
            raise self.loss(process) from None
        with self._lock:
            finished, process.done_with = process.done_with, []
        understood = False
        try:
            yield Seat(self, process, wire, finished, self._seconds)
            understood = True
        except SlideError:
            understood = True
            raise
        finally:
            if understood:
                process.give_back(wire)
            else:
                wire.close()

    def loss(self, process: ReaderProcess, late: bool = False) -> LostError:
        """End a process that is dead, hangs or raves, and return what became of it."""
        if self.stopped:
            raise StoppedError
        self._count_loss(process)
        process.kill()
        process.ended(_END_SECONDS)
        if late:
            return LostError(f"reading took longer than {self._seconds:g} s")
        return LostError(f"the reader process died ({process.cause}) while reading this slide")

    def _count_loss(self, process: ReaderProcess) -> None:
        with self._lock:
            self.lost += not process.counted
            process.counted = True

    def _start(self) -> None:
        """Start what is not started; returns at once. A stream with nothing to read needs no process."""
        with self._lock:
            while len(self._processes) < self._count and not self.stopped:
                self._processes.append(self._new())

    def _new(self) -> ReaderProcess:
        self._all = [one for one in self._all if one.alive]
        process = ReaderProcess(self.ring.descriptor, len(self._all))
        self._all.append(process)
        return process


class LostError(Exception):
    """A process was lost; the text says how."""


class NotBegunError(LostError):
    """It was lost before it could begin: no slide is to blame."""


class Seat:
    """The right to ask a process, for one request."""

    def __init__(
        self, readers: Readers, process: ReaderProcess, wire: Wire, finished: list[int], seconds: float
    ) -> None:
        self._readers, self._process, self._wire = readers, process, wire
        self._finished, self._seconds = finished, seconds

    def read(self, plan: RemotePlan, request: ReadRequest, places: _Places) -> dict[int, TileReadError]:
        """Have a request read; errors as those of `ReadPlan.read`, and LostError."""
        late = False
        try:
            message = plan.number, request, self._finished
            self._wire.send(pickle.dumps(message, pickle.HIGHEST_PROTOCOL), self._seconds)
            while "spent" not in (answer := self._wire.hear(self._seconds)):
                if answer.get("wants") == "plan":
                    self._wire.send(plan.sent, self._seconds)
                else:
                    self._wire.tell(places.given(), self._seconds)
        except TimeoutError:
            late = True
        except EOFError:
            pass
        else:
            self._readers.note(Spent(*answer["spent"]), answer["opening"])
            return _understood(answer)
        raise self._readers.loss(self._process, late)


class RemotePlan:
    """A plan that is read in other processes; see `wsi.request.ReadPlan`."""

    def __init__(self, readers: Readers, number: int, name: str, plan: ReadPlan, sent: bytes) -> None:
        self.number, self.sent = number, sent
        self.most_rows, self.scratch_bytes = plan.most_rows, plan.scratch_bytes
        self._readers, self._name, self._plan = readers, name, plan
        self._given_up: str | None = None
        self._watch = Stopwatch()

    def requests(self) -> Iterator[ReadRequest]:
        """Yield the plan's own requests."""
        return self._plan.requests()

    def read(self, request: ReadRequest, place: Place) -> Mapping[int, TileReadError]:
        """Have a request read; where the process is lost, once more in one of its own."""
        with self._watch.runs():
            return self._read(request, _Places(self._readers.ring, request, place, self._watch))

    def _read(self, request: ReadRequest, places: _Places) -> Mapping[int, TileReadError]:
        self._check()
        try:
            with self._readers.shared() as seat:
                return seat.read(self, request, places)
        except LostError:
            pass
        try:
            with self._readers.alone(self._check) as seat:
                return seat.read(self, request, places)
        except NotBegunError as loss:
            raise RuntimeError(f"no process that reads can be started: {loss}") from loss
        except LostError as loss:
            self._given_up = str(loss)
        self._check()
        raise AssertionError

    def _check(self) -> None:
        if self._given_up is None and self._watch.seconds > self._readers.slide_seconds:
            self._given_up = f"reading its tiles takes longer than {self._readers.slide_seconds:g} s"
        if self._given_up is not None:
            raise TileReadError(
                self._name, self._given_up, "Copy the slide again, check the storage, or leave the slide out."
            )


class _Places:
    """Where the tiles of a request go: asked for once, however often it is read."""

    def __init__(self, ring: Ring, request: ReadRequest, place: Place, watch: Stopwatch) -> None:
        self._ring, self._request, self._place, self._watch = ring, request, place, watch
        self._offsets: list[int] | None = None
        self._side = 0

    def given(self) -> dict[str, Any]:
        if self._offsets is None:
            with self._watch.stands():  # the encoder may be slow
                views = [self._place(row) for row in self._request.rows]
            self._offsets = [self._ring.offset_of(view) for view in views]
            self._side = len(views[0])
        return {"side": self._side, "offsets": self._offsets}


def shared_allocator(ring: Ring, allocate: Any) -> Any:
    """Return a maker of slabs that lie in a ring; see `wsi.prefetch.stream`."""
    make = np.ndarray if allocate is np.empty else allocate

    def slab(shape: tuple[int, ...], dtype: Any) -> NDArray[np.uint8]:
        made: NDArray[np.uint8] = make(shape, dtype, ring.take(int(np.prod(shape))))
        ring.offset_of(made)
        return made

    return slab


def _understood(answer: dict[str, Any]) -> dict[int, TileReadError]:
    if "bug" in answer:
        raise RuntimeError(f"a bug in a reader process:\n{answer['bug']}")
    if "error" in answer:
        raise _error(answer["error"])
    failed = {}
    for row, told in answer["failed"]:
        error = _error(told)
        assert isinstance(error, TileReadError)
        failed[row] = error
    return failed


def _error(told: dict[str, str]) -> SlideError:
    """Return an error that was told in words; only errors of slides can be."""
    kind = getattr(errors, told["kind"])
    assert issubclass(kind, SlideError)
    error: SlideError = kind(told["slide"], told["what"], told["mend"])
    return error
