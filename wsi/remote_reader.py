"""The life of a process that reads tiles for another: see `wsi.remote`.

Threads wait for requests, each on a wire of its own. What they write to the ring is all that leaves this process,
besides plain words and numbers.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import resource
import signal
import socket
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

import wsi.blocks
import wsi.plan  # noqa: F401 - what nearly all plans need, loaded before the first is asked for
from wsi.errors import SlideError
from wsi.owner import end_with
from wsi.request import ReadPlan, ReadRequest
from wsi.ring import RingReader
from wsi.thread_clock import ThreadClock, set_aside
from wsi.wire import Wire


def main(control: int, ring: int, owner: int) -> None:
    """Serve until the owner hangs up.

    Args:
        control: descriptor of the socket over which wires come; its end is the end of this process.
        ring: descriptor of the shared memory.
        owner: the process that started this one.
    """
    serve_wires(control, owner, lambda: _server(ring))


def serve_wires(control: int, owner: int, begin: Callable[[], Callable[[Wire], None]]) -> None:
    """Give each wire that comes to a thread of its own, until the owner hangs up; then end this process.

    Args:
        control: descriptor of the socket over which wires come.
        owner: the process that started this one.
        begin: makes ready what the threads share, before the owner hears that this process serves; returns what
            serves a wire until its other end is closed.
    """
    for number in (signal.SIGINT, signal.SIGTERM):  # both reach the whole group: the owner ends us
        signal.signal(number, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    end_with(owner)
    serve = begin()
    with socket.socket(fileno=control) as end, contextlib.suppress(OSError):
        end.sendall(b"!")
        while True:
            said, wires, _, _ = socket.recv_fds(end, 1, 1)
            if not said:
                break
            wire = Wire(socket.socket(fileno=wires[0]))
            threading.Thread(target=serve, args=(wire,), daemon=True).start()
    os._exit(0)  # whatever the threads are doing: nobody waits for it


def _server(ring: int) -> Callable[[Wire], None]:
    plans, memory = _Plans(), RingReader(ring)
    return lambda wire: _serve(wire, plans, memory)


class _Plans:
    """The plans of the slides that are being read; each comes over the wire of the thread that needs it first."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._opening: dict[int, threading.Lock] = {}
        self._plans: dict[int, ReadPlan] = {}

    def get(self, number: int, wire: Wire) -> ReadPlan:
        plan = self._plans.get(number)
        if plan is not None:
            return plan
        with self._lock:
            opening = self._opening.setdefault(number, threading.Lock())
        with set_aside(), opening:  # of one slide: another's storage may be slow
            plan = self._plans.get(number)
            if plan is None:
                wire.tell({"wants": "plan"})
                plan = self._plans[number] = pickle.loads(wire.receive())  # noqa: S301 - from our owner
        return plan

    def forget(self, numbers: list[int]) -> None:
        """Let go of plans, and close their slides."""
        for number in numbers:
            self._opening.pop(number, None)
            close = getattr(self._plans.pop(number, None), "close", None)
            if close is not None:
                close()


class _Places:
    """Asks for the places of all tiles of a request when the first is needed."""

    def __init__(self, wire: Wire, memory: RingReader, request: ReadRequest) -> None:
        self._wire, self._memory, self._rows = wire, memory, request.rows
        self._given: dict[int, NDArray[np.uint8]] = {}

    def __call__(self, row: int) -> NDArray[np.uint8]:
        if not self._given:
            self._wire.tell({"wants": "places"})
            answer = self._wire.hear()
            tiles = [self._memory.tile(offset, answer["side"]) for offset in answer["offsets"]]
            self._given = dict(zip(self._rows, tiles, strict=True))
        return self._given[row]


def _serve(wire: Wire, plans: _Plans, memory: RingReader) -> None:
    with contextlib.suppress(EOFError), ThreadClock() as clock:
        while True:
            message = wire.receive()
            before, core = clock.read(), time.thread_time()
            answer = _answer(message, wire, plans, memory)
            spent = clock.read().since(before)
            wire.tell({**answer, "spent": spent, "opening": time.thread_time() - core - spent.core})


def _answer(message: bytes, wire: Wire, plans: _Plans, memory: RingReader) -> dict[str, Any]:
    try:
        number, request, done_with = pickle.loads(message)  # noqa: S301 - from our owner
        plans.forget(done_with)
        failed = plans.get(number, wire).read(request, _Places(wire, memory, request))
        return {"failed": [[row, _told(error)] for row, error in failed.items()]}
    except EOFError:
        raise
    except SlideError as error:
        return {"error": _told(error)}
    except BaseException:
        return {"bug": traceback.format_exc()}


def _told(error: SlideError) -> dict[str, str]:
    """Return an error in words, under the nearest name that our own errors have."""
    kind = next(kind.__name__ for kind in type(error).__mro__ if kind.__module__ == "wsi.errors")
    return {"kind": kind, "slide": error.slide, "what": error.what, "mend": error.mend}
