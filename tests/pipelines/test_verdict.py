"""The sentence that names the bottleneck says who waited for whom, and what one more would give: by hand."""

from __future__ import annotations

import pytest

from pipelines.verdict import judge, line_of


def read(storage=0.0, decode=0.0, workers=2, wait=0.0, tiles=1000, seconds=10.0, **more):
    """Return what the queue measured, where a tile costs a reader these seconds."""
    found = {
        "tiles": tiles,
        "seconds": seconds,
        "service": storage + decode,
        "core": decode,
        "queued": 0.0,
        "W_mean": storage + decode,
        "workers": workers,
        "wait": wait,
        "starved": 0.0,
        "saturated": False,
        "capped_by": None,
    }
    return found | more


def stage(busy, core=None, things=1000):
    return {"busy": busy, "core": busy if core is None else core, "queued": 0.0, "things": things}


CASES = {
    "nothing": ({}, "nothing", "nothing was read"),
    "few readers": (  # 20 ms a tile over 2 readers: 10; with 2 more 5, as long as the encoder
        {"read": read(decode=0.02, wait=0.5), "encode": stage(5.0, 0.0)},
        "readers",
        "reader-bound: encoder waits 50% · 2 more readers would give about 2.0x",
    ),
    "one reader more": (
        {"read": read(decode=0.01, workers=1, wait=0.2), "encode": stage(8.0, 0.0)},
        "readers",
        "reader-bound: encoder waits 20% · 1 more reader would give about 1.2x",
    ),
    "slow storage": (
        {"read": read(storage=0.019, decode=0.001, wait=0.75), "encode": stage(2.5)},
        "storage",
        "reader-bound: encoder waits 75%, reads for storage · 6 more readers would give about 4.0x",
    ),
    "storage that gives no more": (
        {"read": read(storage=0.019, decode=0.001, wait=0.75, saturated=True), "encode": stage(2.5)},
        "storage",
        "reader-bound: encoder waits 75%, reads for storage · more readers get no more out of it; "
        "a storage twice as fast would give about 1.9x",
    ),
    "encoder": (
        {"read": read(decode=0.002), "encode": stage(9.9, 0.1), "stain": stage(0.1)},
        "encoder",
        "encoder-bound: readers wait 90% · an encoder twice as fast would give about 2.0x",
    ),
    "stain": (
        {"read": read(decode=0.002), "encode": stage(2.0), "stain": stage(8.0)},
        "stain",
        "stain-bound: readers wait 90% · stain normalization twice as fast would give about 1.7x",
    ),
    "writing": (
        {"read": read(decode=0.002), "encode": stage(2.0), "write": stage(8.0, 0.1, things=10)},
        "writing",
        "writing-bound: readers wait 90% · writing to the job folder twice as fast would give about 1.7x",
    ),
    "tissue": (
        {"read": read(decode=0.002, wait=0.8), "encode": stage(2.0), "prepare": stage(10.0, things=5)},
        "preparation",
        "preparation-bound: encoder waits 80%, mostly for slides to be looked through · "
        "opening and tissue detection twice as fast would give about 2.0x",
    ),
    "hashing": (
        {"read": read(decode=0.002, wait=0.8), "encode": stage(2.0), "hash": stage(10.0, 0.1, things=5)},
        "hashing",
        "preparation-bound: encoder waits 80%, mostly for slides to be hashed · "
        "hashing twice as fast would give about 2.0x",
    ),
    "memory": (
        {"read": read(storage=0.05, workers=64, wait=0.9, capped_by="memory"), "encode": stage(1.0)},
        "memory",
        "memory-bound: encoder waits 90% · more --memory would give about 10.0x",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_verdicts(name):
    rates, limit, text = CASES[name]
    found = judge(rates, cores=4)
    assert found.limit == limit
    assert found.text.replace("over 10x", "about 10.0x") == text


def test_a_gain_is_of_the_whole_run():
    """14.06 s, of which the encoder was busy for 11.41: twice as fast it saves 5.70 of them."""
    rates = {"read": read(decode=0.002, tiles=718, seconds=13.5), "encode": stage(11.41, 0.1, things=718)}
    rates["read"]["wait"] = 1 - 11.41 / 13.5
    assert judge(rates, cores=4).gain == pytest.approx(2)
    found = judge(rates, cores=4, whole=14.06)
    assert found.gain == pytest.approx(14.06 / (14.06 - 5.705), rel=0.01)
    assert found.text.endswith("an encoder twice as fast would give about 1.7x")


def test_decoding_on_all_cores_asks_for_a_core_and_counts_its_reader():
    rates = {"read": read(decode=0.019, workers=2, wait=0.8), "encode": stage(2.0)}
    found = judge(rates, cores=2)
    assert found.limit == "cores"
    assert found.text == (
        "core-bound: encoder waits 80% · decoding takes most of 2 cores; 1 more core would give about 1.5x"
    )
    crowded = {"busy": 10.0, "core": 5.0, "queued": 5.0, "things": 1000}
    alone = judge({"read": read(decode=0.005, workers=1), "encode": crowded}, cores=1)
    assert alone.limit == "cores"
    assert "most of 1 core; 1 more core would give about 2.0x" in alone.text


def test_an_encoder_on_a_device_asks_for_a_device():
    rates = {"read": read(decode=0.008, workers=2), "encode": stage(10.0, 0.1)}
    assert judge(rates, cores=8, device="cuda").text.endswith("1 more GPU would give about 2.0x")


def test_threads_of_the_encoder_count_as_its_own():
    """Ten core seconds that no thread we know has used: the encoder computes in two threads."""
    rates = {"read": read(decode=0.001), "encode": stage(10.0)}
    line = line_of(rates, cores=2, cpu=21.0)
    assert next(s for s in line.stages if s.name == "encode").core == pytest.approx(0.02)
    found = judge(rates, cores=2, cpu=21.0)
    assert found.limit == "encoder"
    assert found.text.endswith("1 more core would give about 1.5x")  # 21 core seconds over 3 cores, no longer over 2


def test_waiting_for_a_core_is_no_work_of_a_stage():
    """The same encoder, on a machine where others hold the cores half of the time."""
    crowded = {"busy": 10.0, "core": 5.0, "queued": 5.0, "things": 1000}
    line = line_of({"read": read(decode=0.001), "encode": crowded}, cores=2)
    assert next(s for s in line.stages if s.name == "encode").seconds == pytest.approx(0.005)


def test_two_that_take_as_long_are_both_named():
    found = judge({"read": read(storage=0.0195, wait=0.05), "encode": stage(9.5, 0.1)}, cores=4)
    assert found.limit == "storage"
    assert found.beside == ("encoder",)
    assert found.text.endswith("encoder takes as long: mending one alone brings little")
