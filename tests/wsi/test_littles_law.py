"""The arithmetic of the queue: closed forms, and a simulation that shares no line with it."""

from __future__ import annotations

import heapq
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsi import littles_law
from wsi.adapt import ReaderCount, Window


def test_by_hand():
    assert littles_law.in_flight(500, 0.01) == pytest.approx(5)
    assert littles_law.depth(5) == 12  # 5 + 3 * 2.236 = 11.7
    assert littles_law.depth(50) == 72
    assert littles_law.depth(0) == 1
    assert littles_law.depth(9) == 18
    assert littles_law.readers_needed(100, 0.02, 1.0) == 2
    assert littles_law.readers_needed(100, 0.02, 0.9) == 3
    assert littles_law.readers_needed(0, 1) == 1


@given(st.floats(0, 1e5), st.floats(0, 1e5))
def test_depth_grows_with_what_is_under_way(a, b):
    low, high = sorted((a, b))
    assert littles_law.depth(low) <= littles_law.depth(high)
    assert littles_law.depth(low) >= low


@given(st.floats(0.1, 1e5), st.floats(1e-5, 10), st.integers(1, 64), st.integers(1, 5000))
def test_a_plan_keeps_its_caps_and_says_what_they_cost(rate, latency, readers, depth):
    plan = littles_law.plan(rate, latency, most_readers=readers, most_depth=depth)
    assert 1 <= plan.readers <= readers
    assert 1 <= plan.depth <= depth
    assert 0 < plan.attainable <= 1
    assert (plan.capped_by is None) == (
        plan.readers == littles_law.readers_needed(rate, latency)
        and plan.depth == max(littles_law.depth(plan.under_way), plan.readers)
    )
    assert plan.text
    if plan.capped_by is None:
        assert plan.attainable == 1
        assert plan.under_way == pytest.approx(rate * latency)


def test_plans_in_words():
    bound = littles_law.plan(100, 0.05, most_readers=4, most_depth=99)
    assert (bound.capped_by, bound.attainable) == ("cores", pytest.approx(0.8))
    assert bound.text == "reader-bound: the consumer waits 20%; 2 more readers would give about 1.2x"
    tight = littles_law.plan(1000, 0.1, most_readers=200, most_depth=50)
    assert (tight.capped_by, tight.attainable) == ("memory", pytest.approx(0.5))
    assert "50 of 130 tiles" in tight.text


# ------------------------------------------------------------------ a simulation of events


def simulate(rate, latency, depth, items=40_000, seed=1):
    """Simulate a consumer that takes one item every 1/rate seconds, any that is ready, from reads kept `depth` deep.

    Returns the share of time it waits, and the mean number of reads under way.
    """
    dice = random.Random(seed)
    done: list[float] = []  # times at which reads end
    busy = 0.0
    for _ in range(depth):
        span = latency(dice)
        busy += span
        heapq.heappush(done, span)
    now = waited = 0.0
    for taken in range(items):
        ready = heapq.heappop(done)
        if ready > now:
            waited += ready - now
            now = ready
        span = latency(dice)  # reading goes on into the next slide: the end of a slide is no end of the queue
        busy += span * (taken < items - depth)
        heapq.heappush(done, now + span)
        now += 1 / rate
    return waited / now, busy / now


REGIMES = {
    "constant": lambda dice: 0.010,
    "exponential": lambda dice: dice.expovariate(100),
    "lognormal": lambda dice: dice.lognormvariate(math.log(0.010) - 0.5, 1.0),
    "network storage": lambda dice: 0.3 if dice.random() < 0.01 else 0.007,
}


@pytest.mark.parametrize("name", REGIMES)
@pytest.mark.parametrize("rate", [500, 5000])
def test_the_rule_keeps_the_consumer_waiting_under_one_percent(name, rate):
    dice = random.Random(0)
    mean = sum(REGIMES[name](dice) for _ in range(50_000)) / 50_000
    under_way = littles_law.in_flight(rate, mean)
    stall, counted = simulate(rate, REGIMES[name], littles_law.depth(under_way))
    assert stall < 0.01
    assert counted == pytest.approx(under_way, rel=0.1)  # Little's law, counted
    too_shallow, _ = simulate(rate, REGIMES[name], max(1, int(under_way / 2)))
    assert too_shallow > 0.3


# ------------------------------------------------------------------ how many readers


def settle(rate_of, needed=1000, start=2, most=64, core_share=0.05, rounds=60):
    """Let the count look at windows whose rate depends on it; return the counts it tried."""
    count = ReaderCount(start, most)
    tried = [start]
    for _ in range(rounds):
        rate = rate_of(count.count)
        window = Window(1.0, int(rate), int(rate), 0.9, 0.05, core_share)
        tried.append(count.look(window, needed))
    return tried


def test_readers_grow_where_storage_is_slow():
    tried = settle(lambda n: 1000 * n)
    assert max(tried) == 64
    assert tried[-1] >= 60


def test_readers_stop_where_more_give_no_more():
    tried = settle(lambda n: 1000 * min(n, 9))
    assert max(tried) <= 18
    assert sorted(tried)[len(tried) // 2] <= 9


def test_busy_cores_are_not_taken_for_slow_storage():
    assert set(settle(lambda n: 1000 * n, core_share=0.9)) == {2}
    crowded = settle(lambda n: 1000, core_share=0.3)  # cores shared with others: waiting, and nothing to gain
    assert set(crowded) == {2, 3}
    assert crowded.count(3) <= 4


def test_no_more_readers_than_needed_or_allowed():
    assert max(settle(lambda n: 1000 * n, needed=7)) == 7
    assert max(settle(lambda n: 1000 * n, most=5)) == 5


def test_a_step_that_ends_the_waiting_is_kept():
    """A consumer that waited for 3 % cannot take 5 % more."""
    count = ReaderCount(2, 64)
    assert count.look(Window(1.0, 970, 970, 0.03, 0.05, 0.05), 100) == 3
    assert count.look(Window(1.0, 999, 999, 0.001, 0.05, 0.05), 100) == 3
    assert not count.saturated
    assert count.look(Window(1.0, 970, 970, 0.03, 0.05, 0.05), 100) == 4
    assert count.look(Window(1.0, 971, 971, 0.03, 0.05, 0.05), 100) == 3  # it waits on, and got no more
    assert count.saturated


def test_a_content_consumer_changes_nothing():
    count = ReaderCount(2, 64)
    window = Window(1.0, 100, 100, 0.001, 0.05, 0.01)
    assert {count.look(window, 100) for _ in range(30)} == {2}
    assert window.appetite == pytest.approx(100 / 0.999)
