"""One process that reads, as its owner sees it: started anew (never forked), watched, and lost without harm."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading

from wsi.wire import Wire

_SERVE = "import sys; from wsi.remote_reader import main; main(*map(int, sys.argv[1:]))"
_BEGIN_SECONDS = 120.0
_MUCH_SAID = 1 << 16
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
"""Its own threads read; a pool of numpy's would only take memory."""


class ReaderProcess:
    """A process that reads tiles into a ring; it ends when it is told to, or when its owner is gone.

    Args:
        ring: descriptor of the shared memory; None for a process that answers without it.
        number: for the names of threads.
        serve: what the process runs, a program that is given the descriptors of its control socket and of the ring
            (-1 without one), and the number of this process; None for the reader of tiles.
    """

    def __init__(self, ring: int | None, number: int, serve: str | None = None) -> None:
        self._program = serve
        self._lock = threading.RLock()  # the finalizer of a stream may run in a thread that holds it
        self._control, theirs = socket.socketpair()
        self._said = tempfile.TemporaryFile("a+b")  # noqa: SIM115 - lives as long as the process
        self._process: subprocess.Popen[bytes] | None = None
        self._unwanted = self._serves = self._gone = False
        self._begun = threading.Event()
        self.busy = 0
        """Requests under way."""
        self._idle: list[Wire] = []
        self.done_with: list[int] = []
        """Plans it may let go of; it is told so with the next request."""
        self.cause = ""
        """How it ended."""
        self.counted = False
        """Whether its loss was noted."""
        # The system ends the process with the thread that started it: so that must be the one that outlives it.
        self._watcher = threading.Thread(
            target=self._watch,
            args=(theirs, -1 if ring is None else os.dup(ring)),
            name=f"tiles-process-{number}",
            daemon=True,
        )
        self._watcher.start()

    @property
    def alive(self) -> bool:
        """Whether it may be asked."""
        return self._watcher.is_alive() and not self._unwanted

    def begins(self) -> bool:
        """Wait until it serves; False where it ended before."""
        return self._begun.wait(_BEGIN_SECONDS) and self._serves

    def take_wire(self) -> Wire:
        """Return an unused wire to a thread of the process, a new one where there is none.

        Raises:
            EOFError: the process is gone.
        """
        with self._lock:
            if self._idle:
                return self._idle.pop()
            ours, theirs = socket.socketpair()
        with theirs:
            try:
                socket.send_fds(self._control, [b"s"], [theirs.fileno()])
            except OSError as error:
                ours.close()
                raise EOFError from error
        return Wire(ours)

    def give_back(self, wire: Wire) -> None:
        """Take back a wire on which all was said that was to be said."""
        with self._lock:
            if self._gone:
                wire.close()
            else:
                self._idle.append(wire)
        with contextlib.suppress(ValueError, OSError):  # forget what libraries wrote where it has become much
            if os.fstat(self._said.fileno()).st_size > _MUCH_SAID:
                self._said.truncate(0)

    def kill(self) -> None:
        """End it; returns at once. It holds nothing that would need an orderly end."""
        with self._lock:
            self._unwanted = True
            if self._process is not None:
                self._process.kill()

    def ended(self, seconds: float) -> bool:
        """Wait until it has ended and nothing of it is left."""
        self._watcher.join(seconds)
        return not self._watcher.is_alive()

    def _watch(self, theirs: socket.socket, ring: int) -> None:
        try:
            with theirs:
                process = self._start(theirs.fileno(), ring)
        except OSError as error:
            self.cause = f"it cannot be started: {error}"
        else:
            self._serves = self._hears_hello()
            self._begun.set()
            self.cause = _how(process.wait()) + self._last_words()
        finally:
            if ring >= 0:
                os.close(ring)
            with self._lock:
                self._gone = True
                self._control.close()
                self._said.close()
                for wire in self._idle:
                    wire.close()
            self._begun.set()

    def _start(self, control: int, ring: int) -> subprocess.Popen[bytes]:
        path = os.pathsep.join(entry or os.curdir for entry in sys.path)
        process = subprocess.Popen(  # noqa: S603 - this very Python
            [sys.executable, "-c", self._program or _SERVE, str(control), str(ring), str(os.getpid())],
            pass_fds=(control, ring) if ring >= 0 else (control,),
            stdin=subprocess.DEVNULL,
            stdout=self._said,
            stderr=self._said,
            env={**_ONE_THREAD, **os.environ, "PYTHONPATH": path},
        )
        with self._lock:
            self._process = process
            if self._unwanted:
                process.kill()
        return process

    def _hears_hello(self) -> bool:
        try:
            return bool(self._control.recv(1))
        except OSError:
            return False

    def _last_words(self) -> str:
        """Return the last line it wrote: libraries that abort say why."""
        end = self._said.seek(0, os.SEEK_END)
        self._said.seek(max(0, end - 4096))
        lines = self._said.read().decode("utf-8", "replace").splitlines()
        words = next((" ".join(line.split()) for line in reversed(lines) if line.strip()), "")
        return f": {words[-200:]}" if words else ""


def _how(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"signal {-code}, {signal.Signals(-code).name}"
    except ValueError:
        return f"signal {-code}"
