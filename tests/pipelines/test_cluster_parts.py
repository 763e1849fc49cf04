"""The parts of a run on a cluster that need no cluster: how tasks are cut, books of tasks, the line of progress."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.cluster.batches import TASK_SECONDS, Batches
from pipelines.cluster.board import Board
from pipelines.cluster.flight import DONE, FAILED, Flight
from pipelines.cluster.stage import bottleneck, merged
from pipelines.cluster.task import Answer
from pipelines.cluster.worker import look
from pipelines.outcome import Failure

SIZES = st.dictionaries(st.text(min_size=1, max_size=6), st.integers(0, 10**10), min_size=1, max_size=60)


@given(sizes=SIZES, slots=st.integers(1, 20), rate=st.one_of(st.none(), st.floats(1e3, 1e9)))
def test_every_slide_is_given_out_once(sizes, slots, rate):
    batches = Batches(sizes)
    if rate:
        batches.learn(list(sizes), sum(size + 2e6 for size in sizes.values()) / rate)
    given_out = []
    while names := batches.next(slots):
        given_out += names
    assert sorted(given_out) == sorted(sizes)
    assert len(batches) == 0


def test_a_task_is_worth_about_five_minutes_where_there_is_plenty():
    """1,000 slides of 1 GB at 10 MB/s a slot: three slides each; a slide of ten minutes is a task of its own."""
    sizes = {f"s{n}": 10**9 for n in range(1000)} | {"large": 6 * 10**9}
    batches = Batches(sizes)
    batches.learn(["s0", "s1"], 200.0)
    assert batches.next(8) == ["large"]
    names = batches.next(8)
    assert len(names) == 3
    assert 0.5 * TASK_SECONDS < 100 * len(names) <= TASK_SECONDS


def test_tasks_grow_small_towards_the_end():
    """So that the slots end together: the last tasks are single slides."""
    batches = Batches({f"s{n}": 10**8 for n in range(64)})
    batches.learn(["s0"], 10.0)
    counts = []
    while names := batches.next(4):
        counts.append(len(names))
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > counts[-1]


def test_small_slides_are_not_given_out_one_by_one():
    """Each task has to start a process that reads."""
    batches = Batches({f"s{n}": 1000 for n in range(60)})
    batches.learn(["s0"], 1.0)
    assert 3 <= len(batches.next(8)) <= 8


def test_a_million_slides_are_cut_into_tasks_in_seconds():
    batches = Batches({f"s{n}": n for n in range(200_000)})
    batches.learn(["s1"], 1e-3)
    count = 0
    while batches.next(1000):
        count += 1
    assert count > 1000


@given(events=st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), max_size=12))
def test_the_book_outlives_its_process(events, tmp_path_factory):
    """The oracle: what a set and a dict would hold."""
    path = tmp_path_factory.mktemp("flight") / "run" / "task.json"
    flight, begun, ended = Flight(path), [], {}
    for name, begins in events:
        if begins:
            flight.begin(name)
            begun = [*begun, *([] if name in begun else [name])]
        else:
            flight.end(name, DONE)
            begun, ended = [one for one in begun if one != name], ended | {name: {"state": DONE}}
    again = Flight(path)
    assert (again.open, again.ended) == (begun, ended)


def test_a_book_that_is_torn_is_empty(tmp_path):
    path = tmp_path / "task.json"
    for text in ("", "{", "[]", '{"open": 3}', '{"open": [], "ended": {"a": "b"}}'):
        path.write_text(text)
        assert (Flight(path).open, Flight(path).ended) == ([], {})


def test_the_book_keeps_why_a_slide_failed(tmp_path):
    flight = Flight(tmp_path / "task.json")
    flight.begin("a")
    flight.end("a", FAILED, Failure("a", "bad", "copy it"))
    flight.begin("b")
    flight.withdraw()
    again = Flight(tmp_path / "task.json")
    assert again.failures == {"a": Failure("a", "bad", "copy it")}
    assert again.open == []


def test_a_machine_that_sees_other_files_is_found_out(tmp_path):
    job = tmp_path / "job"
    job.mkdir()
    (job / "proof").write_text("run 7")
    slide = tmp_path / "a.svs"
    slide.touch()
    assert look(str(job), ("proof", "run 7"), [str(slide)]) == ""
    assert "another folder" in look(str(job), ("proof", "run 8"), [])
    assert "does not see the job folder" in look(str(tmp_path / "no"), ("proof", "run 7"), [])
    assert f"does not see {tmp_path / 'b.svs'}" in look(str(job), ("proof", "run 7"), [str(tmp_path / "b.svs")])


def test_one_line_tells_of_all_workers():
    board = Board()
    for number, (note, tiles) in enumerate(
        [
            ("reader-bound: encoder waits 31 % · more readers", 100),
            ("reader-bound: encoder waits 40 % · more readers", 150),
            ("encoder-bound: readers wait 20 % · a GPU", 50),
        ]
    ):
        board.take((0.0, {"task": str(number), "tiles": tiles, "ended": 1, "note": note}))
    line = board.line(3, 3)
    assert "3 workers, 3 tasks, 300 tiles/s" in line
    assert "reader-bound: encoder waits 40 % (2 of 3 tasks)" in line
    assert board.ended() == 3
    assert board.ended() == 0
    board.forget("0")
    board.forget("1")
    assert "encoder-bound" in board.line(3, 1)
    assert "\n" not in line


def test_rates_of_tasks_are_weighed_by_what_they_did():
    """The oracle: all tiles by all seconds."""
    fast = {"encode": {"lambda": 100.0, "W_mean": 0.1, "W_p99": 0.2, "L": 1.0, "wait": 0.0, "things": 300}}
    slow = {"encode": {"lambda": 10.0, "W_mean": 1.0, "W_p99": 2.0, "L": 1.0, "wait": 0.0, "things": 100}}
    rates = merged([fast, slow, {}])
    assert rates["encode"]["lambda"] == pytest.approx(400 / 13, abs=1e-3)
    assert rates["encode"]["W_mean"] == pytest.approx(0.325)
    assert rates["encode"]["W_p99"] == 2.0
    assert rates["encode"]["things"] == 400


def test_the_bottleneck_is_what_limited_most_of_the_time():
    answers = [
        Answer("a", seconds=10, verdict={"limit": "readers", "text": "short"}),
        Answer("b", seconds=100, verdict={"limit": "encoder", "text": "the encoder"}),
        Answer("c", seconds=60, verdict={"limit": "readers", "text": "the readers"}),
        Answer("d", seconds=50, verdict={"limit": "readers", "text": "short"}),
        Answer("e", seconds=999, verdict={"limit": "nothing", "text": "nothing was read"}),
    ]
    assert bottleneck(answers).startswith("the readers (so for 55%")
    assert bottleneck([]) == "nothing was read"


def test_news_and_answers_carry_no_pixels():
    """What moves through the scheduler for a task of a thousand tiles stays below a few kilobytes."""
    rates = {stage: dict.fromkeys(("lambda", "W_mean", "W_p99", "L", "wait", "things"), 1.5) for stage in "abcdef"}
    answer = Answer("x", "tcp://10.0.0.1:1", "node", 300.0, 10**6, rates, {"limit": "readers", "text": "y" * 200})
    assert len(json.dumps(answer.__dict__, default=str)) < 4000
