"""Claims: several runs, on several machines, share one job folder without a server.

A claim is a small file under `.state/claims/` that says who works on something. It comes into being whole and for one
run only: a hard link to a file written before, or, where the file system has no links, `O_EXCL`. A thread of its
owner touches it every `BEAT` seconds. It is taken over, without any switch, where its owner has ended (a process of
this machine that is gone) or has not touched it for `STALE` seconds. Ages are told by the file system's own clock:
the clocks of the machines may differ.

A claim that is wrongly taken over costs double work and nothing else: both runs rename the same bytes to the same name.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import threading
import time
import uuid
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from .errors import EnvironmentFault
from .files import explain, file_system_time, temporary_name
from .jobfolder import JobFolder
from .processes import Process, this_process

BEAT = 20.0
"""Seconds between two touches of a claim."""
STALE = 180.0
"""Seconds without a touch after which a claim counts as left: three times what NFS clients may keep old times for."""
_POLL = (0.05, 2.0)
"""Seconds between two looks at a claim that is waited for: the first, and the most."""
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK)
_GONE = (errno.ENOENT, errno.ESTALE)
_given_up: set[str] = set()
"""Claims of this process that are given up, though the disk did not let go of their files."""


@dataclass(frozen=True)
class Claim:
    """What a claim says.

    Attributes:
        id: of this very claim; a later one on the same thing has another.
        owner: the process that works; None where the claim is torn.
        run: name of its run.
        touched: when it was last touched, by the file system's clock.
        folder: where it lies.
    """

    id: str
    owner: Process | None
    run: str
    touched: float
    folder: Path

    @property
    def left(self) -> bool:
        """Whether nobody works under it any more."""
        if self.id in _given_up or (self.owner is not None and self.owner.gone()):
            return True
        return file_system_time(self.folder) - self.touched > STALE

    @property
    def who(self) -> str:
        """Who works, for people."""
        return f"process {self.owner.pid} on {self.owner.host}" if self.owner else "an unknown process"


class Claims:
    """The claims of one run on things of one kind; close it.

    Args:
        job: the job folder.
        kind: of the things: claims of different kinds do not know one another.
        run: name of the run, for people.
        took_over: called with the name and the claim of a run that is gone.
    """

    def __init__(
        self, job: JobFolder, kind: str, *, run: str = "", took_over: Callable[[str, Claim], None] | None = None
    ) -> None:
        self._folder = job.claims / kind
        self._run = run
        self._took_over = took_over
        self._mine: dict[str, str] = {}
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._beating: threading.Thread | None = None

    def take(self, name: str) -> bool:
        """Claim a thing; False where another run works on it. What this run holds already it has.

        Raises:
            EnvironmentFault: the job folder cannot be written.
        """
        with self._lock:
            if name in self._mine:
                return True
        try:
            taken = self._take(self._path(name), name)
        except OSError as error:
            raise EnvironmentFault(explain(error, self._path(name), 0)) from error
        if taken is None:
            return False
        with self._lock:
            self._mine[name] = taken
            if self._beating is None:
                self._beating = threading.Thread(target=self._beat, name="claims", daemon=True)
                self._beating.start()
        return True

    def release(self, name: str) -> None:
        """Give a thing up, where this run holds it."""
        with self._lock:
            mine = self._mine.pop(name, None)
        if mine is not None:
            path = self._path(name)
            try:
                known = read_claim(path)
                if known is not None and known.id == mine:
                    path.unlink()
            except OSError:  # it stays: others see it grow old, and this process knows that it means nothing
                _given_up.add(mine)

    def holder(self, name: str) -> Claim | None:
        """Return the claim of another run on a thing, None where no living run works on it."""
        with self._lock:
            if name in self._mine:
                return None
        claim = read_claim(self._path(name))
        return None if claim is None or claim.left else claim

    @contextlib.contextmanager
    def hold(
        self, name: str, *, seconds: float = math.inf, waiting: Callable[[Claim], None] | None = None
    ) -> Iterator[bool]:
        """Hold a thing, waiting for another run to give it up.

        Args:
            name: of the thing.
            seconds: how long to wait at most.
            waiting: called once where there is something to wait for.

        Yields:
            Whether it is held: False where the time was over.
        """
        until, pause = time.monotonic() + seconds, _POLL[0]
        while not (taken := self.take(name)) and time.monotonic() < until:
            other = self.holder(name) if waiting else None
            if waiting and other:
                waiting(other)
                waiting = None
            time.sleep(pause)
            pause = min(2 * pause, _POLL[1])
        try:
            yield taken
        finally:
            self.release(name)

    def sweep(self, names: Collection[str]) -> None:
        """Delete what the dead left of these things: they are done."""
        with contextlib.suppress(OSError):  # it does no harm
            for path in self._folder.iterdir():
                claim = read_claim(path) if path.name in names else None
                if claim is not None and claim.left:
                    _clear(path, claim, self._run)

    def close(self) -> None:
        """Give up all that this run holds."""
        self._over.set()
        for name in list(self._mine):
            self.release(name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _path(self, name: str) -> Path:
        return self._folder / name

    def _take(self, path: Path, name: str) -> str | None:
        """Return the id of a new claim, None where another run works on the thing."""
        path.parent.mkdir(parents=True, exist_ok=True)
        for _ in range(3):
            mine = _create(path, self._run)
            if mine is not None:
                return mine
            other = read_claim(path)
            if other is None:  # given up this moment
                continue
            if not other.left:
                return None
            if _clear(path, other, self._run) and self._took_over:
                self._took_over(name, other)
        return None

    def _beat(self) -> None:
        while not self._over.wait(BEAT):
            with self._lock:
                mine = dict(self._mine)
            for name, id_ in mine.items():
                with contextlib.suppress(OSError):  # the disk may come back before the claim is stale
                    _touch(self._path(name), id_)


def read_claim(path: Path) -> Claim | None:
    """Return what a claim says, None where there is none. One whose text is torn has no owner, but an age.

    Raises:
        OSError: the folder cannot be read.
    """
    try:
        with path.open("rb") as file:  # opening, not asking for its times, makes NFS clients ask the server
            text, touched = file.read(), os.fstat(file.fileno()).st_mtime
    except OSError as error:
        if error.errno in _GONE:
            return None
        raise
    try:
        said = json.loads(text)
        return Claim(str(said["id"]), Process(**said["owner"]), str(said["run"]), touched, path.parent)
    except (ValueError, KeyError, TypeError):
        return Claim("", None, "", touched, path.parent)


def all_claims(job: JobFolder, kind: str) -> dict[str, Claim]:
    """Return name → claim of everything that is claimed, also by runs that are gone."""
    found = {}
    for path in sorted((job.claims / kind).glob("*")) if (job.claims / kind).is_dir() else ():
        if not path.name.startswith("."):
            with contextlib.suppress(OSError):
                claim = read_claim(path)
                if claim is not None:
                    found[path.name] = claim
    return found


def _create(path: Path, run: str) -> str | None:
    """Make a claim that is whole from its first moment; None where there is one.

    Raises:
        OSError: the folder cannot be written.
    """
    id_ = uuid.uuid4().hex
    said = {
        "id": id_,
        "owner": asdict(this_process()),
        "run": run,
        "since": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    text = json.dumps(said).encode()
    draft = temporary_name(path)
    try:
        draft.write_bytes(text)
        try:
            os.link(draft, path)
        except OSError as error:
            if error.errno in _NO_LINKS:
                return id_ if _create_exclusively(path, text) else None
            if error.errno != errno.EEXIST:
                raise
            # NFS: the answer to a link that was made may be lost, and the second try then finds it there
            return id_ if draft.stat().st_nlink == 2 else None
    finally:
        with contextlib.suppress(OSError):
            draft.unlink()
    return id_


def _create_exclusively(path: Path, text: bytes) -> bool:
    try:
        with path.open("xb") as file:
            file.write(text)
    except FileExistsError:
        return False
    return True


def _clear(path: Path, left: Claim, run: str) -> bool:
    """Delete a claim that was left; False where another run was faster.

    Runs that see it at the same time pass one by one through a gate, itself a claim: else the slowest of them would
    delete the new claim of the fastest.
    """
    gate = path.with_name(f".{path.name}.gate")
    if _create(gate, run) is None:
        other = read_claim(gate)
        if other is not None and other.left:  # its owner died in the gate
            gate.unlink(missing_ok=True)
        return False
    try:
        now = read_claim(path)
        if now is None or now.id != left.id:
            return False
        path.unlink(missing_ok=True)
        return True
    finally:
        gate.unlink(missing_ok=True)


def _touch(path: Path, id_: str) -> None:
    """Say that the claim's owner lives; a claim that another run took over is left alone."""
    claim = read_claim(path)
    if claim is not None and claim.id == id_:
        os.utime(path)  # without a time: the file system's own clock
