"""Work in processes that may be lost: a library that aborts, hangs or eats the memory costs one item, never the run.

Each process works on one item at a time, so a death is charged to that item alone, and a fresh process takes its
place. The processes are started anew, never forked: no handle of a slide crosses into them.
"""

from __future__ import annotations

import contextlib
import math
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import IO, Any, Generic, Literal, TypeVar

Item = TypeVar("Item")
Value = TypeVar("Value")

_GRACE = 10
"""Seconds after which a process ends itself where nobody is left to end it."""
_BEGIN_SECONDS = 120.0
"""The most that a process may take to start and to load what it is to work with: no part of an item's time."""
_LOOK = 0.1
"""Seconds between two questions whether answers are still wanted."""
_PATIENCE = 2.0
"""Seconds for an item that nobody wants any more: cut off, it might leave a file half written."""
_BEGUN = b"!"
_SERVE = "import os, sys; from pipelines.losable import serve; serve(*map(int, sys.argv[1:])); os._exit(0)"
"""It holds nothing that would need an orderly end, which takes libraries a while."""
_MORE = object()


@dataclass(frozen=True)
class Lost:
    """Why an item has no result.

    Attributes:
        kind: `died` (the process ended: a signal, an abort, no memory), `late` (the time limit), or `raised`.
        what: one sentence, without a full stop.
        trace: the traceback of what was raised, for a log; "" for the others.
    """

    kind: Literal["died", "late", "raised"]
    what: str
    trace: str = ""


@dataclass(frozen=True)
class Done(Generic[Value]):
    """What the function returned."""

    value: Value


class StoppedError(Exception):
    """Whoever waits for an answer wants none any more."""


def each(
    function: Callable[[Item], Value],
    items: Iterable[Item],
    *,
    workers: int,
    seconds: float | Callable[[Item], float],
    memory: int | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[tuple[Item, Done[Value] | Lost]]:
    """Call a function for each item in processes that may be lost; results come as they are ready.

    Items are taken one by one as processes become free, so there may be any number of them. Closing the iterator
    ends the processes.

    Args:
        function: importable by its module and name; so are items and results what `pickle` takes.
        items: what the function is called with.
        workers: processes at once.
        seconds: the time limit of an item, or a function that says it; the start of a process does not count.
        memory: bytes of data a process may hold, None for as many as there are.
        stop: asked several times a second whether the answers are still wanted; by itself they are.

    Yields:
        Each item with what the function returned, or why there is nothing.

    Raises:
        StoppedError: they are not.
    """
    limit = seconds if callable(seconds) else lambda _: seconds
    source = iter(items)
    idle: list[_Worker[Item, Value]] = []
    busy: list[_Worker[Item, Value]] = []
    try:
        while True:
            while len(busy) < workers and (item := next(source, _MORE)) is not _MORE:
                worker = idle.pop() if idle else _Worker(memory)
                busy.append(worker)
                worker.give(function, item, limit(item))  # type: ignore[arg-type]
            if not busy:
                return
            for worker in _ready(busy, stop):
                busy.remove(worker)
                answer = worker.answer()
                if worker.alive:
                    idle.append(worker)
                yield worker.item, answer
    finally:
        for worker in idle + busy:
            worker.end(_PATIENCE)


def _ready(busy: list[_Worker[Item, Value]], stop: Callable[[], bool]) -> list[_Worker[Item, Value]]:
    """Wait until some have answered, died or run out of time."""
    while True:
        if stop():
            raise StoppedError
        first = min(worker.deadline for worker in busy)
        spoken = wait([worker.pipe for worker in busy], max(0.0, min(first - time.monotonic(), _LOOK)))
        now = time.monotonic()
        ready = [w for w in busy if (w.pipe in spoken and not w.only_begins()) or now >= w.deadline]
        if ready:
            return ready


class _Worker(Generic[Item, Value]):
    """One process and the item it works on."""

    item: Item

    def __init__(self, memory: int | None) -> None:
        self._memory = memory
        self.deadline = math.inf
        self._begin()

    @property
    def alive(self) -> bool:
        return not self.pipe.closed

    def give(self, function: Callable[[Item], Value], item: Item, seconds: float) -> None:
        self.item, self._seconds, self._begun = item, seconds, False
        message = pickle.dumps((function, item, seconds))
        try:
            self._send(message)
        except OSError:  # it died while it had nothing to do: that is no fault of this item
            self.end()
            self._begin()
            with contextlib.suppress(OSError):  # what it died of is read by `answer`
                self._send(message)

    def only_begins(self) -> bool:
        """Tell whether all it says is that it begins with the item: its time counts from there."""
        if self._begun:
            return False
        self._begun = True
        try:
            begins = self.pipe.recv_bytes() == _BEGUN
        except (EOFError, OSError):  # it died, of what `answer` tells
            return False
        self.deadline = time.monotonic() + self._seconds
        return begins

    def answer(self) -> Done[Value] | Lost:
        """Return the answer where there is one; else end the process and say why there is none."""
        answer: Done[Value] | Lost
        try:
            if self.pipe.poll():
                answer = pickle.loads(self.pipe.recv_bytes())  # noqa: S301 - from a process of our own
                return answer
        except (EOFError, OSError):
            lost = Lost(
                "died", f"the process that worked on it ended ({ended_how(self._stop())}){last_line(self._said)}"
            )
        else:
            lost = Lost("late", f"it took longer than {self._seconds:.0f} s")
        self.end()
        return lost

    def end(self, patience: float = 0.2) -> None:
        """End the process and let go of all that belongs to it; it has some seconds to end by itself."""
        self._stop(patience)
        self._said.close()

    def _stop(self, patience: float = 0.2) -> int | None:
        """End the process; return its exit code, None where even that takes too long (a read that hangs)."""
        self.pipe.close()
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return self._process.wait(patience)  # it may be dead already, of what `_how` tells
            self._process.kill()
            return self._process.wait(2)
        except subprocess.TimeoutExpired:
            return None

    def _begin(self) -> None:
        self._said = tempfile.TemporaryFile("a+b")  # noqa: SIM115 - lives as long as the process
        self.pipe, theirs = Pipe()
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603 - this very Python
                [sys.executable, "-c", _SERVE, str(theirs.fileno()), str(self._memory or 0)],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=self._said,
                stderr=self._said,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(path or os.curdir for path in sys.path)},
            )

    def _send(self, message: bytes) -> None:
        self._said.truncate(0)
        self.deadline = time.monotonic() + max(self._seconds, _BEGIN_SECONDS)
        self.pipe.send_bytes(message)


def last_line(said: IO[bytes]) -> str:
    """Return the last line that a process wrote, after a colon: libraries that abort say why on stderr."""
    end = said.seek(0, os.SEEK_END)
    said.seek(max(0, end - 4096))
    lines = said.read().decode("utf-8", "replace").split("\n")
    words = next((" ".join(line.split()) for line in reversed(lines) if line.strip()), "")
    return f": {words[-200:]}" if words else ""


def ended_how(code: int | None) -> str:
    """Return how a process ended, from its exit code; None for one that cannot be ended."""
    if code is None:
        return "and cannot be stopped"
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


def serve(descriptor: int, memory: int) -> None:
    """Work off what comes through a pipe until its other end is closed; the life of a process of `each`."""
    for number in (signal.SIGINT, signal.SIGTERM):  # both reach the whole group: the parent ends us
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    if memory:
        _limit_memory(memory)
    with Connection(descriptor) as pipe, contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            pipe.send_bytes(_work(pipe.recv_bytes(), pipe))


def _limit_memory(most: int) -> None:
    """Let this process take no more; what `ulimit` or a batch system allows it may be less."""
    import resource

    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    resource.setrlimit(resource.RLIMIT_DATA, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def _work(message: bytes, pipe: Connection) -> bytes:
    try:
        try:
            function, item, seconds = pickle.loads(message)  # noqa: S301 - from the parent
        finally:
            pipe.send_bytes(_BEGUN)
        signal.alarm(math.ceil(seconds) + _GRACE)
        return pickle.dumps(Done(function(item)))
    except Exception as error:
        return pickle.dumps(Lost("raised", _sentence(error), traceback.format_exc()))
    finally:
        signal.alarm(0)


def _sentence(error: BaseException) -> str:
    text: Any = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:300] if text else type(error).__name__
