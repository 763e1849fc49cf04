"""The ledger: what each run of a command did to a job, line by line, so that no line can be changed unseen.

Each run appends to a file of its own, `runs/<run>.ledger.jsonl`, so that runs on several machines never write to the
same one. A line is canonical JSON with a number, the hash of the line before (`prev`) and its own (`hash`). The first
line names the last hash of the ledgers that were there when the run began. A last line that is torn tells that the run
was killed while it wrote; any other change is found by `read_ledger`.
"""

from __future__ import annotations

import contextlib
import getpass
import hashlib
import json
import os
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .errors import EnvironmentFault
from .files import explain, sync_folder
from .processes import this_process

SUFFIX = ".ledger.jsonl"
_SEEN = 64
"""Ledgers whose last hash a new one names: the newest; each of those names older ones."""
_TAIL = 1 << 16


class Ledger:
    """The ledger of one run; append only, safe to use from several threads.

    Args:
        path: a new file.
        facts: what the first line tells, besides who runs, where and when.

    Raises:
        EnvironmentFault: it cannot be written.
    """

    def __init__(self, path: Path, **facts: Any) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._number, self._last, self._size = 0, "", 0
        self._under_way: tuple[int, str] | None = None
        """The size of the file after the line that is being written, and that line's hash."""
        heads = _heads(path.parent)
        me = this_process()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)
            sync_folder(path.parent)
        except OSError as error:
            raise EnvironmentFault(explain(error, path, 0)) from error
        self._open = True
        where = {"host": me.host, "space": me.space, "pid": me.pid, "start": me.started}
        self.add("began", **facts, user=_user(), **where, heads=heads)

    def add(self, event: str, **facts: Any) -> None:
        """Append a line; it is on the disk when this returns. What comes after `close` is left out.

        Raises:
            EnvironmentFault: the disk is full, or fails.
        """
        with self._lock:
            if not self._open:
                return
            self._settle()
            body = {"n": self._number, "t": _clock(), "event": event, **facts, "prev": self._last}
            line, digest = _line(json.loads(json.dumps(body, default=str)))
            self._under_way = self._size + len(line), digest
            try:
                written = os.write(self._file, line)
                if written < len(line):  # the disk is full: what fits stands there as a torn line
                    os.write(self._file, line[written:])
                os.fsync(self._file)
            except OSError as error:
                self._shut()
                raise EnvironmentFault(explain(error, self.path, len(line))) from error
            self._settle()

    def _settle(self) -> None:
        """Go on from the line that was under way, where it stands in the file: a signal may raise just after."""
        if self._under_way is not None and os.fstat(self._file).st_size >= self._under_way[0]:
            (self._size, self._last), self._number = self._under_way, self._number + 1
        self._under_way = None

    def close(self) -> None:
        """End the ledger; may be called twice."""
        with self._lock:
            self._shut()

    def _shut(self) -> None:
        if self._open:
            self._open = False
            os.close(self._file)


@dataclass(frozen=True)
class Account:
    """What a ledger says.

    Attributes:
        path: of the ledger.
        lines: those that hold, in their order.
        faults: what does not hold, one sentence each.
        torn: whether the last line is torn: the run was killed while it wrote.
    """

    path: Path
    lines: tuple[Mapping[str, Any], ...]
    faults: tuple[str, ...] = ()
    torn: bool = False

    @property
    def run(self) -> str:
        """The run whose ledger it is."""
        return self.path.name.removesuffix(SUFFIX)

    @property
    def ended(self) -> str | None:
        """How the run ended, None where it was killed or still goes on."""
        last = self.lines[-1] if self.lines else {}
        return str(last.get("status")) if last.get("event") == "ended" else None


@dataclass
class Books:
    """All ledgers of a job, in the order in which the runs began."""

    accounts: list[Account] = field(default_factory=list)

    def of(self, event: str) -> Iterable[tuple[Account, Mapping[str, Any]]]:
        """Yield the lines of one kind, ledger by ledger."""
        for account in self.accounts:
            for line in account.lines:
                if line["event"] == event:
                    yield account, line

    def heads_that_fail(self) -> list[tuple[Path, str]]:
        """Return ledgers that later runs saw otherwise than they are, with one sentence each."""
        known = {account.path.name: account for account in self.accounts}
        found: dict[Path, str] = {}
        for account, line in self.of("began"):
            for name, head in line.get("heads", {}).items():
                other = known.get(name)
                if other is None:
                    path = account.path.with_name(name)
                    found[path] = f"is gone; the run {account.run} saw it"
                elif head not in {"", *(one["hash"] for one in other.lines)} and not other.faults:
                    found[other.path] = f"lacks its end: the run {account.run} saw a line that is not there any more"
        return sorted(found.items())


def read_ledger(path: Path) -> Account:
    """Read a ledger and check its chain.

    Raises:
        OSError: it cannot be read.
    """
    lines: list[Mapping[str, Any]] = []
    faults: list[str] = []
    expected: tuple[int, str] | None = (0, "")  # number and hash of the line before; None behind a changed line
    pieces = path.read_bytes().split(b"\n")
    for position, piece in enumerate(pieces[:-1], start=1):
        line = _parsed(piece)
        if line is None:
            faults.append(f"line {position} was changed")
            expected = None
            continue
        if expected is not None and (line["n"], line["prev"]) != expected:
            faults.append(f"line {position} does not follow the one before it: lines were left out, added or moved")
        expected = line["n"] + 1, line["hash"]
        lines.append(line)
    rest = pieces[-1]
    if rest and not _is_torn(rest):
        faults.append(f"line {len(pieces)} was changed")
    return Account(path, tuple(lines), tuple(faults), bool(rest))


def newest_first(folder: Path) -> Iterator[Account]:
    """Yield the ledgers of a job's `runs/` with their first and last lines alone: quick, however long they are."""
    for path in sorted(folder.glob(f"*{SUFFIX}"), reverse=True):
        with contextlib.suppress(OSError), path.open("rb") as file:
            ends = _parsed(file.readline().rstrip(b"\n")), _last_line(path)
            yield Account(path, tuple(line for line in ends if line is not None))


def lines_with(folder: Path, text: str) -> Iterator[tuple[Account, Mapping[str, Any]]]:
    """Yield the whole lines of a job's ledgers in which a text stands, each with its ledger; chains are not checked."""
    wanted = json.dumps(text)[1:-1].encode()
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        with contextlib.suppress(OSError), path.open("rb") as file:
            for piece in file:
                line = _parsed(piece.rstrip(b"\n")) if wanted in piece else None
                if line is not None:
                    yield Account(path, ()), line


def read_ledgers(folder: Path) -> Books:
    """Read all ledgers of a job's `runs/`; what cannot be read counts as a fault."""
    accounts = []
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        try:
            accounts.append(read_ledger(path))
        except OSError as error:
            accounts.append(Account(path, (), (f"cannot be read ({error.strerror or error})",)))
    return Books(accounts)


def _heads(folder: Path) -> dict[str, str]:
    """Return the last hash of the newest ledgers."""
    newest = sorted(folder.glob(f"*{SUFFIX}"))[-_SEEN:]
    return {path.name: _last_hash(path) for path in newest}


def _last_hash(path: Path) -> str:
    """Return the hash of the last whole line, "" where there is none."""
    line = _last_line(path)
    return "" if line is None else str(line["hash"])


def _last_line(path: Path) -> Mapping[str, Any] | None:
    """Return the last whole line, None where there is none."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _TAIL))
            pieces = file.read().split(b"\n")[:-1]
    except OSError:
        return None
    return _parsed(pieces[-1]) if pieces else None


def _line(body: Mapping[str, Any]) -> tuple[bytes, str]:
    """Return a line with its hash in it, and the hash."""
    digest = hashlib.sha256(_canonical(body)).hexdigest()
    return _canonical({**body, "hash": digest}) + b"\n", digest


def _canonical(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def _parsed(piece: bytes) -> Mapping[str, Any] | None:
    """Return a line that is, byte for byte, as it was written; None for any other."""
    try:
        line = json.loads(piece)
        body = {key: value for key, value in line.items() if key != "hash"}
        whole = _line(body)[0][:-1] == piece and line["hash"] is not None
        return line if whole and isinstance(line["n"], int) and line["prev"] is not None else None
    except (ValueError, AttributeError, KeyError, TypeError):
        return None


def _is_torn(rest: bytes) -> bool:
    """Tell whether these bytes are the beginning of a line and no more: what a kill leaves."""
    if _parsed(rest) is not None:
        return True
    try:
        text = rest.decode("ascii")
        json.JSONDecoder().raw_decode(text)
    except UnicodeDecodeError:
        return False
    except ValueError:
        return text.startswith("{")
    return False


def _clock() -> str:
    now = time.time()
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now % 1 * 1000):03d}Z"


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container whose user has no name
        return str(os.getuid())
