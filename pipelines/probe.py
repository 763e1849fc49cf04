"""A short run of the real machinery on a sample of the slides, in a folder of its own: what each stage costs."""

from __future__ import annotations

import dataclasses
import hashlib
import resource
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import wsi

from .config import ExtractSettings
from .counting import Count, in_chance_order
from .extract import Extraction, stream_of
from .forecast import Measured
from .jobfolder import JobFolder
from .manifest import SlideEntry
from .progress import Quiet
from .provenance import Run
from .slide_work import SlideWork, finish_slide, prepare
from .timing import StageClock

if TYPE_CHECKING:
    from mil import Encoder

_SLIDES = 4
"""Slides that the stages are measured on, where there is time."""
_CELL = 16
"""Tiles in x and in y that are measured together: whole blocks of the file."""
_WARM_UP = 0.4
"""Share of the reading that is thrown away: the number of readers settles meanwhile."""
_CHUNK = 1 << 22
_COUNT_BYTES = 1.0
"""Seconds to count what is read from storage."""


@dataclass
class Probe:
    """What the probe found.

    Attributes:
        measured: rates for a forecast; None where no slide of the sample has a tile.
        count: tiles and failures of the slides it looked at.
        bytes_per_tile: read from storage per tile; None where the system does not tell.
        peak: bytes of memory of this process at its peak.
        notes: what the user should know.
    """

    measured: Measured | None
    count: Count
    bytes_per_tile: float | None = None
    peak: int = 0
    notes: list[str] = field(default_factory=list)


class _Trial(Extraction):
    """An extraction whose slides are never complete: only a part of each is read."""

    def _finish_if_complete(self, _ordinal: int) -> None:
        return


def probe(entries: Sequence[SlideEntry], settings: ExtractSettings, encoder: Encoder, seconds: float) -> Probe:
    """Measure each stage on a sample of the slides.

    Args:
        entries: the slides that wait.
        settings: of the run.
        encoder: of the run.
        seconds: to be spent at most, but for the slide that is being looked at.
    """
    with tempfile.TemporaryDirectory(prefix="slidemil-plan-") as folder:
        job = JobFolder(Path(folder))
        trial = _Trial(job, settings, encoder, Run(job, "probe", {}), Quiet())
        startup = _warm_up(encoder, settings)
        count = Count()
        works = _prepared(trial, entries, count, seconds)
        try:
            return _measured(trial, works, count, startup, seconds)
        finally:
            for work in works:
                work.slide.close()


def _warm_up(encoder: Encoder, settings: ExtractSettings) -> float:
    """Load what the first slide would load, and return the seconds of it."""
    import h5py
    import scipy.ndimage

    from . import pictures

    assert h5py, (scipy.ndimage, pictures)
    began = time.perf_counter()
    encoder(np.full((min(settings.batch_size, 8), settings.tile, settings.tile, 3), 200, np.uint8))
    return time.perf_counter() - began


def _prepared(trial: _Trial, entries: Sequence[SlideEntry], count: Count, seconds: float) -> list[SlideWork]:
    """Hash, open and look through slides in a random order, until there are enough or a third of the time is over."""
    works: list[SlideWork] = []
    deadline = time.monotonic() + 0.35 * seconds
    for entry in in_chance_order(entries):
        if works and (len(works) >= _SLIDES or time.monotonic() >= deadline):
            break
        if time.monotonic() >= deadline + 0.35 * seconds:
            break  # nothing but slides that cannot be used
        work = _one(trial, entry, count, seconds / 8)
        if work is None:
            continue
        count.tiles[entry.slide_id] = len(work.grid)
        if len(work.grid):
            works.append(work)
        else:
            work.slide.close()
    return works


def _one(trial: _Trial, entry: SlideEntry, count: Count, hashing: float) -> SlideWork | None:
    try:
        _hash_some(entry, trial.clocks["hash"], hashing)
        with trial.clocks["prepare"].of(1):
            return prepare(entry, trial.job, trial.tiling, trial.settings, trial.parts(entry, "probe"))
    except OSError as error:
        what = f"cannot be read ({error.strerror or error})"
        count.fail(entry, wsi.UnreadableSlideError(entry.path.name, what, "Check the path and its rights."))
    except wsi.SlideError as error:
        count.fail(entry, error)
    return None


def _hash_some(entry: SlideEntry, clock: StageClock, seconds: float) -> None:
    """Hash a slide's files, until the time is over: what a byte costs is known then."""
    ends = time.perf_counter() + seconds
    digest = hashlib.sha256()
    for path in entry.files:
        with path.open("rb") as file:
            while time.perf_counter() < ends:
                before = file.tell()
                with clock.of(0):
                    digest.update(file.read(_CHUNK))
                clock.things += file.tell() - before
                if file.tell() == before:
                    break


def _measured(trial: _Trial, works: list[SlideWork], count: Count, startup: float, seconds: float) -> Probe:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if not works:
        return Probe(None, count, None, peak)
    per_tile = _bytes_per_tile(works, trial.settings)
    read, cpu = _read_some(trial, works, 0.35 * seconds)
    for work in works[:2]:
        _write_whole(trial, work)
    for name in ("hash", "prepare", "write"):
        trial.clocks[name].queued = 0.0  # nothing of ours ran beside it: who held the cores then will hold them again
    rates = {"read": read} | {name: clock.to_dict() for name, clock in trial.clocks.items() if clock.things}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    filled = trial.settings.batch_size * read["service"] / read["workers"]
    startup += max(0.0, read["first_batch"] - max(filled, read["W_mean"]))  # processes that read are started
    measured = Measured(rates, wsi.available_cores(), cpu, startup) if "encode" in rates else None
    return Probe(measured, count, per_tile, peak)


def _bytes_per_tile(works: list[SlideWork], settings: ExtractSettings) -> float | None:
    """Return the bytes that this process asks storage for, per tile; None where the system does not tell."""
    before, tiles, ends = _bytes_read(), 0, time.monotonic() + _COUNT_BYTES
    some = [(work.slide, _only(work.grid, _cells(work.grid)[0])) for work in works]
    with wsi.stream(some, batch_size=8, workers=1, memory=int(settings.memory_gb * 1e9)) as stream:
        for batch in stream:
            tiles += len(batch)
            if time.monotonic() > ends:
                break
    after = _bytes_read()
    return None if before is None or after is None or not tiles else (after - before) / tiles


def _read_some(trial: _Trial, works: list[SlideWork], seconds: float) -> tuple[dict[str, Any], float]:
    """Read, normalize and encode parts of the slides; return the rates of the later part, its core seconds.

    The first part is thrown away, at least one batch where there are more: processes start, the queue chooses its
    readers, the encoder warms up.
    """
    began, began_cpu = time.monotonic(), time.process_time()
    first: tuple[dict[str, Any], float] | None = None
    warm, all_clocks = False, dict(trial.clocks)
    with stream_of(_parts_of(trial, works), trial.settings) as stream:
        for batch in stream:
            trial.take(batch)
            spent = time.monotonic() - began
            if first is None or (not warm and spent >= _WARM_UP * seconds):
                first, warm = (stream.record().to_dict(), time.process_time()), first is not None
                trial.clocks |= {"stain": StageClock(), "encode": StageClock()}
            if spent >= seconds:
                break
        record, ended = stream.record().to_dict(), time.process_time()
    if first is None or record["tiles"] == first[0]["tiles"]:  # no more than one batch
        trial.clocks = all_clocks
        return record, ended - began_cpu + record["core_elsewhere"]
    return _later(first[0], record), ended - first[1] + record["core_elsewhere"] - first[0]["core_elsewhere"]


def _later(first: Mapping[str, Any], whole: Mapping[str, Any]) -> dict[str, Any]:
    """Return what was measured after `first`."""
    tiles, seconds = whole["tiles"] - first["tiles"], whole["seconds"] - first["seconds"]
    later = dict(whole) | {"tiles": tiles, "seconds": seconds, "lambda": tiles / seconds}
    for name in ("service", "core", "queued", "W_mean"):
        later[name] = max(0.0, (whole[name] * whole["tiles"] - first[name] * first["tiles"]) / tiles)
    for name in ("wait", "starved"):
        later[name] = min(1.0, max(0.0, (whole[name] * whole["seconds"] - first[name] * first["seconds"]) / seconds))
    return later


def _parts_of(trial: _Trial, works: list[SlideWork]) -> Iterator[tuple[wsi.Slide, wsi.TileGrid]]:
    """Yield parts of the slides in turn, each of whole blocks, spread over the slide."""
    rows = [_cells(work.grid) for work in works]
    for number in range(max(len(cells) for cells in rows)):
        for work, cells in zip(works, rows, strict=True):
            if number < len(cells) and not trial.stopping:
                part = _only(work.grid, cells[number])
                trial.add(dataclasses.replace(work, grid=part))
                yield work.slide, part


def _cells(grid: wsi.TileGrid) -> list[Any]:
    """Return the rows of the grid by square cells, in a random order."""
    across, down = (grid.xy // (np.asarray(grid.stride_xy) * _CELL)).T
    _, cell = np.unique(down * (across.max() + 1) + across, return_inverse=True)
    order = np.random.default_rng(0).permutation(cell.max() + 1)
    return [np.flatnonzero(cell == one) for one in order]


def _only(grid: wsi.TileGrid, rows: Any) -> wsi.TileGrid:
    return dataclasses.replace(grid, xy=grid.xy[rows], tissue_share=grid.tissue_share[rows])


def _write_whole(trial: _Trial, work: SlideWork) -> None:
    """Write a slide as if all of it had been encoded: files as large as the real ones."""
    values = np.random.default_rng(0).standard_normal((len(work.grid), trial.encoder.dim)).astype(np.float32)
    work.put(np.arange(len(work.grid)), values, trial.settings.dtype)
    try:
        with trial.clocks["write"].of(1):
            finish_slide(work, trial.job, trial.tiling, trial.settings, trial.passport, trial.encoder.dim)
    except wsi.SlideError:
        return  # it changed meanwhile: the run will say so


def _bytes_read() -> int | None:
    """Return the bytes this process has asked storage for, None where the system does not tell."""
    try:
        first = Path("/proc/self/io").read_text(encoding="ascii").split("\n", 1)[0]
        return int(first.removeprefix("rchar: "))
    except (OSError, ValueError):
        return None
