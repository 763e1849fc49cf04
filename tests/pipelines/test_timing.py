"""The sentence that names the bottleneck says who waited for whom."""

from __future__ import annotations

import time

import pytest

from pipelines.timing import StageClock, bottleneck


def read(wait, capped_by=None, text="the readers keep up"):
    return {"tiles": 100, "wait": wait, "capped_by": capped_by, "text": text}


@pytest.mark.parametrize(
    ("rates", "verdict"),
    [
        ({}, "nothing was read"),
        ({"read": read(0.01), "encode": {"busy": 3.0}, "stain": {"busy": 1.0}}, "encoder-bound"),
        ({"read": read(0.01), "encode": {"busy": 1.0}, "stain": {"busy": 3.0}}, "stain-bound"),
        ({"read": read(0.4), "encode": {"busy": 1.0}}, "preparation-bound: encoder waits 40%"),
        (
            {"read": read(0.4, "cores", "reader-bound: x; 2 more readers would give about 1.4x")},
            "reader-bound: encoder waits 40% · 2 more readers would give about 1.4x",
        ),
    ],
)
def test_verdicts(rates, verdict):
    assert bottleneck(rates).startswith(verdict)


def test_a_stage_clock_obeys_littles_law():
    clock = StageClock()
    for _ in range(3):
        with clock.of(10):
            time.sleep(0.02)
    found = clock.to_dict()
    assert found["L"] == pytest.approx(found["lambda"] * found["W_mean"], rel=1e-3)
    assert found["W_mean"] == pytest.approx(0.02, abs=0.02)
    assert found["things"] == 30
