"""Who a process is, so that another one can tell whether it still lives."""

from __future__ import annotations

import hashlib
import os
import platform
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
_LONGEST_HOST = 60


@dataclass(frozen=True)
class Process:
    """A process of some machine.

    Attributes:
        host: name of the machine, for people.
        space: which boot of which machine, and which of its process tables: containers of one name differ here.
        pid: number in that table.
        started: when it began, in the kernel's own count; "" where the system does not tell.
    """

    host: str
    space: str
    pid: int
    started: str

    def gone(self) -> bool | None:
        """Tell whether it has ended; None where that cannot be seen from here."""
        if self.space != _space():
            return None
        state, started = _state_and_start(self.pid)
        if not state:
            return not _answers(self.pid)
        return state in ("Z", "X") or bool(self.started and started != self.started)


def this_process() -> Process:
    """Return who we are."""
    pid = os.getpid()
    return Process(host_name(), _space(), pid, _state_and_start(pid)[1])


def host_name() -> str:
    """Return the machine's name as it may stand in a file name."""
    return "".join(sign for sign in platform.node() if sign.isalnum() or sign == "-")[:_LONGEST_HOST] or "here"


def _space() -> str:
    """Return what is the same for processes that can see one another by number."""
    parts = [platform.node()]
    for read in (_boot, _process_table):
        try:
            parts.append(read())
        except OSError:  # no Linux: the name of the machine has to do
            continue
    return hashlib.sha256("|".join(parts).encode()).hexdigest()[:16]


def _boot() -> str:
    return (_PROC / "sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def _process_table() -> str:
    return str((_PROC / "self/ns/pid").readlink())


def _state_and_start(pid: int) -> tuple[str, str]:
    """Return the state letter and the start time of a process; empty where the system does not tell."""
    try:
        text = (_PROC / str(pid) / "stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return "", ""
    fields = text.rpartition(")")[2].split()  # the name before may hold blanks and brackets
    return fields[0], fields[19]


def _answers(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
