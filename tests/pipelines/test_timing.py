"""The clocks of the stages keep Little's law, and tell core seconds from waiting."""

from __future__ import annotations

import time

import pytest

from pipelines.timing import StageClock


def test_a_stage_clock_obeys_littles_law():
    clock = StageClock()
    for _ in range(3):
        with clock.of(10):
            time.sleep(0.02)
    found = clock.to_dict()
    assert found["L"] == pytest.approx(found["lambda"] * found["W_mean"], rel=1e-3)
    assert found["W_mean"] == pytest.approx(0.02, abs=0.02)
    assert found["things"] == 30
    assert found["core"] < 0.01


def test_core_seconds_of_a_stage_are_those_of_its_thread():
    clock = StageClock()
    with clock.of(1):
        ends = time.thread_time() + 0.05
        while time.thread_time() < ends:
            pass
    found = clock.to_dict()
    assert found["core"] == pytest.approx(0.05, abs=0.02)
    assert found["core"] + found["queued"] == pytest.approx(found["busy"], rel=0.2)
