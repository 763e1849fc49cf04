"""SIGINT and SIGTERM: the first asks a run to stop, and within ten seconds it has stopped, whatever it is doing.

The first signal raises in the main thread: slides that are under way are dropped, the ledger is closed, claims are
given up. Where that takes too long (a library that does not come back, a file server that hangs), or where Ctrl-C comes
a second time, the process ends at once. What is finished is kept all the same: all that is on the disk is whole.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence

from .errors import ExitCode

GRACE = 8.0
"""Seconds from a signal to the end of the process, at most."""
_ECHO = 0.3
"""Seconds in which a second signal is the same one: a terminal, and who started us, may both pass it on."""
_NUDGE = 0.2
"""Seconds in which the main thread takes a signal up by itself; doubled at each try."""
_LAST_WORDS = 0.5
"""Seconds that the last words may take."""
_CODES = {signal.SIGINT: ExitCode.INTERRUPTED, signal.SIGTERM: ExitCode.PREEMPTED}

_last_words: list[Callable[[str], None]] = []


class Preempted(BaseException):
    """SIGTERM came: a batch system wants the machine back."""


@contextlib.contextmanager
def said_at_last(say: Callable[[str], None]) -> Iterator[None]:
    """Have `say` called, from another thread, where the process ends without coming back here."""
    _last_words.append(say)
    try:
        yield
    finally:
        _last_words.remove(say)


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Run something that SIGINT and SIGTERM stop; in a thread that is not the main one, just run it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    came: list[int] = []
    handlers = {number: signal.signal(number, _first(came)) for number in _CODES}
    before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)  # written at once, also while a library computes
    watcher = threading.Thread(target=_watch, args=(reading, came), name="signals", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(writing)  # ends the watcher
        watcher.join()  # before the handlers go: its nudge would end the process
        os.close(reading)
        for number, handler in handlers.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def unchanged() -> Iterator[None]:
    """Let something be done, the import of a library say, that may not change what SIGINT and SIGTERM do."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: signal.getsignal(number) for number in _CODES}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            if handler is not None:  # set by a library in C: nothing can be put back
                signal.signal(number, handler)


def _first(came: list[int]) -> Callable[[int, object], None]:
    """Return a handler that raises once, and notes what comes; what comes later is the watcher's business."""

    def handle(number: int, _frame: object) -> None:
        came.append(number)
        if len(came) == 1:
            raise KeyboardInterrupt if number == signal.SIGINT else Preempted

    return handle


def _watch(reading: int, came: Sequence[int]) -> None:
    """Wait for a signal, then for the end of the run, a second Ctrl-C, or the end of patience.

    A signal may wake a thread other than the main one, or come just before that begins to wait for a lock: it then
    sleeps on, and its handler with it. It is nudged until the handler has run.
    """
    first = _next(reading, None)
    if first is None:
        return
    began, pause, nudges = time.monotonic(), _NUDGE, 0
    while (left := began + GRACE - time.monotonic()) > 0:
        number = _next(reading, left if came else min(left, pause))
        if number is None:
            return
        if number == 0 and not came:
            signal.pthread_kill(threading.main_thread().ident or 0, first)
            pause, nudges = 2 * pause, nudges + 1
        elif number == first and nudges:
            nudges -= 1  # our own
        elif number == signal.SIGINT and time.monotonic() - began > _ECHO:
            _end_at_once(first, "at once: Ctrl-C came twice")
    _end_at_once(first, f"after {GRACE:.0f} s: something did not come back")


def _next(reading: int, seconds: float | None) -> int | None:
    """Return the next signal of ours, 0 where the time is over, None where the run has ended."""
    until = None if seconds is None else time.monotonic() + seconds
    while True:
        left = None if until is None else max(0.0, until - time.monotonic())
        if not select.select([reading], [], [], left)[0]:
            return 0
        byte = os.read(reading, 1)
        if not byte:
            return None
        if byte[0] in _CODES:
            return byte[0]


def _end_at_once(number: int, why: str) -> None:
    words = threading.Thread(target=_say_last_words, args=(f"ended {why}",), daemon=True)
    words.start()
    words.join(_LAST_WORDS)
    with contextlib.suppress(OSError):
        os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, f"slidemil: ended {why}\n".encode())
    os._exit(_CODES[signal.Signals(number)])


def _say_last_words(text: str) -> None:
    for say in _last_words:
        with contextlib.suppress(Exception):
            say(text)
