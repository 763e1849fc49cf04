"""`--shard i/n`: the part of the slides that one task of a job array does.

The slides are dealt out once, large ones first, each to the shard that has the fewest bytes so far; the deal is kept in
the job, so that all shards go by the same one however late they start. A slide that comes later goes by a hash of its
name. Every slide belongs to exactly one shard.
"""

from __future__ import annotations

import contextlib
import hashlib
import heapq
import json
import os
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace

from .counting import size_of
from .errors import UsageError
from .files import json_bytes, write_bytes
from .jobfolder import JobFolder
from .manifest import Manifest

MOST_WRITERS = 64
"""Parts that each put their rows into `slides.csv`; more would queue up for it, each to read and write all of it."""
_SLURM = ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_MAX", "SLURM_ARRAY_TASK_COUNT")


@dataclass(frozen=True)
class Shard:
    """One of several parts.

    Attributes:
        index: which one, from 0.
        count: how many there are.
        source: where that was taken from, where the user did not say it.
    """

    index: int
    count: int
    source: str = ""

    @property
    def writes_table(self) -> bool:
        """Whether it puts its rows into `slides.csv`; else the last run does, from the records of all."""
        return self.count <= MOST_WRITERS

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


def parse_shard(text: str) -> Shard:
    """Return the shard that `i/n` names.

    Raises:
        UsageError: it names none.
    """
    index, slash, count = text.partition("/")
    if not (slash and index.strip().isdecimal() and count.strip().isdecimal() and int(count) > 0):
        raise UsageError(f"--shard {text}: write it as i/n, e.g. --shard 0/8, the first of eight parts.")
    shard = Shard(int(index), int(count))
    if shard.index >= shard.count:
        raise UsageError(
            f"--shard {text}: parts count from 0, so the last one is {shard.count - 1}/{shard.count}. "
            "In a SLURM job array leave --shard out: it is taken from SLURM's variables."
        )
    return shard


def shard_of_array(environment: Mapping[str, str] = os.environ) -> Shard | None:
    """Return the shard of this task of a SLURM job array, None where it is in none.

    Raises:
        UsageError: the array has a step, so that its tasks cannot be counted through.
    """
    if _SLURM[0] not in environment:
        return None
    values = [environment.get(name, "") for name in _SLURM]
    if not all(value.isdecimal() for value in values):
        return None
    task, low, high, count = map(int, values)
    if high - low + 1 != count:
        raise UsageError(
            f"this job array has {count} tasks numbered {low} to {high}, with gaps: which part is this task's? "
            f"Say it: --shard i/{count} (or --shard 0/1 for all slides). "
            "To repeat failed tasks of an array, submit the whole array again: what is done is skipped."
        )
    return Shard(task - low, count, "SLURM_ARRAY_TASK_ID")


def chosen(text: str | None, environment: Mapping[str, str] = os.environ) -> Shard | None:
    """Return the shard asked for, else that of the job array; None where all slides are meant.

    Raises:
        UsageError: as `parse_shard` and `shard_of_array`.
    """
    return shard_of_array(environment) if text is None else parse_shard(text)


def take(shard: Shard, manifest: Manifest, job: JobFolder) -> Manifest:
    """Return the slides of one shard; the first shard that comes deals them out for all."""
    dealt = _kept(job, shard.count, manifest)
    mine = tuple(entry for entry in manifest.entries if part_of(entry.slide_id, shard.count, dealt) == shard.index)
    told = f"shard {shard}: {len(mine)} of {len(manifest.entries)} slides"
    if shard.source:
        told += f" (from {shard.source}; --shard 0/1 takes all)"
    if not shard.writes_table:
        told += ". Of so many parts none writes slides.csv: the last run does, without --shard; till then ask status"
    return replace(manifest, entries=mine, notes=(*manifest.notes, told))


def part_of(slide_id: str, count: int, dealt: Mapping[str, int]) -> int:
    """Return which of `count` parts a slide belongs to: as dealt, else by a hash of its name."""
    part = dealt.get(slide_id)
    if part is not None and 0 <= part < count:
        return part
    return int.from_bytes(hashlib.sha256(slide_id.encode("utf-8", "surrogateescape")).digest()[:8]) % count


def deal(sizes: Mapping[str, int], count: int) -> dict[str, int]:
    """Deal slides out: large ones first, each to the part that has the fewest bytes, then the fewest slides.

    Args:
        sizes: bytes of each slide.
        count: number of parts.

    Source: R. L. Graham, Bounds on Multiprocessing Timing Anomalies, SIAM J. Appl. Math. 17 (1969): no part gets more
    than 4/3 of what the best deal would give the largest.
    """
    parts = [(0, 0, part) for part in range(count)]
    dealt: dict[str, int] = {}
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        size, slides, part = parts[0]
        dealt[name] = part
        heapq.heapreplace(parts, (size + sizes[name], slides + 1, part))
    return dealt


def _kept(job: JobFolder, count: int, manifest: Manifest) -> dict[str, int]:
    """Return the deal of the job, made now where there is none yet; whoever comes first decides.

    Only who deals asks how large the slides are: a thousand parts that ask for each would drown a file server.
    """
    path = job.deal(count)
    if not path.exists():
        sizes = {entry.slide_id: size_of(entry) for entry in manifest.entries}
        draft = path.with_name(f"{count}.{uuid.uuid4().hex}.draft")
        write_bytes(draft, json_bytes(deal(sizes, count)))
        try:
            os.link(draft, path)  # fails where another shard was first, unlike a rename
            draft.unlink()
        except FileExistsError:
            draft.unlink()
        except OSError:  # a file system without links; all shards that see the same slides deal alike anyway
            with contextlib.suppress(OSError):
                draft.replace(path)
    try:
        return {str(name): int(part) for name, part in json.loads(path.read_text(encoding="utf-8")).items()}
    except (OSError, ValueError, AttributeError, TypeError):
        raise UsageError(f"{path}: cannot be read. Delete it and start all shards again.") from None
