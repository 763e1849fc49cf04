"""The arithmetic of the whole line: closed forms, and a simulation tile by tile that shares no line with it."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsi.littles_law import CORES, Job, Line, Stage, duration

SECONDS = st.floats(1e-5, 1.0)


def line(storage=0.0, decode=0.0, stain=0.0, encode=0.0, readers=2, cores=2, **most):
    stages = (
        Stage("storage", "read", storage, 0.0),
        Stage("decode", "read", decode, decode),
        Stage("stain", "take", stain, stain),
        Stage("encode", "take", encode, 0.0),
    )
    return Line(stages, {"read": readers, "take": 1}, cores, most)


def test_by_hand():
    slow_disk = line(storage=0.018, decode=0.002, encode=0.004)
    assert slow_disk.rate == pytest.approx(100)
    assert next(iter(slow_disk.demands())) == "read"
    assert slow_disk.largest("read").name == "storage"
    assert slow_disk.gain(workers={"read": 1}) == pytest.approx(1.5)
    assert slow_disk.more_workers("read") == 3  # five readers: 0.02 / 5 = the encoder's 0.004
    assert slow_disk.gain(workers={"read": 3}) == slow_disk.gain(workers={"read": 99}) == pytest.approx(2.5)
    assert slow_disk.gain(faster={"encode": 2}) == 1
    few_cores = line(decode=0.01, stain=0.004, readers=4, cores=1)
    assert next(iter(few_cores.demands())) == CORES
    assert few_cores.rate == pytest.approx(1 / 0.014)
    assert few_cores.gain(cores=1) == pytest.approx(2)
    assert few_cores.gain(cores=9) == pytest.approx(0.014 / 0.004)
    assert few_cores.gain(workers={"read": 9}) == 1
    serial = line(stain=0.003, encode=0.002, decode=0.001)
    assert serial.largest("take").name == "stain"
    assert serial.gain(faster={"stain": 2}) == pytest.approx(5 / 3.5)
    assert serial.gain(workers={"take": 1}) == pytest.approx(2)
    assert line().rate == math.inf
    assert line().gain(cores=1) == 1


def test_a_cap_binds_until_it_falls():
    capped = line(storage=0.01, encode=0.001, readers=50, read=100)
    assert capped.rate == 100
    assert capped.gain(workers={"read": 50}) == 1
    assert capped.gain(uncapped="read") == pytest.approx(10)


@given(SECONDS, SECONDS, SECONDS, SECONDS, st.integers(1, 32), st.integers(1, 32))
def test_more_never_gives_less_and_the_next_bottleneck_is_the_cap(storage, decode, stain, encode, readers, cores):
    one = line(storage, decode, stain, encode, readers, cores)
    demands = one.demands()
    assert one.rate == pytest.approx(1 / max(demands.values()))
    for gain in (one.gain(workers={"read": 1}), one.gain(cores=1), one.gain(faster={"encode": 2})):
        assert 1 <= gain <= 2 + 1e-9
    wanted = one.more_workers("read")
    others = max(seconds for name, seconds in demands.items() if name != "read")
    assert one.gain(workers={"read": wanted}) == pytest.approx(max(1.0, max(demands.values()) / others))


# ------------------------------------------------------------------ how long slides take


def simulated(slides, tiles, batch, ahead=2):
    """Let tiles go through one by one: one feeder, one serial reader, one taker of whole batches per slide."""
    read_free = taker_free = ready = 0.0
    asked: list[float] = []
    for number, (prepare, read, take, close) in enumerate(slides):
        begin = ready if number < ahead else max(ready, asked[number - ahead])
        ready = begin + prepare
        clock = max(ready, read_free)
        done = []
        for first in range(0, tiles, batch):
            count = min(batch, tiles - first)
            if len(done) >= 1:  # one batch may wait: the reader is at most one ahead of the taker
                clock = max(clock, done[-1] - count / tiles * take)
            clock += count / tiles * read
            taker_free = max(taker_free, clock) + count / tiles * take
            done.append(taker_free)
        asked.append(clock)
        read_free = clock
        taker_free += close
    return taker_free


def test_one_slide_by_hand():
    assert duration([Job(3, 10, 1)], batches=1e9) == pytest.approx(13)
    assert duration([Job(3, 1, 10, 2)], batches=1e9) == pytest.approx(15)
    assert duration([Job(3, 10, 10)], batches=10) == pytest.approx(14)
    assert duration([]) == 0


def test_many_slides_go_at_the_pace_of_the_slowest_station():
    for job, pace in ((Job(1, 5, 2), 5), (Job(4, 1, 2), 4), (Job(1, 2, 6, 1), 7)):
        assert duration([job] * 200, batches=50) == pytest.approx(200 * pace, rel=0.02)


@given(
    st.lists(st.tuples(*[st.floats(0.0, 5.0)] * 3, st.floats(0.0, 1.0)), min_size=1, max_size=12),
    st.integers(20, 60),
)
def test_the_closed_form_keeps_to_a_simulation_tile_by_tile(slides, batches):
    """Within a batch per slide, which is what a fluid does not see."""
    told = duration([Job(*slide) for slide in slides], batches=batches)
    seen = simulated(slides, tiles=10 * batches, batch=10)
    grain = sum(read + take for _, read, take, _ in slides) / batches
    assert told == pytest.approx(seen, abs=3 * grain + 1e-6)
