"""The queue: slides and grids in, batches of tiles out, read ahead by as much as Little's law asks for.

Threads read (the readers let go of the interpreter's lock while they decode) and write into a ring of slabs that are
made once. Tiles are delivered in the order in which they are ready and carry their place, so that one late tile holds
up nobody; batches are filled across slides. At most `batch + depth` tiles are under way or waiting, where the depth is
L + 3√L from the measured rate λ and latency W (`littles_law`), or one request per reader where requests give many
tiles; and memory is a hard cap. With `processes` the same threads only ask and wait: the reading is done in processes
that may be lost (`remote`).
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from wsi.engine import Engine
from wsi.errors import TileReadError
from wsi.grid import TileGrid
from wsi.slide import Slide

Allocate = Callable[..., NDArray[np.uint8]]


@dataclass(frozen=True, eq=False)
class TileBatch:
    """Some tiles, of one or several slides, in the order in which they were ready.

    Attributes:
        pixels: (B, S, S, 3) uint8; a view into a slab that is used again: valid until the next batch is asked for.
        slide: (B,) int64, which source the tile is from, counted from 0 in the order of the sources.
        index: (B,) int64, the tile's row in the grid of that source.
        ok: (B,) bool, False where the tile could not be read; its pixels are then 0 and mean nothing.
        errors: one per tile that is not ok, in their order.
    """

    pixels: NDArray[np.uint8]
    slide: NDArray[np.int64]
    index: NDArray[np.int64]
    ok: NDArray[np.bool_]
    errors: tuple[TileReadError, ...] = ()

    def __len__(self) -> int:
        return len(self.index)


@dataclass(frozen=True)
class StreamRecord:
    """What the queue measured.

    Attributes:
        lambda_: λ, tiles per second that were handed over.
        W_mean: mean seconds from asking for a tile to having it.
        W_p99: the 99th percentile of the same.
        L: λ · W, tiles under way on average, by Little's law.
        in_flight: tiles under way on average, counted; equals L but for chance and the ends.
        depth: tiles that may be under way or wait, besides the batch that is being filled.
        planned: λ, W and L that this depth was last planned from; without λ and W, L is the number of readers.
        workers: reading threads.
        wait: share of the time that the consumer waited.
        starved: share of the time that it waited while no slide was there to be read.
        service: seconds that one tile kept one reader; below W where a request gives many tiles.
        core: of these, seconds on a core.
        queued: of these, seconds ready to run while others held the cores; 0 where the system does not tell.
        saturated: whether more readers were tried and gave no more.
        tiles: tiles handed over.
        failed: of these, tiles that could not be read.
        seconds: from the first request to the last batch.
        first_batch: seconds until the first batch.
        processes_lost: reading processes that died or were ended because they hung.
        core_elsewhere: core seconds of the reading processes, which this process's clock does not count.
        capped_by: "cores" or "memory" where the plan is held back, else None.
        text: the plan in words: what is short, and what would help.
    """

    lambda_: float
    W_mean: float
    W_p99: float
    L: float
    in_flight: float
    depth: int
    planned: Mapping[str, float | None]
    workers: int
    wait: float
    starved: float
    service: float
    core: float
    queued: float
    saturated: bool
    tiles: int
    failed: int
    seconds: float
    first_batch: float
    processes_lost: int
    core_elsewhere: float
    capped_by: str | None
    text: str

    def to_dict(self) -> dict[str, Any]:
        """Return the record for JSON; λ goes by `lambda`."""
        values = dict(self.__dict__)
        return {"lambda": values.pop("lambda_"), **values}


class TileStream:
    """Batches of tiles, read ahead in other threads. Iterate over it once; close it, or use it in a `with`.

    Threads start with the first batch asked for. An error of the sources is raised after the tiles before it were
    handed over; a bug in a reader at once. A slide must stay open until its last tile was handed over; with
    `close_slides` the stream closes it as soon as its last tile was read.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        # An abandoned stream (a loop left by `break`) must not leave its threads waiting for ever.
        self._finalizer = weakref.finalize(self, Engine.stop, engine)

    def __iter__(self) -> Iterator[TileBatch]:
        return self

    def __next__(self) -> TileBatch:
        slab = self._engine.next_slab()
        if slab is None:
            self.close()
            raise StopIteration
        n = slab.reserved
        errors = tuple(slab.errors[i] for i in sorted(slab.errors))
        return TileBatch(slab.pixels[:n], slab.slide[:n].copy(), slab.index[:n].copy(), slab.ok[:n].copy(), errors)

    def record(self) -> StreamRecord:
        """Return what was measured so far."""
        return StreamRecord(**self._engine.measurements())

    def stop(self) -> None:
        """Stop reading, from any thread; returns at once, and the loop over the stream ends."""
        self._engine.stop()

    def close(self) -> None:
        """Stop reading and wait until the threads have ended; may be called twice."""
        self._finalizer.detach()
        self._engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def stream(
    sources: Iterable[tuple[Slide, TileGrid]],
    *,
    batch_size: int = 64,
    workers: int | None = None,
    memory: int = 2 << 30,
    allocate: Allocate = np.empty,
    probe: int = 16,
    close_slides: bool = False,
    processes: int = 0,
    read_timeout: float = 120.0,
    slide_timeout: float = math.inf,
) -> TileStream:
    """Read the tiles of slides ahead of whoever takes them.

    Args:
        sources: slides with their grids, all of one tile size. Pulled in a thread of its own, at most two slides
            ahead; a grid without tiles is passed over and still counts.
        batch_size: tiles per batch; only the last one may be smaller.
        workers: reading threads. None starts with one per core this process may use, and adds some where reads wait
            for storage and more of them give more tiles.
        memory: bytes for slabs and for reads under way. Never below two slabs; where it binds, the record says so.
        allocate: makes a slab, as `numpy.empty(shape, dtype)` does; pinned memory comes in here. With `processes` it
            is called as `numpy.ndarray(shape, dtype, buffer)` is, and returns an array that lies in the shared
            memory it is given (and may pin that).
        probe: tiles that are read before the depth is first planned from measurements.
        close_slides: close each slide when its last tile was read.
        processes: processes that the reading threads are spread over; 0 reads in this one. A process that dies or
            hangs costs the slide it was reading and no other: that slide's remaining tiles fail and say why. Slides
            that are no files are read in this process all the same.
        read_timeout: seconds after which a process has hung that has not finished a request (some megapixels).
        slide_timeout: seconds after which a slide is given up whose requests are still not through; the time in which
            all of them wait for room does not count. Needs processes.

    Returns:
        The stream; nothing is read before its first batch is asked for.

    Raises:
        ValueError: a batch size, a number of workers or a probe below 1, no time to read, or fewer than 0 processes.

    Example:
        >>> with stream([(slide, grid)]) as batches:  # doctest: +SKIP
        ...     for batch in batches:
        ...         features[batch.index] = encoder(batch.pixels)
    """
    if batch_size < 1 or probe < 1 or (workers is not None and workers < 1):
        raise ValueError(f"batch_size {batch_size}, workers {workers} and probe {probe} must be at least 1")
    if processes < 0 or not (read_timeout > 0 and slide_timeout > 0):
        raise ValueError(f"processes must be 0 or more, not {processes}; time-outs above 0 s")
    return TileStream(
        Engine(
            sources,
            batch_size=batch_size,
            workers=workers,
            memory=memory,
            allocate=allocate,
            probe=probe,
            close_slides=close_slides,
            processes=processes,
            read_timeout=read_timeout,
            slide_timeout=slide_timeout,
        )
    )
