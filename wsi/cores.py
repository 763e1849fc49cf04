"""How many cores this process may use: not how many the machine has."""

from __future__ import annotations

import math
import os
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")
_MINE = Path("/proc/self/cgroup")


def available_cores(*, cgroup: Path = _CGROUP, mine: Path = _MINE) -> int:
    """Return the number of cores for reading: at least 1.

    The least of the affinity mask, the cgroup's quota (versions 1 and 2), `SLURM_CPUS_PER_TASK`, and `SLIDEMIL_CORES`,
    by which several processes of ours share a machine.
    """
    limits = [_affinity()]
    quotas = [quota for folder in _folders(cgroup, mine) if (quota := _quota(folder)) is not None]
    limits += [max(1, math.floor(quota + 0.01)) for quota in quotas]
    for name in ("SLURM_CPUS_PER_TASK", "SLIDEMIL_CORES"):
        told = os.environ.get(name, "")
        if told.isdigit() and int(told) > 0:
            limits.append(int(told))
    return min(limits)


def _affinity() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _folders(cgroup: Path, mine: Path) -> list[Path]:
    """Return the groups of version 2 that this process is in, outermost first: each may have a quota of its own."""
    folders = [cgroup]
    try:
        path = next(line[3:] for line in mine.read_text().splitlines() if line.startswith("0::"))
    except (OSError, StopIteration):
        return folders
    for part in path.strip("/").split("/"):
        if part in ("", ".."):  # the path of a group outside of what a container sees
            break
        folders.append(folders[-1] / part)
    return folders


def _quota(cgroup: Path) -> float | None:
    """Return the quota in cores, None where there is none."""
    try:
        quota, period = (cgroup / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota = (cgroup / "cpu" / "cpu.cfs_quota_us").read_text().strip()
            period = (cgroup / "cpu" / "cpu.cfs_period_us").read_text().strip()
        except OSError:
            return None
    try:
        return int(quota) / int(period) if int(quota) > 0 and int(period) > 0 else None
    except ValueError:
        return None  # "max": no quota
