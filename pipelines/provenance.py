"""Where a result came from: versions, hashes of inputs, and one record per run of a command."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, Self

from wsi.ranges import RemoteFile
from wsi.remote_path import RemotePath
from wsi.staging import Held, Staging

from .errors import JobError
from .files import json_bytes, sha256_file, sha256_json, write_bytes, write_json
from .jobfolder import JobFolder
from .ledger import SUFFIX, Ledger
from .signals import said_at_last

_PACKAGES = (
    "slidemil",
    "numpy",
    "openslide-python",
    "openslide-bin",
    "tiffslide",
    "tifffile",
    "scikit-image",
    "scikit-learn",
    "torch",
    "torchvision",
    "timm",
    "h5py",
)


@cache
def versions() -> dict[str, str]:
    """Return the versions of everything that can change a result; imports nothing."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


@dataclass(frozen=True)
class FileState:
    """What tells that a file was not replaced or cut while it was read."""

    size: int
    mtime_ns: int
    inode: int

    @classmethod
    def of(cls, path: Path) -> FileState:
        """Look at a file.

        Raises:
            OSError: the file cannot be looked at.
        """
        if isinstance(path, RemotePath):
            state = RemoteFile.of(path).state()
            return cls(state.size, int(sha256_json(state.tag)[:12], 16), 0)
        stat = path.stat()
        return cls(stat.st_size, stat.st_mtime_ns, stat.st_ino)


def slide_sha256(job: JobFolder, slide_id: str, path: Path) -> str:
    """Return the SHA-256 of a slide file; each slide is read for this once, then remembered.

    What is remembered holds for the file's size, time and inode, and may be deleted at any time. Of a slide behind an
    address it is `stamp:` and the SHA-256 of its size and of what the server says of its content (ETag, else the time
    of its last change): only where the server says nothing, the slide is copied here and read.

    Raises:
        OSError: the file cannot be read.
    """
    if isinstance(path, RemotePath):
        return hashed_again(path)
    stamp = _stamp(path)
    known = _remembered(job, slide_id, stamp)
    if known is not None:
        return known
    digest = sha256_file(path)
    write_json(job.hashes / f"{slide_id}.json", {"stamp": stamp, "sha256": digest})
    return digest


def hashed_again(path: Path) -> str:
    """Return what `slide_sha256` would if nothing were remembered.

    Raises:
        OSError: the file cannot be read.
        wsi.SlideError: it lies elsewhere, its server does not tell contents apart, and there is no room for a copy.
    """
    if isinstance(path, RemotePath):
        return told_sha256(path) or sha256_file(copy_of(path).path)
    return sha256_file(path)


def told_sha256(path: RemotePath) -> str | None:
    """Return what stands for a slide behind an address, as the server tells it; None where it tells nothing."""
    stamp = RemoteFile.of(path).state().stamp
    return stamp and f"stamp:{stamp}"


def copy_of(path: RemotePath) -> Held:
    """Return a copy of a slide on this disk, held as long as it is used."""
    return Staging.of_user().copy(path, RemoteFile.of(path).state())


def _stamp(path: Path) -> list[int]:
    """Return what stands for a file; not its path, which may tell who it is of."""
    state = FileState.of(path)
    return [state.size, state.mtime_ns, state.inode]


def _remembered(job: JobFolder, slide_id: str, stamp: list[int]) -> str | None:
    try:
        known = json.loads((job.hashes / f"{slide_id}.json").read_text(encoding="utf-8"))
        return str(known["sha256"]) if known["stamp"] == stamp else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def series_sha256(job: JobFolder, slide_id: str, files: Sequence[Path]) -> str:
    """Return one hash for a slide that is made of several files (a DICOM series)."""
    if len(files) == 1:
        return slide_sha256(job, slide_id, files[0])
    parts = [slide_sha256(job, f"{slide_id}.{number}", path) for number, path in enumerate(files)]
    return sha256_json(parts)


def known_sha256(job: JobFolder, slide_id: str, files: Sequence[Path]) -> str | None:
    """Return what `series_sha256` would, where it is remembered; reads no slide and writes nothing."""
    names = [slide_id] if len(files) == 1 else [f"{slide_id}.{number}" for number in range(len(files))]
    try:
        if isinstance(files[0], RemotePath):
            return told_sha256(files[0])
        known = [_remembered(job, name, _stamp(path)) for name, path in zip(names, files, strict=True)]
    except OSError:
        return None
    if any(digest is None for digest in known):
        return None
    return known[0] if len(known) == 1 else sha256_json(known)


@dataclass
class Run:
    """One run of a command: its record and its ledger under `runs/`, and its log under `logs/`.

    Used in a `with`, it keeps a ledger: what is made through `run.job` is written into it, and so is how it ended.
    """

    job: JobFolder
    verb: str
    arguments: Mapping[str, Any]
    notes: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    began: float = field(default_factory=time.time)
    name: str = ""

    def __post_init__(self) -> None:
        """Name the run by its start and a random tail."""
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(self.began))
        self.name = self.name or f"{stamp}-{uuid.uuid4().hex[:8]}"
        self._finished = False

    def __enter__(self) -> Self:
        told = {"verb": self.verb, "arguments": dict(self.arguments), "versions": versions()}
        self.job = replace(self.job, ledger=Ledger(self.job.runs / f"{self.name}{SUFFIX}", **told))
        self._last = said_at_last(lambda text: self.job.note("ended", status=text, record=""))
        self._last.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        """Close the ledger; a run that did not say itself how it ended was stopped by an error or a signal."""
        try:
            if not self._finished:
                self.finish("done" if error is None else _how_it_ended(error))
        except JobError:  # a disk that is full took the run down, and takes no last word either
            if error is None:
                raise
        finally:
            self._last.__exit__(None, None, None)
            if self.job.ledger is not None:
                self.job.ledger.close()

    def log(self, event: str, **facts: Any) -> None:
        """Append one line to the run's log; a lost log line never ends a run."""
        path = self.job.logs / f"{self.name}.jsonl"
        line = {"t": round(time.time() - self.began, 3), "event": event, **facts}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(json.dumps(line, ensure_ascii=False, default=str) + "\n")
        except OSError:
            return

    def note(self, event: str, **facts: Any) -> None:
        """Put a line into the log and into the ledger, which is never lost.

        Raises:
            EnvironmentFault: the ledger cannot be written.
        """
        self.log(event, **facts)
        self.job.note(event, **facts)

    def finish(self, status: str, **facts: Any) -> None:
        """Write the record of the run; the last line of the ledger tells its hash."""
        record = {
            "verb": self.verb,
            "status": status,
            "began": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.began)),
            "seconds": round(time.time() - self.began, 3),
            "arguments": dict(self.arguments),
            "versions": versions(),
            "machine": {
                "system": platform.platform(),
                "cores": os.cpu_count(),
                "python": sys.version.split()[0],
            },
            **self.facts,
            **facts,
            "notes": self.notes,
        }
        data = json_bytes(json.loads(json.dumps(record, default=str)))
        self._finished = True
        write_bytes(self.job.runs / f"{self.name}.json", data)
        self.job.note("ended", status=status, record=hashlib.sha256(data).hexdigest())


def _how_it_ended(error: BaseException) -> str:
    """Return the status of a run that an error ended."""
    names = {"KeyboardInterrupt": "interrupted", "Preempted": "pre-empted"}
    return names.get(type(error).__name__, f"stopped: {type(error).__name__}: {' '.join(str(error).split())[:300]}")
