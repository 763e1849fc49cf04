"""A short run of the real machinery on a sample of the slides, in a folder of its own: what each stage costs."""

from __future__ import annotations

import dataclasses
import hashlib
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
from .extraction import Extraction
from .forecast import Measured
from .jobfolder import JobFolder
from .machine import busy_core_seconds, memory_of_children, others_told, peak_memory
from .manifest import SlideEntry
from .progress import Quiet
from .provenance import Run
from .reading import stream_of
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
        peak: bytes of memory of this process and of those that read for it, at their peaks.
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

    import mil

    from . import pictures

    assert h5py, (scipy.ndimage, pictures)
    assert mil.HEADS  # loads torch, as `run` does whether or not it trains: what that takes in memory counts
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
    if not works:
        return Probe(None, count, None, peak_memory())
    per_tile = _bytes_per_tile(works, trial.settings)
    reading = _read_some(trial, works, 0.35 * seconds)
    read = reading.read
    for work in works[:2]:
        _write_whole(trial, work)
    for name in ("hash", "prepare", "write"):
        trial.clocks[name].queued = 0.0  # nothing of ours ran beside it: who held the cores then will hold them again
    rates = {"read": read} | {name: clock.to_dict() for name, clock in trial.clocks.items() if clock.things}
    filled = trial.settings.batch_size * read["service"] / read["workers"]
    startup += max(0.0, read["first_batch"] - max(filled, read["W_mean"]))  # processes that read are started
    looked = tuple(trial.clocks["prepare"].seconds[-len(works) :])
    measured = Measured(rates, wsi.available_cores(), reading.cpu, startup, reading.pieces, looked)
    notes = [reading.others] if reading.others else []
    return Probe(measured if "encode" in rates else None, count, per_tile, peak_memory() + reading.children, notes)


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


@dataclass(frozen=True)
class _Reading:
    """What reading gave: rates, core seconds, memory of children, seconds per tile by batch, who else ran."""

    read: dict[str, Any]
    cpu: float
    children: int
    pieces: tuple[float, ...] = ()
    others: str = ""


class _Moment:
    """What the clocks show between two batches."""

    def __init__(self, stream: wsi.TileStream) -> None:
        self.record = stream.record().to_dict()
        self.time, self.busy = time.monotonic(), busy_core_seconds()
        self.cpu = time.process_time() + float(self.record["core_elsewhere"])

    def others(self, before: _Moment) -> str:
        own, seconds = self.cpu - before.cpu, self.time - before.time
        return others_told(before.busy, self.busy, own, seconds, wsi.available_cores())


def _read_some(trial: _Trial, works: list[SlideWork], seconds: float) -> _Reading:
    """Read, normalize and encode parts of the slides; return what the later part was like.

    The first part is thrown away, at least one batch where there are more: processes start, the queue chooses its
    readers, the encoder warms up.
    """
    first: _Moment | None = None
    warm, all_clocks = False, dict(trial.clocks)
    pieces: list[float] = []
    with stream_of(_parts_of(trial, works), trial.settings) as stream:
        start = _Moment(stream)
        last = start.time
        for batch in stream:
            trial.take(batch)
            now = time.monotonic()
            pieces.append((now - last) / len(batch))
            if first is None or (not warm and now - start.time >= _WARM_UP * seconds):
                first, warm = _Moment(stream), first is not None
                trial.clocks |= {"stain": StageClock(), "encode": StageClock()}
                pieces.clear()
            if now - start.time >= seconds:
                break
            last = time.monotonic()
        end, children = _Moment(stream), memory_of_children()
    if first is None or end.record["tiles"] == first.record["tiles"]:  # no more than one batch
        trial.clocks = all_clocks
        return _Reading(end.record, end.cpu - start.cpu, children)
    return _Reading(_later(first.record, end.record), end.cpu - first.cpu, children, tuple(pieces), end.others(first))


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
