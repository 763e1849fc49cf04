"""A short run of the real machinery on a sample of the slides, in a folder of its own: what each stage costs."""

from __future__ import annotations

import dataclasses
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import wsi

from . import sampling
from .config import ExtractSettings
from .counting import Count
from .extraction import Extraction
from .forecast import Measured
from .jobfolder import JobFolder
from .machine import busy_core_seconds, memory_of_children, others_told, peak_memory
from .manifest import SlideEntry
from .preparing import Preparer
from .probe_clock import ProbeClock
from .progress import Quiet
from .provenance import Run
from .reading import prepares_apart, stream_of
from .slide_work import SlideWork, finish_slide
from .timing import StageClock
from .units import counted

if TYPE_CHECKING:
    from mil import Encoder

_CELL = 16
"""Tiles in x and in y that are measured together: whole blocks of the file."""
_WARM_UP = 0.4
"""Share of the reading that is thrown away: the number of readers settles meanwhile."""
_COUNT_BYTES = 1.0
"""Seconds to count what is read from storage."""
_SLOW = 0.5
"""Seconds of the encoder's first tile from which on it sees no more than one at a time before the clock runs."""
_BATCH = 0.1
"""Share of the time that a batch may take."""
_READ, _FIRST_MOST, _READ_MOST = 0.35, 0.65, 0.9
"""Shares of the time for reading and encoding; of the most it may take, when the first look and when all of it ends."""


@dataclass
class Probe:
    """What the probe found.

    Attributes:
        measured: rates for a forecast; None where no slide of the sample has a tile, or none could be read in the time.
        count: tiles and failures of the slides it looked at.
        rates: of the stages, as far as they could be measured.
        bytes_per_tile: read from storage per tile; None where the system does not tell.
        peak: bytes of memory of this process and of those that read for it, at their peaks.
        notes: what the user should know.
        cut: what could not be measured, for the probe may not last longer; empty where nothing is missing.
    """

    measured: Measured | None
    count: Count
    rates: Mapping[str, Any]
    bytes_per_tile: float | None = None
    peak: int = 0
    notes: list[str] = field(default_factory=list)
    cut: str = ""


class _Trial(Extraction):
    """An extraction whose slides are never complete: only a part of each is read."""

    def _finish_if_complete(self, _ordinal: int) -> None:
        return


def probe(
    entries: Sequence[SlideEntry],
    settings: ExtractSettings,
    encoder: Encoder,
    seconds: float,
    on_slide: Callable[[], None] = lambda: None,
) -> Probe:
    """Measure each stage on a sample of the slides, and count the tiles of as many as there is time for.

    Args:
        entries: the slides that wait.
        settings: of the run.
        encoder: of the run.
        seconds: to be spent, from the encoder's first tiles on. Where storage, slides or the encoder are slow it takes
            longer, but `most_seconds` at most, and says what could not be measured; with `processes=0` a slide that
            is being looked at cannot be left.
        on_slide: is called for each slide that was looked at.
    """
    with tempfile.TemporaryDirectory(prefix="slidemil-plan-") as folder:
        job = JobFolder(Path(folder))
        trial = _Trial(job, settings, encoder, Run(job, "probe", {}), Quiet())
        startup, seen = _warm_up(encoder, settings)
        clock, count = ProbeClock(seconds), Count()
        works: list[SlideWork] = []
        with closing(Preparer(job, trial.tiling, settings, apart=prepares_apart(settings))) as preparer:
            try:
                works += sampling.prepared(trial, preparer, entries, count, clock)
                for _ in range(len(count.tiles) + len(count.failures) + len(count.late)):
                    on_slide()
                found = _measured(trial, works, count, startup, seen, clock)
                sampling.counted(preparer, entries, count, clock, on_slide)
            finally:
                for work in works:
                    work.slide.close()
    if count.late:
        names = ", ".join(count.late[:3]) + (" …" if len(count.late) > 3 else "")
        clock.cut.append(f"{counted(len(count.late), 'slide')} took too long to be looked through ({names})")
    return dataclasses.replace(found, cut=clock.told())


def _warm_up(encoder: Encoder, settings: ExtractSettings) -> tuple[float, StageClock]:
    """Load what the first slide would load; return the seconds of it, and what some tiles took the encoder then."""
    import h5py
    import scipy.ndimage

    import mil

    from . import pictures

    assert h5py, (scipy.ndimage, pictures)
    assert mil.HEADS  # loads torch, as `run` does whether or not it trains: what that takes in memory counts
    tiles = np.full((min(settings.batch_size, 8), settings.tile, settings.tile, 3), 200, np.uint8)
    began = time.perf_counter()
    encoder(tiles[:1])
    first = time.perf_counter() - began
    if first > _SLOW:
        tiles = tiles[:1]  # eight of them might take minutes
    clock = StageClock()
    with clock.of(len(tiles)):
        encoder(tiles)
    return first + clock.seconds[0], clock


def _measured(
    trial: _Trial, works: list[SlideWork], count: Count, startup: float, seen: StageClock, clock: ProbeClock
) -> Probe:
    if not works:
        return Probe(None, count, _rates_of(trial, seen), None, peak_memory())
    per_tile, reads = _first_look(works, trial.settings, clock)
    batch = _batch(trial.settings.batch_size, clock.aim, seen.seconds[0] / seen.things, reads)
    reading = _read_some(trial, works, batch, clock)
    read = reading.read
    for work in works[:2]:
        if clock.left(_READ_MOST):
            _write_whole(trial, work)
        elif work is works[0]:
            clock.cut.append("writing was not measured")
    for name in ("hash", "prepare", "write"):
        trial.clocks[name].queued = 0.0  # nothing of ours ran beside it: who held the cores then will hold them again
    if not trial.clocks["encode"].things:
        return Probe(None, count, _rates_of(trial, seen), per_tile, peak_memory() + reading.children)
    rates = {"read": read} | _rates_of(trial, seen)
    filled = batch * read["service"] / read["workers"]
    startup += max(0.0, read["first_batch"] - max(filled, read["W_mean"]))  # processes that read are started
    looked = tuple(trial.clocks["prepare"].seconds[-len(works) :])
    measured = Measured(rates, wsi.available_cores(), reading.cpu, startup, reading.pieces, looked)
    notes = [reading.others] if reading.others else []
    return Probe(measured, count, rates, per_tile, peak_memory() + reading.children, notes)


def _rates_of(trial: _Trial, seen: StageClock) -> dict[str, Any]:
    """Return what the clocks show, and of an encoder that got no tile what it took before there were any."""
    clocks = {"encode": seen} | {name: clock for name, clock in trial.clocks.items() if clock.things}
    return {name: clock.to_dict() for name, clock in clocks.items()}


def _batch(asked: int, aim: float, encoded: float, read: float | None) -> int:
    """Return how many tiles are read and encoded at once: no more than there is time for again and again.

    Args:
        asked: tiles in a batch of the run.
        aim: seconds that the probe aims at.
        encoded: seconds that a tile takes the encoder.
        read: seconds that it takes one reader, None where none has come.
    """
    if read is None:
        return 1
    slowest = max(encoded, read / wsi.available_cores(), 1e-9)
    return max(1, min(asked, int(_BATCH * aim / slowest)))


def _first_look(
    works: list[SlideWork], settings: ExtractSettings, clock: ProbeClock
) -> tuple[float | None, float | None]:
    """Return the bytes that are asked of storage per tile, None where the system does not tell; and the seconds.

    The seconds are those of one reader, None where no tile came.
    """
    before, tiles, began = _bytes_read(), 0, time.monotonic()
    last = began
    some = [(work.slide, _only(work.grid, _cells(work.grid)[0])) for work in works]
    memory = int(settings.memory_gb * 1e9)
    with (
        wsi.stream(some, batch_size=8, workers=1, memory=memory) as stream,
        _ended_after(stream, clock.left(_FIRST_MOST)),
    ):
        for batch in stream:
            tiles, last = tiles + len(batch), time.monotonic()
            if last > began + _COUNT_BYTES:
                break
    after = _bytes_read()
    told = before is not None and after is not None and tiles
    return (after - before) / tiles if told else None, (last - began) / tiles if tiles else None  # type: ignore[operator]


@contextmanager
def _ended_after(stream: wsi.TileStream, seconds: float) -> Iterator[None]:
    """Stop a stream after some time, whatever its readers wait for."""
    timer = threading.Timer(seconds, stream.stop)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


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


def _read_some(trial: _Trial, works: list[SlideWork], size: int, clock: ProbeClock) -> _Reading:
    """Read, normalize and encode parts of the slides in batches of `size`; return what the later part was like.

    The first part is thrown away, at least one batch where there are more: processes start, the queue chooses its
    readers, the encoder warms up.
    """
    seconds, settings = _READ * clock.aim, dataclasses.replace(trial.settings, batch_size=size)
    first: _Moment | None = None
    warm, all_clocks = False, dict(trial.clocks)
    pieces: list[float] = []
    with stream_of(_parts_of(trial, works), settings) as stream, _ended_after(stream, clock.left(_READ_MOST)):
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
    if not clock.left(_READ_MOST):
        clock.cut.append(f"only {counted(end.record['tiles'], 'tile')} could be read and encoded")
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
    values = np.random.default_rng(0).standard_normal((len(work.grid), trial.encoder.dim), np.float32)
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
