"""The queue's clock: steady where single reads take very long, quick where all of them do."""

from __future__ import annotations

import math
import random

import pytest

from wsi import littles_law
from wsi.measure import Recent

WINDOW, RATE = 0.25, 200
REGIMES = {
    "constant": lambda dice: 0.030,
    "lognormal": lambda dice: dice.lognormvariate(math.log(0.030) - 0.5, 1.0),
    "network storage": lambda dice: 0.9 if dice.random() < 0.01 else 0.0212,
}


def windows(recent, draw, dice, count):
    """Let so many windows pass; return L after each."""
    found = []
    for number in range(count):
        for _ in range(round(RATE * WINDOW)):
            recent.note(1, draw(dice))
        batches = 64 * (1 + (number % 4 == 0)) if number % 2 == 0 else 0  # batches come when they come
        recent.take(WINDOW, batches or 1, 0.0)
        found.append(littles_law.in_flight(RATE, recent.latency))
    return found


@pytest.mark.parametrize("name", REGIMES)
def test_the_depth_stays_under_two_and_a_half_times_what_is_under_way(name):
    """L is 6: the rule itself gives 2.2 L. Of single windows of 50 reads, many give more than 2.5 L."""
    deep = []
    for seed in range(20):
        settled = windows(Recent(), REGIMES[name], random.Random(seed), 120)[60:]
        deep += [littles_law.depth(under_way) / 6 > 2.5 for under_way in settled]
    assert sum(deep) <= 0.03 * len(deep)


@pytest.mark.parametrize("name", REGIMES)
@pytest.mark.parametrize("times", [5, 0.2])
def test_a_burst_is_noticed_within_a_second(name, times):
    dice, recent, draw = random.Random(1), Recent(), REGIMES[name]
    before = windows(recent, draw, dice, 100)[-1]
    after = windows(recent, lambda dice: times * draw(dice), dice, 4)[-1]
    if times > 1:
        assert after > 3 * before
    else:
        assert after < 0.7 * before or name == "network storage"  # one such read in a hundred hides it for longer


def test_by_hand():
    recent = Recent()
    recent.note(4, 0.4)
    recent.note(1, 0.1)
    recent.take(2.0, 50, 1.0)
    assert recent.latency == pytest.approx((4 * 0.4 + 0.1) / 5)
    assert recent.service == pytest.approx(0.5 / 5)
    assert recent.appetite == pytest.approx(50)
