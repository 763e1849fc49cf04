"""The queue gives the same tiles as one read after another, keeps its bounds, and ends whatever happens."""

from __future__ import annotations

import gc
import threading
import time

import numpy as np
import pytest
from _shared import shared_path
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import wsi
from wsi import littles_law

RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 256, (1000, 1300, 3)).astype(np.uint8)
LIMIT = 20.0
"""Seconds after which a test that hangs has failed."""


@pytest.fixture(autouse=True)
def no_thread_is_left():
    """Each test must leave as many threads as it found."""
    yield
    ends = time.monotonic() + 5
    while any(t.name.startswith("tiles-") for t in threading.enumerate()):
        assert time.monotonic() < ends, threading.enumerate()
        time.sleep(0.01)


def within_limit(work):
    """Run `work` in a thread that is given up after LIMIT, return its result or raise its error."""
    outcome = {}

    def run():
        try:
            outcome["value"] = work()
        except BaseException as error:
            outcome["error"] = error

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(LIMIT)
    assert not thread.is_alive(), "the stream hangs"
    if "error" in outcome:
        raise outcome["error"]
    return outcome["value"]


def source(seed=0, size=32, width=1300, height=1000, on_read=None, downsamples=(1, 2), mpp=0.25):
    image = np.roll(IMAGE, seed * 7, axis=(0, 1))[:height, :width]
    slide = wsi.MemorySlide.pyramid(image, downsamples, mpp=mpp, name=f"s{seed}", on_read=on_read)
    return slide, wsi.tile_grid(slide, None, wsi.TileSpec(size, 0.5))


def collect(stream):
    """Return {(slide, index): pixels}, the batch sizes, and the errors by place."""
    tiles, sizes, errors = {}, [], {}
    for batch in stream:
        assert batch.pixels.shape == (len(batch), *batch.pixels.shape[1:])
        assert len(batch.slide) == len(batch.index) == len(batch.ok) == len(batch)
        assert len(batch.errors) == (~batch.ok).sum()
        sizes.append(len(batch))
        for pixels, slide, index, ok in zip(batch.pixels, batch.slide, batch.index, batch.ok, strict=True):
            key = int(slide), int(index)
            assert key not in tiles, "a tile came twice"
            tiles[key] = pixels.copy()
            assert ok or not pixels.any()
        bad = [(int(s), int(i)) for s, i, ok in zip(batch.slide, batch.index, batch.ok, strict=True) if not ok]
        errors.update(zip(bad, batch.errors, strict=True))
    return tiles, sizes, errors


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.integers(1, 9),
    st.integers(1, 70),
    st.lists(st.tuples(st.integers(20, 400), st.integers(20, 400)), max_size=5),
    st.integers(0, 4_000_000),
)
def test_any_workers_and_batches_give_the_tiles_of_reading_one_by_one(workers, batch, shapes, memory):
    """The oracle is `read_tile`; slides may be empty, smaller than a batch, or many batches."""
    sources = [source(i, width=w, height=h) for i, (w, h) in enumerate(shapes)]
    wanted = {
        (n, i): wsi.read_tile(slide, grid, i) for n, (slide, grid) in enumerate(sources) for i in range(len(grid))
    }
    with wsi.stream(sources, batch_size=batch, workers=workers, memory=memory) as stream:
        tiles, sizes, errors = within_limit(lambda: collect(stream))
    assert tiles.keys() == wanted.keys()
    assert all(np.array_equal(tiles[key], wanted[key]) for key in wanted)
    assert not errors
    assert all(n == batch for n in sizes[:-1])  # filled across slides: only the last may be smaller
    assert stream.record().tiles == len(wanted)


def test_late_tiles_hold_up_nobody():
    """One read takes half a second; all others must have been handed over before it."""

    def slow_once(x, y, w, h, level):
        if (x, y) == (0, 0):
            time.sleep(0.5)

    order = []
    with wsi.stream([source(on_read=slow_once)], batch_size=4, workers=3) as stream:
        for batch in stream:
            order.extend(batch.index.tolist())
    assert order.index(0) > len(order) * 0.9
    assert sorted(order) == list(range(len(order)))


def test_what_is_measured_obeys_littles_law():
    """Reads of 20 ms by five readers, a consumer of 150 tiles a second: W, λ, L and the waits are known."""

    def slow(*box):
        time.sleep(0.020)

    rate, batch = 150, 10
    with wsi.stream([source(on_read=slow)], batch_size=batch, workers=5) as stream:
        for taken in stream:
            time.sleep(len(taken) / rate)
    record = stream.record()
    assert record.W_mean == pytest.approx(0.020, rel=0.25)
    assert record.W_p99 >= record.W_mean
    assert record.lambda_ == pytest.approx(rate, rel=0.15)
    assert abs(record.L - record.lambda_ * record.W_mean) < 1e-9
    assert 2.1 < record.L < 3.9
    assert record.in_flight == pytest.approx(record.L, rel=0.05)
    assert record.wait < 0.12
    assert record.depth == pytest.approx(littles_law.depth(3.0), abs=3)
    assert record.capped_by is None


def test_a_consumer_that_is_too_fast_is_told_what_is_short():
    def slow(*box):
        time.sleep(0.005)

    with wsi.stream([source(on_read=slow)], batch_size=16, workers=2) as stream:
        for _ in stream:
            pass
    record = stream.record()
    assert record.lambda_ == pytest.approx(2 / 0.005, rel=0.25)
    assert 1.8 < record.L < 2.2
    assert record.wait > 0.9
    assert record.capped_by == "cores"
    assert "reader-bound" in record.text
    assert record.depth == pytest.approx(littles_law.depth(2.0), abs=1)
    told = record.to_dict()
    assert {"lambda", "W_mean", "W_p99", "L", "wait", "depth", "workers", "tiles", "seconds", "capped_by"} <= set(told)
    assert told["lambda"] == record.lambda_


def test_readers_are_added_where_storage_is_slow():
    """Reads of 30 ms that use no core: two readers give 67 tiles a second, more give more."""

    def slow(*box):
        time.sleep(0.03)

    sources = [source(i, on_read=slow) for i in range(3)]
    with wsi.stream(sources, batch_size=16) as stream:
        tiles, _, _ = within_limit(lambda: collect(stream))
    record = stream.record()
    assert record.workers > 2 * wsi.available_cores()
    assert record.lambda_ > 2 * wsi.available_cores() / 0.03
    assert len(tiles) == sum(len(grid) for _, grid in sources)


@pytest.mark.parametrize("workers", [1, 4, 12])
def test_reads_under_way_and_waiting_stay_bounded(workers):
    """A consumer that sleeps must not be flooded: begun reads stay within the batch and the depth."""
    begun = [0]
    lock = threading.Lock()

    def count(*box):
        with lock:
            begun[0] += 1

    taken, most = 0, 0
    batch = 8
    with wsi.stream([source(on_read=count)], batch_size=batch, workers=workers) as stream:
        for number, got in enumerate(stream):
            taken += len(got)
            time.sleep(0.03)
            most = max(most, begun[0] - taken)
            if number == 12:
                break
    assert most <= batch + max(littles_law.depth(workers), stream.record().depth)


def test_memory_is_a_hard_cap_that_is_named():
    """Two slabs are the least; the allocator counts what is taken."""
    made = []

    def allocate(shape, dtype):
        made.append(shape)
        return np.empty(shape, dtype)

    def slow(*box):
        time.sleep(0.002)

    with wsi.stream([source(on_read=slow)], batch_size=10, workers=8, memory=1, allocate=allocate) as stream:
        tiles, _, _ = within_limit(lambda: collect(stream))
    assert set(made) == {(10, 32, 32, 3)}
    assert len(made) <= 2
    assert stream.record().capped_by == "memory"
    assert "memory-bound" in stream.record().text
    assert len(tiles) == len(source()[1])


def test_reads_that_take_much_memory_do_not_run_side_by_side(monkeypatch):
    """Half of the memory is for what reads decode: of 10 MB, reads of 4 MB one by one, reads of 1 MB five at once."""
    import wsi.plan

    for each, most in ((4_000_000, 1), (1_000_000, 5)):
        monkeypatch.setattr(
            wsi.plan.TilePlan, "scratch_bytes", property(lambda _, each=each: each, lambda *_: None), raising=False
        )
        busy, seen, lock = [0], [0], threading.Lock()

        def slow(*_, busy=busy, seen=seen, lock=lock):
            with lock:
                busy[0] += 1
                seen[0] = max(seen[0], busy[0])
            time.sleep(0.01)
            with lock:
                busy[0] -= 1

        with wsi.stream([source(on_read=slow)], batch_size=4, workers=8, memory=10_000_000) as stream:
            tiles, _, _ = within_limit(lambda stream=stream: collect(stream))
        assert len(tiles) == len(source()[1])
        assert seen[0] == most


def test_slabs_are_made_once_and_used_again():
    made = []

    def allocate(shape, dtype):
        made.append(np.empty(shape, dtype))
        return made[-1]

    homes = set()
    with wsi.stream([source(i) for i in range(3)], batch_size=16, workers=2, allocate=allocate) as stream:
        for batch in stream:
            assert batch.pixels.base is not None
            homes.add(batch.pixels.__array_interface__["data"][0])
    assert stream.record().tiles > 3 * 16 * len(made)
    assert homes <= {a.__array_interface__["data"][0] for a in made}


def test_tiles_that_cannot_be_read_are_reported_and_the_rest_is_right():
    def fail(x, y, w, h, level):
        if (x // 64 + y // 64) % 5 == 0:
            raise OSError(f"bad sector at {x}")

    bad = source(0, on_read=fail)
    good = source(1)
    with wsi.stream([bad, good], batch_size=16, workers=4) as stream:
        tiles, _, errors = within_limit(lambda: collect(stream))
    places = {(0, i) for i, (x, y) in enumerate(bad[1].xy) if (x // 64 + y // 64) % 5 == 0}
    assert set(errors) == places
    for (_, i), error in errors.items():
        assert isinstance(error, wsi.TileReadError)
        assert error.slide == "s0"
        assert f"bad sector at {bad[1].xy[i][0]}" in str(error)
    clean = source(0)
    for (n, i), pixels in tiles.items():
        if (n, i) not in places:
            assert np.array_equal(pixels, wsi.read_tile(*(clean if n == 0 else good), i))
    assert stream.record().failed == len(places)


def test_a_bug_in_a_reader_stops_the_stream(monkeypatch):
    """Only slide errors are results; anything else must reach the caller at once, as it is."""
    slide, grid = source()
    monkeypatch.setattr(slide, "read", lambda *a, **k: 1 / 0)
    with wsi.stream([(slide, grid)], batch_size=4, workers=3) as stream, pytest.raises(ZeroDivisionError):
        within_limit(lambda: collect(stream))


def test_an_error_of_the_sources_comes_after_the_tiles_before_it():
    def sources():
        yield source(0)
        raise RuntimeError("no more slides")

    seen = []
    stream = wsi.stream(sources(), batch_size=16, workers=2)

    def drain():
        for batch in stream:
            seen.extend(batch.index.tolist())

    with stream, pytest.raises(RuntimeError, match="no more slides"):
        within_limit(drain)
    assert sorted(seen) == list(range(len(source()[1])))


def test_an_error_of_the_sources_before_any_tile():
    def sources():
        raise RuntimeError("nothing at all")
        yield

    with wsi.stream(sources()) as stream, pytest.raises(RuntimeError, match="nothing at all"):
        within_limit(lambda: collect(stream))


def test_tiles_of_two_sizes_in_one_stream_are_an_error():
    with wsi.stream([source(0), source(1, size=48)], workers=2) as stream, pytest.raises(ValueError, match="48 px"):
        within_limit(lambda: collect(stream))


def test_nothing_to_read_ends_at_once():
    empty = source(0, width=10, height=10)
    assert len(empty[1]) == 0
    for sources in ([], [empty, empty]):
        with wsi.stream(sources) as stream:
            assert within_limit(lambda s=stream: collect(s))[0] == {}
    assert stream.record().tiles == 0


def test_ordinals_count_slides_without_tiles():
    with wsi.stream([source(0, width=10, height=10), source(1)], workers=2) as stream:
        tiles, _, _ = within_limit(lambda: collect(stream))
    assert {slide for slide, _ in tiles} == {1}


@pytest.mark.parametrize("after", [0, 1, 5])
def test_closing_in_the_middle_ends_all_threads(after):
    def slow(*box):
        time.sleep(0.01)

    stream = wsi.stream([source(i, on_read=slow) for i in range(4)], batch_size=8, workers=6)
    for _, _ in zip(range(after), stream, strict=False):
        pass
    within_limit(stream.close)
    within_limit(stream.close)
    assert list(stream) == []


def test_an_error_in_the_consumer_ends_all_threads():
    def consume():
        with wsi.stream([source()], batch_size=8, workers=4) as stream:
            next(stream)
            raise KeyError("consumer")

    with pytest.raises(KeyError):
        consume()


def test_an_abandoned_stream_ends_by_itself():
    """No close, no with: the loop is left and the stream forgotten."""
    for _ in wsi.stream([source(i) for i in range(5)], batch_size=8, workers=4):
        break
    gc.collect()


def test_a_stream_never_asked_starts_no_thread():
    before = threading.active_count()
    stream = wsi.stream([source()])
    assert threading.active_count() == before
    stream.close()


def test_closing_while_readers_wait_for_a_slow_consumer():
    stream = wsi.stream([source()], batch_size=4, workers=4, memory=1)
    next(stream)
    time.sleep(0.1)  # all slabs are full now
    within_limit(stream.close)


def test_closing_from_another_thread_wakes_the_consumer():
    def stuck(*box):
        time.sleep(0.5)

    stream = wsi.stream([source(on_read=stuck)], batch_size=64, workers=1)
    threading.Timer(0.2, stream.close).start()
    assert within_limit(lambda: list(stream)) == []


def test_slides_are_pulled_as_they_are_needed():
    """At most a few are open ahead of what is read."""
    pulled = [0]

    def sources():
        for i in range(30):
            pulled[0] += 1
            yield source(i, width=300, height=300)

    per_slide = len(source(0, width=300, height=300)[1])
    ahead = []
    with wsi.stream(sources(), batch_size=4, workers=2) as stream:
        taken = 0
        for batch in stream:
            taken += len(batch)
            time.sleep(0.001)
            ahead.append(pulled[0] - taken / per_slide)
    assert max(ahead) <= 6
    assert pulled[0] == 30


def test_slides_are_closed_after_their_last_tile_when_asked():
    closed = []

    class Watched(wsi.MemorySlide):
        def _close(self):
            closed.append(self.name)

    def sources():
        for i in range(4):
            slide = Watched(IMAGE[:200, : 200 if i != 2 else 5], mpp=0.5, name=str(i))
            yield slide, wsi.tile_grid(slide, None, wsi.TileSpec(32, 0.5))

    with wsi.stream(sources(), batch_size=8, workers=3, close_slides=True) as stream:
        tiles, _, errors = within_limit(lambda: collect(stream))
    assert sorted(closed) == ["0", "1", "2", "3"]
    assert len(tiles) == 3 * 36
    assert not errors


def test_a_generator_of_sources_is_closed_in_its_own_thread():
    ended = []

    def sources():
        try:
            for i in range(100):
                yield source(i)
        finally:
            ended.append(threading.current_thread().name)

    stream = wsi.stream(sources(), batch_size=8, workers=2)
    next(stream)
    within_limit(stream.close)
    assert ended == ["tiles-feeder"]


@pytest.mark.parametrize("bad", [{"batch_size": 0}, {"workers": 0}, {"probe": 0}])
def test_impossible_settings_are_refused(bad):
    with pytest.raises(ValueError, match="at least 1"):
        wsi.stream([], **bad)


def test_a_plan_whose_requests_give_several_tiles(monkeypatch):
    """What a block-wise reader will do: rows of one request may lie in two batches, fail half-way, or fail alone."""
    from wsi import engine
    from wsi.request import ReadRequest

    class Blocks:
        most_rows, scratch_bytes = 7, 0

        def __init__(self, slide, grid):
            self.slide, self.grid = slide, grid

        def requests(self):
            rows = range(len(self.grid))
            return (ReadRequest(tuple(rows[i : i + 7])) for i in range(0, len(rows), 7))

        def read(self, request, place):
            for number, row in enumerate(request.rows):
                if 70 in request.rows and number == 3:
                    raise wsi.TileReadError(self.slide.name, "half a block")
                if row != 15:  # one that fails without a place
                    place(row)[...] = wsi.read_tile(self.slide, self.grid, row)
            return {row: wsi.TileReadError(self.slide.name, "one") for row in request.rows if row in (3, 15)}

    monkeypatch.setattr(engine, "read_plan", Blocks)
    one, other = source(0), source(1)
    for memory in (1, 2 << 30):
        with wsi.stream([one, other], batch_size=5, workers=3, memory=memory) as stream:
            tiles, sizes, errors = within_limit(lambda s=stream: collect(s))
        assert len(tiles) == len(one[1]) + len(other[1])
        assert all(n == 5 for n in sizes[:-1])
        assert set(errors) == {(s, i) for s in (0, 1) for i in (3, 15, *range(70, 77))}
        for (n, i), pixels in tiles.items():
            if (n, i) not in errors:
                assert np.array_equal(pixels, wsi.read_tile(*(one, other)[n], i))


def test_the_queue_costs_little_per_tile():
    """Everything but reading: under 100 µs a tile even on a busy machine."""
    slide, grid = source(size=8, downsamples=(1,), mpp=0.5)
    reads = time.perf_counter()
    for i in range(len(grid)):
        wsi.read_tile(slide, grid, i)
    reads = time.perf_counter() - reads
    with wsi.stream([(slide, grid)], batch_size=64, workers=1) as stream:
        began = time.perf_counter()
        for _ in stream:
            pass
        spent = time.perf_counter() - began
    assert len(grid) > 10_000
    assert (spent - reads) / len(grid) < 100e-6


def test_real_slides_of_three_readers_in_one_stream():
    """Files, four threads, batches across slides: the same tiles as one read after another."""
    names = ("CMU-1-Small-Region.svs", "OS-1-detail.ome.tif", "kidney-48-5.tif")
    slides = [wsi.open_slide(shared_path(f"data/slides/{name}"), slide_mpp=0.5) for name in names]
    sources = [(slide, wsi.tile_grid(slide, None, wsi.TileSpec(128, 0.6))) for slide in slides]
    with wsi.stream(sources, batch_size=24, workers=4) as stream:
        tiles, _, errors = within_limit(lambda: collect(stream))
    assert not errors
    assert len(tiles) == sum(len(grid) for _, grid in sources)
    for (n, i), pixels in tiles.items():
        assert np.array_equal(pixels, wsi.read_tile(*sources[n], i))
    for slide in slides:
        slide.close()


def test_waiting_for_a_slide_is_told_from_waiting_for_reads():
    """The second slide comes 0.4 s late; the reads of the first take 0.2 s more than the consumer."""

    def slow(*box):
        time.sleep(0.02)

    def sources():
        yield source(0, width=300, height=300, on_read=slow)
        time.sleep(1.0)
        yield source(1, width=300, height=300)

    per_slide = len(source(0, width=300, height=300)[1])
    with wsi.stream(sources(), batch_size=4, workers=1) as stream:
        within_limit(lambda: collect(stream))
    record = stream.record()
    waited_for_reads = per_slide * 0.02
    assert record.starved * record.seconds == pytest.approx(1.0 - waited_for_reads, abs=0.15)
    assert record.wait * record.seconds == pytest.approx(1.0, abs=0.15)


def test_a_reader_that_sleeps_is_told_from_one_that_computes():
    def sleep(*box):
        time.sleep(0.01)

    def compute(*box):
        ends = time.thread_time() + 0.01
        while time.thread_time() < ends:
            pass

    for work, core in ((sleep, 0.0), (compute, 0.01)):
        with wsi.stream([source(width=500, height=500, on_read=work)], batch_size=8, workers=1) as stream:
            within_limit(lambda s=stream: collect(s))
        record = stream.record()
        assert record.core == pytest.approx(core, abs=0.003)
        assert record.service >= 0.01
        assert record.service == pytest.approx(record.W_mean, rel=0.1)  # one tile per read here


def test_a_block_of_tiles_keeps_its_reader_once(tmp_path):
    """Reads of many tiles: each tile's share of the reader is the read's time over its tiles."""
    from _slides import smooth_picture, write_aperio

    slide = wsi.open_slide(write_aperio(tmp_path / "a.svs", smooth_picture(2048, 1536), mpp=0.25))
    grid = wsi.tile_grid(slide, None, wsi.TileSpec(64, 0.5))
    with slide, wsi.stream([(slide, grid)], batch_size=16, workers=1) as stream:
        within_limit(lambda: collect(stream))
    record = stream.record()
    assert record.service < record.W_mean / 8
    assert record.service * len(grid) <= 1.05 * record.seconds
