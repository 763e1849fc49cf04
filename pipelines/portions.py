"""Portions of a large slide: what several workers encode of it, kept until one of them writes its feature file.

A portion is a run of whole rows of the grid. Its file lies under `.state/portions/<slide>/`, is whole from its first
moment, is named after everything that determines its features, and begins with its own hash: what does not fit is not
taken, and its tiles are encoded again. So portions never decide what comes out, only how soon.

Of several encoders each has a file of its own, and a portion is taken where those of all are there.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

import wsi

from .files import write_bytes
from .jobfolder import JobFolder
from .records import key_of

if TYPE_CHECKING:
    from .slide_work import SlideWork

_DIGEST = hashlib.sha256().digest_size


def rows_of(grid: wsi.TileGrid, number: int, count: int) -> NDArray[np.int64]:
    """Return the tiles of a portion: about a `count`-th of them, cut between rows of the grid; it may be empty."""
    starts = np.append(np.unique(grid.xy[:, 1], return_index=True)[1], len(grid.xy))
    wanted = np.arange(count + 1) * len(grid.xy) / count
    cuts = np.append(starts[np.searchsorted(starts[:-1], wanted[:-1])], len(grid.xy))
    return np.arange(cuts[number], cuts[number + 1])


def keep(job: JobFolder, works: Sequence[SlideWork], number: int, count: int) -> None:
    """Write what was encoded of a portion of a slide.

    Args:
        job: the job folder.
        works: the slide as each encoder has it, the first one first.
        number: of the portion.
        count: of all portions.

    Raises:
        EnvironmentFault: the job folder cannot be written.
    """
    for work in works:
        path = job.portions(work.entry.slide_id) / f"{_key(work)}-{number}-of-{count}"
        data = _bytes(work, rows_of(work.grid, number, count))
        write_bytes(path, hashlib.sha256(data).digest() + data)


def _bytes(work: SlideWork, mine: NDArray[np.int64]) -> bytes:
    """Return what is known of some tiles of a slide."""
    rows = mine[work.done[mine]]
    values = np.zeros((0, 0), np.float32) if work.features is None else work.features[rows]
    inside = set(mine.tolist())
    missing = sorted((row, cause) for row, cause in work.missing.items() if row in inside)
    told = np.frombuffer(json.dumps(missing).encode(), np.uint8)
    image = io.BytesIO()
    np.savez(image, rows=rows, values=values, missing=told)
    return image.getvalue()


def take_in(job: JobFolder, works: Sequence[SlideWork]) -> None:
    """Give a slide what was encoded of it already; the stream then reads the rest alone."""
    if read_in(job, works):
        works[0].read_only(still_out(works[0]))


def still_out(work: SlideWork) -> NDArray[np.int64]:
    """Return the tiles of a slide that are neither encoded nor known to be missing."""
    settled = work.done.copy()
    settled[list(work.missing)] = True
    return np.flatnonzero(~settled)


def read_in(job: JobFolder, works: Sequence[SlideWork]) -> bool:
    """Give a slide, as each encoder has it, what was encoded of it already; say whether there are portions."""
    folder = job.portions(works[0].entry.slide_id)
    first, *others = map(_key, works)
    files = sorted(folder.glob(f"{first}-*-of-*")) if folder.is_dir() else []
    for path in files:
        names = [path, *(path.with_name(path.name.replace(first, other)) for other in others)]
        found = [one for name in names if (one := _read(name)) is not None]
        if len(found) < len(works) or not all(np.array_equal(one["rows"], found[0]["rows"]) for one in found):
            continue
        for work, one in zip(works, found, strict=True):
            _put(work, one)
    return bool(files)


def _put(work: SlideWork, found: Mapping[str, NDArray[Any]]) -> None:
    """Give a slide what a portion holds."""
    if len(found["rows"]):
        work.put(found["rows"], found["values"], str(found["values"].dtype))
    work.missing |= {int(row): str(cause) for row, cause in json.loads(found["missing"].tobytes())}


def drop(job: JobFolder, slide_id: str) -> None:
    """Take away the portions of a slide."""
    folder = job.portions(slide_id)
    if folder.is_dir():
        shutil.rmtree(folder, ignore_errors=True)


def _read(path: Path) -> dict[str, NDArray[Any]] | None:
    """Return what a portion holds, None where it is not what was written."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    if hashlib.sha256(data[_DIGEST:]).digest() != data[:_DIGEST]:
        return None
    with np.load(io.BytesIO(data[_DIGEST:]), allow_pickle=False) as found:
        return {name: found[name] for name in ("rows", "values", "missing")}


def _key(work: SlideWork) -> str:
    xy = hashlib.sha256(np.ascontiguousarray(work.grid.xy).tobytes()).hexdigest()
    return key_of({**work.parts, "xy": xy})[:32]
