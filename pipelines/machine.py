"""What this process takes of the machine, and what others take of it meanwhile."""

from __future__ import annotations

import math
import os
import resource
import sys
from pathlib import Path

_UNIT = 1 if sys.platform == "darwin" else 1024
_MUCH = 0.25
"""Cores that others may use before it is said."""


def peak_memory(proc: Path = Path("/proc")) -> int:
    """Return the bytes that this process had at its peak; libraries count, as they do for a batch system.

    Not from `getrusage` where it can be had elsewhere: there a process inherits the peak of the one that started it.
    """
    told = _memory(proc / "self" / "status")
    return told["VmHWM"] if "VmHWM" in told else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _UNIT


def memory_of_children(proc: Path = Path("/proc")) -> int:
    """Return the bytes that the living processes we started had at their peaks, without what they share; else 0."""
    total = 0
    for path in proc.glob("self/task/*/children"):
        try:
            children = path.read_text(encoding="ascii").split()
        except OSError:
            continue
        told = [_memory(proc / child / "status") for child in children]
        total += sum(one.get("VmHWM", 0) - one.get("RssShmem", 0) for one in told)
    return total


def _memory(status: Path) -> dict[str, int]:
    """Return what the system says of a process's memory, in bytes."""
    try:
        rows = [line.split() for line in status.read_text(encoding="utf-8", errors="replace").splitlines()]
    except OSError:
        return {}
    return {row[0].rstrip(":"): 1024 * int(row[1]) for row in rows if row[-1:] == ["kB"]}


def busy_core_seconds(stat: Path = Path("/proc/stat")) -> float | None:
    """Return the core seconds that all processes have used on the cores that this one may use; None if not told."""
    if not hasattr(os, "sched_getaffinity"):
        return None
    mine = {f"cpu{number}" for number in os.sched_getaffinity(0)}
    try:
        rows = [line.split() for line in stat.read_text(encoding="ascii").splitlines()]
        busy = [sum(map(int, row[1:4] + row[6:9])) for row in rows if row and row[0] in mine]
    except (OSError, ValueError):
        return None
    return sum(busy) / os.sysconf("SC_CLK_TCK") if busy else None


def others_told(before: float | None, after: float | None, own: float, seconds: float, cores: float) -> str:
    """Say that other processes used the cores; empty where they did not.

    Args:
        before: what `busy_core_seconds` gave.
        after: what it gave so many seconds later.
        own: core seconds of ours in between.
        seconds: between the two.
        cores: that this process may use.
    """
    if before is None or after is None or seconds < 1:  # the system counts hundredths, and we began some threads
        return ""
    others = (after - before - own) / seconds
    if not math.isfinite(others) or others < _MUCH:
        return ""
    return (
        f"other processes used about {min(others, cores):.1f} of {cores:g} cores during the probe; "
        "the time holds where they do so during the run"
    )


def round_up(size: float) -> float:
    """Return bytes rounded up to two digits: a limit that is asked for must not be under the need."""
    if size <= 0:
        return 0.0
    digit = 10.0 ** (math.floor(math.log10(size)) - 1)
    return math.ceil(size / digit - 1e-9) * digit
