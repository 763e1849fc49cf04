"""What dask calls on a worker: gives a task to a process that may be lost, passes its news on, and answers.

Nothing of a slide is ever touched in the worker's own process.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import platform
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing import Pipe
from pathlib import Path
from typing import TYPE_CHECKING

import wsi
from pipelines.losable import ended_how, last_line

from .runner import STOP, environment
from .task import Answer, News, Task

if TYPE_CHECKING:
    from distributed import Worker

NEWS = "slidemil-news"
"""Topic of dask's events under which news of a run go: `slidemil-news-RUN`."""
_SERVE = "import sys; from pipelines.cluster.runner import serve; serve(int(sys.argv[1]))"
_LOOK = 0.25
_TELL_EVERY = 2.0
"""Seconds between two news of a slot that go through the scheduler."""
_PATIENCE = 8.0
"""Seconds for slides to be let go of in good order."""
_idle: list[Runner] = []
_lock = threading.Lock()
_stopping: set[str] = set()


class Runner:
    """A process that works on slides.

    Args:
        cores: that it may use.
        device: CUDA devices that it may see; "" for the worker's.
    """

    def __init__(self, cores: int, device: str) -> None:
        self.kind = (cores, device)
        self._said = tempfile.TemporaryFile("a+b")  # noqa: SIM115 - lives as long as the process
        self.pipe, theirs = Pipe()
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603 - this very Python
                [sys.executable, "-c", _SERVE, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=self._said,
                stderr=self._said,
                env=environment(cores, device),
            )

    def work(self, task: Task, on_news: Callable[[News], None], stop: Callable[[], bool]) -> Answer:
        """Give it a task and wait for the answer; where it dies, say how."""
        until: float | None = None
        try:
            self._said.truncate(0)
            self.pipe.send_bytes(pickle.dumps(task))
            while True:
                if self.pipe.poll(_LOOK):
                    message = pickle.loads(self.pipe.recv_bytes())  # noqa: S301 - from a process of our own
                    if isinstance(message, Answer):
                        return message
                    on_news(message)
                if until is None and stop():
                    until = time.monotonic() + _PATIENCE
                    self.pipe.send_bytes(STOP)
                elif until is not None and time.monotonic() > until:
                    self.end()
                    return Answer(task.id, lost="it did not stop when it was told to")
        except (EOFError, OSError):
            how, words = ended_how(self._wait()), last_line(self._said)
            return Answer(task.id, lost=f"{how}{words}")

    def dismiss(self) -> None:
        """Let the process end in good order."""
        with contextlib.suppress(OSError):
            self.pipe.send_bytes(STOP)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(2)
        self.end()

    def end(self) -> None:
        """End the process."""
        self._process.kill()
        self._wait()
        self._said.close()

    def _wait(self) -> int | None:
        self.pipe.close()
        try:
            return self._process.wait(5)
        except subprocess.TimeoutExpired:
            return None

    @property
    def usable(self) -> bool:
        """Whether it can take another task."""
        return not self.pipe.closed and self._process.poll() is None


def work(task: Task) -> Answer:
    """Work on a task; what dask calls."""
    from distributed import get_worker

    worker = get_worker()
    me = Answer(task.id, worker=worker.address, host=platform.node())
    trouble = what_is_wrong(task)
    if trouble:
        return replace(me, trouble=trouble)
    news = _Postman(worker, task)
    runner = _runner(*_share(task, worker))
    began = time.monotonic()
    try:
        answer = runner.work(task, news, lambda: task.run in _stopping or _closing(worker))
    finally:
        with _lock:
            if runner.usable:
                _idle.append(runner)
    news.post()
    seconds = answer.seconds or time.monotonic() - began
    return replace(answer, seconds=seconds, worker=me.worker, host=me.host)


def dask_setup(worker: Worker) -> None:  # noqa: ARG001 - its signature is dask's
    """Leave Ctrl-C to the client, which tells us to stop; dask calls this where the module is preloaded."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


async def stop_run(run: str) -> None:
    """Tell every process of this worker that works for a run to let go of its slides; called by the client."""
    _stopping.add(run)


async def end_idle() -> None:
    """End the processes that wait for a task; called by the client."""
    with _lock:
        idle = list(_idle)
        _idle.clear()
    for runner in idle:
        runner.dismiss()


def look(job: str, proof: tuple[str, str], slides: list[str]) -> str:
    """Say what is wrong with this machine for a job; "" where nothing is.

    Args:
        job: absolute path of the job folder.
        proof: name and text of a file in it.
        slides: paths that the client can reach.
    """
    folder = Path(job)
    try:
        text = (folder / proof[0]).read_text(encoding="utf-8")
    except OSError as error:
        return f"it does not see the job folder {job} ({error.strerror or error})"
    if text != proof[1]:
        return f"its {job} is another folder than the client's"
    if not os.access(folder, os.W_OK):
        return f"it may not write to {job}"
    for path in slides:
        try:
            Path(path).stat()
        except OSError as error:
            return f"it does not see {path} ({error.strerror or error})"
    return ""


def what_is_wrong(task: Task) -> str:
    """Say why this worker can take no slide of a run: files that are there for the client are not for it."""
    from pipelines import __version__

    if task.version != __version__:
        return f"it has slidemil {__version__}, the client {task.version}"
    return look(task.job, task.proof, [str(e.path) for e in task.entries if task.sizes.get(e.slide_id)])


def _runner(cores: int, device: str) -> Runner:
    with _lock:
        fitting = [runner for runner in _idle if runner.kind == (cores, device) and runner.usable]
        if not fitting:
            return Runner(cores, device)
        _idle.remove(fitting[-1])
        return fitting[-1]


def _share(task: Task, worker: Worker) -> tuple[int, str]:
    """Return the cores of one slot here, and its CUDA devices where those of the machine are shared out."""
    together = max(1, task.hosts.get(platform.node(), 1)) * max(1, worker.state.nthreads)
    device = str(int(worker.name) % task.gpus) if task.gpus and str(worker.name).isdigit() else ""
    return max(1, wsi.available_cores() // together), device


def _closing(worker: Worker) -> bool:
    return worker.status.name not in ("running", "paused", "init")


class _Postman:
    """Passes news on through the scheduler, gathered, so that a thousand workers do not drown it."""

    def __init__(self, worker: Worker, task: Task) -> None:
        self._worker, self._topic, self._id = worker, f"{NEWS}-{task.run}", task.id
        self._tiles = self._ended = 0
        self._last = News()
        self._posted = time.monotonic()

    def __call__(self, news: News) -> None:
        self._tiles += news.tiles
        self._ended += news.ended
        self._last = news
        if time.monotonic() - self._posted >= _TELL_EVERY:
            self.post()

    def post(self) -> None:
        """Pass on what has come together."""
        self._posted = time.monotonic()
        news = {"task": self._id, "tiles": self._tiles, "ended": self._ended, "note": self._last.note}
        self._tiles = self._ended = 0
        with contextlib.suppress(Exception):  # news that are lost are no loss
            self._worker.loop.add_callback(self._worker.log_event, self._topic, news)
