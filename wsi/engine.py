"""The threads behind `prefetch`: one feeder that pulls slides, readers that fill slabs, and their shared state.

Every field of `Engine` is guarded by its one lock; reads, decoding and resizing happen outside of it. No thread holds
a reference to the `TileStream`, so an abandoned stream is collected, and its finalizer stops the threads.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi.cores import available_cores
from wsi.errors import SlideError, TileReadError
from wsi.grid import TileGrid
from wsi.measure import Meter
from wsi.plan import read_plan
from wsi.remote import Readers, shared_allocator
from wsi.request import ReadPlan, ReadRequest, StoppedError
from wsi.slide import Slide
from wsi.thread_clock import Spent, ThreadClock

_AHEAD = 2
"""Slides that are open and not yet begun, or begun and not yet all asked for."""
_MOST_READERS = 64
_JOIN_SECONDS = 10.0


class Slab:
    """One batch in the making: its pixels and where each row comes from."""

    def __init__(self, pixels: NDArray[np.uint8]) -> None:
        self.pixels = pixels
        self.slide = np.zeros(len(pixels), np.int64)
        self.index = np.zeros(len(pixels), np.int64)
        self.ok = np.zeros(len(pixels), bool)
        self.clear()

    def clear(self) -> None:
        """Make it ready to be filled anew."""
        self.reserved = self.done = 0
        self.errors: dict[int, TileReadError] = {}


@dataclass(eq=False)
class _Source:
    """One slide that is being read."""

    ordinal: int
    slide: Slide
    plan: ReadPlan
    requests: Any
    left: int
    """Tiles that were not read yet."""


@dataclass(eq=False)
class _Read:
    """One request under way, and the rows it took in slabs."""

    source: _Source
    request: ReadRequest
    asked: float
    placed: list[tuple[Slab, int, int]] = field(default_factory=list)


class Engine:
    """See the module; made by `wsi.prefetch.stream`."""

    def __init__(
        self,
        sources: Iterable[tuple[Slide, TileGrid]],
        *,
        batch_size: int,
        workers: int | None,
        memory: int,
        allocate: Callable[..., NDArray[np.uint8]],
        probe: int,
        close_slides: bool,
        processes: int = 0,
        read_timeout: float = 120.0,
        slide_timeout: float = math.inf,
    ) -> None:
        self._iterable = sources
        self._batch = batch_size
        self._memory = memory
        self._readers = Readers(processes, read_timeout, slide_timeout) if processes else None
        self._allocate = shared_allocator(self._readers.ring, allocate) if self._readers else allocate
        self._close_slides = close_slides
        start = workers or available_cores()
        self._meter = Meter(start, start if workers else max(start, _MOST_READERS), probe)
        self._lock = threading.RLock()  # the finalizer may run in a thread that holds it
        self._work = threading.Condition(self._lock)  # readers: a request may be begun
        self._space = threading.Condition(self._lock)  # readers: a slab is free
        self._ready = threading.Condition(self._lock)  # the consumer: a slab is full, or all is over
        self._want = threading.Condition(self._lock)  # the feeder: another slide may be opened
        self._threads: list[threading.Thread] = []
        self._queue: deque[_Source] = deque()
        self._fed = self._stopping = self._started = False
        self._error: BaseException | None = None
        self._bug: BaseException | None = None
        self._tile = 0
        self._slabs_made = self._slabs_allowed = 0
        self._most_rows = 1
        self._free: list[Slab] = []
        self._full: deque[Slab] = deque()
        self._filling: Slab | None = None
        self._held: Slab | None = None
        self._waiting_or_under_way = 0
        self._under_way = 0
        self._scratch = self._scratch_allowed = 0
        """Bytes that the requests under way take while they run, and may take: a quarter to a half of the memory."""

    # ------------------------------------------------------------------ the consumer

    def next_slab(self) -> Slab | None:
        """Take the last slab back and hand out the next full one; None at the end."""
        began = time.perf_counter()
        with self._lock:
            self._start()
            if self._held is not None:
                self._free.append(self._held)
                self._held = None
                self._space.notify()
            while not (self._full or self._over() or self._bug or self._stopping):
                self._wait_for_a_slab()
            if self._bug is not None:
                raise self._bug
            if not self._full:
                self._meter.waited(began, 0)
                if self._error is not None and not self._stopping:
                    error, self._error = self._error, None
                    raise error
                return None
            slab = self._held = self._full.popleft()
            self._waiting_or_under_way -= slab.reserved
            self._meter.waited(began, slab.reserved)
            self._work.notify_all()
            return slab

    def _wait_for_a_slab(self) -> None:
        no_slide = not (self._queue or self._under_way)
        began = time.perf_counter()
        self._ready.wait()
        if no_slide:
            self._meter.starved(time.perf_counter() - began)

    def measurements(self) -> dict[str, Any]:
        """Return the fields of a StreamRecord."""
        with self._lock:
            lost, core = (self._readers.lost, self._readers.core) if self._readers else (0, 0.0)
            return {**self._meter.summary(), "processes_lost": lost, "core_elsewhere": core}

    def stop(self) -> None:
        """Tell all threads to end; returns at once."""
        with self._lock:
            self._stopping = True
            for condition in (self._work, self._space, self._ready, self._want):
                condition.notify_all()
        if self._readers:
            self._readers.stop()

    def close(self) -> None:
        """Stop, and wait for the reads that are under way."""
        self.stop()
        deadline = time.monotonic() + _JOIN_SECONDS
        for thread in list(self._threads):
            if thread is not threading.current_thread():
                thread.join(max(0.0, deadline - time.monotonic()))
        if self._readers:
            self._readers.join()
        with self._lock:
            self._free, self._held, self._filling = [], None, None
            self._full.clear()
            self._queue.clear()

    def _start(self) -> None:
        if self._started or self._stopping:
            return
        self._started = True
        self._meter.begin()
        self._spawn(self._feed, "tiles-feeder")

    def _spawn(self, target: Callable[[], None], name: str) -> None:
        thread = threading.Thread(target=target, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _over(self) -> bool:
        """Whether nothing more will come: all slides pulled, all requests begun, none under way, no rest waiting."""
        return self._fed and not self._queue and not self._under_way and self._filling is None

    # ------------------------------------------------------------------ the feeder

    def _feed(self) -> None:
        iterator = None
        try:
            iterator = iter(self._iterable)
            for ordinal, (slide, grid) in enumerate(iterator):
                if not self._offer(ordinal, slide, grid):
                    break
                with self._lock:
                    while len(self._queue) >= _AHEAD and not self._stopping:
                        self._want.wait()
                    if self._stopping:
                        break
        except BaseException as error:
            with self._lock:
                self._error = error
        finally:
            self._end_feed(iterator)

    def _end_feed(self, iterator: Any) -> None:
        if hasattr(iterator, "close"):  # a generator's own clean-up, in the thread that ran it
            try:
                iterator.close()
            except BaseException as error:
                with self._lock:
                    self._error = self._error or error
        with self._lock:
            self._fed = True
            self._flush()
            self._work.notify_all()
            self._ready.notify_all()

    def _offer(self, ordinal: int, slide: Slide, grid: TileGrid) -> bool:
        """Put a slide in the queue; False where the stream is being stopped."""
        if not len(grid):
            if self._close_slides:
                slide.close()
            return True
        plan = read_plan(slide, grid)
        if self._readers:
            plan = self._readers.plan(slide.name, plan)
        with self._lock:
            if self._stopping:
                return False
            if self._tile not in (0, grid.spec.size):
                raise ValueError(
                    f"{slide.name}: tiles of {grid.spec.size} px after tiles of {self._tile} px in one stream"
                )
            self._most_rows = max(self._most_rows, plan.most_rows)
            if not self._tile:
                self._prepare(grid.spec.size, plan)
            self._queue.append(_Source(ordinal, slide, plan, plan.requests(), len(grid)))
            self._work.notify_all()
            self._ready.notify_all()  # from now on the consumer waits for reads, no longer for a slide
        return True

    def _prepare(self, tile: int, plan: ReadPlan) -> None:
        """Fix the number of slabs that memory allows, and start the readers."""
        self._tile = tile
        slab = self._batch * tile * tile * 3
        self._scratch_allowed = min(max(self._meter.readers * plan.scratch_bytes, self._memory // 4), self._memory // 2)
        self._slabs_allowed = (self._memory - self._scratch_allowed) // slab
        places = (max(2, self._slabs_allowed) - 1) * self._batch
        self._meter.set_caps(max(places - self._batch, (places + 1) // 2))
        self._add_readers()

    def _add_readers(self) -> None:
        for number in range(len(self._threads) - 1, self._meter.readers):
            self._spawn(partial(self._read_all, number), f"tiles-reader-{number}")

    # ------------------------------------------------------------------ the readers

    def _read_all(self, number: int) -> None:
        if self._readers:
            self._readers.begin()
        with ThreadClock() as clock:
            self._read_on(number, clock)

    def _read_on(self, number: int, clock: ThreadClock) -> None:
        while (read := self._begin(number)) is not None:
            before = clock.read()
            failed: Mapping[int, TileReadError]
            try:
                failed = read.source.plan.read(read.request, partial(self._place, read))
            except StoppedError:
                return
            except SlideError as problem:
                failed = dict.fromkeys(read.request.rows, _as_tile_error(problem))
            except BaseException as bug:
                with self._lock:
                    self._bug = self._bug or bug
                    self._ready.notify_all()
                return
            self._finish(read, failed, clock.read().since(before))

    def _begin(self, number: int) -> _Read | None:
        """Take the next request as soon as there is one and room for it; None at the end."""
        with self._lock:
            while not self._stopping:
                if self._fed and not self._queue:
                    return None
                if self._queue and number < self._meter.readers:
                    source = self._queue[0]
                    if self._room_for(source.plan.most_rows) and self._memory_for(source.plan.scratch_bytes):
                        request = next(source.requests, None)
                        if request is not None:
                            return self._started_read(source, request)
                        self._queue.popleft()
                        self._want.notify()
                        self._flush()
                        self._ready.notify_all()
                        continue
                self._work.wait()
            return None

    def _started_read(self, source: _Source, request: ReadRequest) -> _Read:
        tiles = len(request.rows)
        self._waiting_or_under_way += tiles
        self._under_way += 1
        self._scratch += source.plan.scratch_bytes
        return _Read(source, request, self._meter.asked(tiles))

    @property
    def _most_slabs(self) -> int:
        """What memory allows, but one with the consumer and room for one request behind a batch that lacks a tile."""
        return max(self._slabs_allowed, 1 - (-self._least_places // self._batch))

    @property
    def _least_places(self) -> int:
        return self._batch - 1 + self._most_rows

    def _room_for(self, tiles: int) -> bool:
        each_reader = self._batch - 1 + self._meter.readers * self._most_rows  # none waits for another's block
        wanted = max(self._batch + self._meter.depth, each_reader)
        return self._waiting_or_under_way + tiles <= min(wanted, (self._most_slabs - 1) * self._batch)

    def _memory_for(self, scratch: int) -> bool:
        """Whether a request may run beside the others; one always may, whatever a slide's tiles take."""
        return not self._under_way or self._scratch + scratch <= self._scratch_allowed

    def _place(self, read: _Read, row: int) -> NDArray[np.uint8]:
        """Give a tile that is at hand its row in the slab that is being filled."""
        with self._lock:
            slab = self._slab_with_space()
            slot = slab.reserved
            slab.reserved += 1
            if slab.reserved == self._batch:
                self._filling = None
        slab.slide[slot], slab.index[slot], slab.ok[slot] = read.source.ordinal, row, True
        read.placed.append((slab, slot, row))
        view: NDArray[np.uint8] = slab.pixels[slot]
        return view

    def _slab_with_space(self) -> Slab:
        while self._filling is None:
            if self._stopping:
                raise StoppedError
            if self._free:
                self._filling = self._free.pop()
                self._filling.clear()
            elif self._slabs_made < self._most_slabs:
                shape = (self._batch, self._tile, self._tile, 3)
                self._filling = Slab(self._allocate(shape, np.uint8))
                self._slabs_made += 1
            else:
                self._space.wait()
        return self._filling

    def _finish(self, read: _Read, failed: Mapping[int, TileReadError], spent: Spent) -> None:
        if failed:
            self._mark_failed(read, failed)
        with self._lock:
            self._under_way -= 1
            self._scratch -= read.source.plan.scratch_bytes
            tiles = len(read.request.rows)
            grown = self._meter.had(read.asked, tiles, len(failed), spent)
            for slab, _, _ in read.placed:
                slab.done += 1
                if slab.done == self._batch:
                    self._hand_on(slab)
            self._flush()
            if grown:
                self._add_readers()
            if grown or 2 * read.source.plan.scratch_bytes > self._scratch_allowed:
                self._work.notify_all()  # others may have waited for the memory it took
            if self._over():
                self._work.notify_all()
            if not (self._queue or self._under_way):
                self._ready.notify_all()  # over, or from now on the consumer waits for a slide
        source = read.source
        with self._lock:
            source.left -= tiles
            ended = source.left == 0
        if ended and self._readers:
            self._readers.done_with(source.plan)
        if ended and self._close_slides:
            source.slide.close()

    def _mark_failed(self, read: _Read, failed: Mapping[int, TileReadError]) -> None:
        """Record each tile that could not be read as missing; none is invented."""
        placed = {row for _, _, row in read.placed}
        try:
            for row in failed:
                if row not in placed:
                    self._place(read, row)
        except StoppedError:
            return
        for slab, slot, row in read.placed:
            if row in failed:
                slab.pixels[slot] = 0
                slab.ok[slot] = False
                slab.errors[slot] = failed[row]

    def _hand_on(self, slab: Slab) -> None:
        self._full.append(slab)
        self._ready.notify_all()

    def _flush(self) -> None:
        """Hand on the last, smaller batch once nothing more can come into it."""
        slab = self._filling
        if self._fed and not self._queue and not self._under_way and slab is not None and slab.done == slab.reserved:
            self._filling = None
            if slab.reserved:
                self._hand_on(slab)


def _as_tile_error(error: SlideError) -> TileReadError:
    if isinstance(error, TileReadError):
        return error
    wrapped = TileReadError(error.slide, error.what, error.mend)
    wrapped.__cause__ = error
    return wrapped
