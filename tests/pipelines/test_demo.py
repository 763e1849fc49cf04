"""The demo keeps its promises: held-out slides told apart, the planted region found, in time."""

from __future__ import annotations

import csv
import json

import pytest
from _command import slidemil, slidemil_json


@pytest.mark.slow
def test_the_demo_tells_held_out_slides_apart_and_finds_the_region(tmp_path):
    code, said = slidemil_json("demo", "-o", tmp_path / "job", "--seed", 3)
    assert code == 0
    assert set(said) == {
        "status",
        "seconds",
        "slide_auc",
        "slide_auc_interval",
        "localization_auc",
        "job",
        "report",
    }
    assert said["slide_auc"] >= 0.95
    assert said["localization_auc"] >= 0.9
    assert said["slide_auc_interval"][0] <= said["slide_auc"] <= said["slide_auc_interval"][1]
    assert "composed from one source image" in (tmp_path / "job" / "report.html").read_text()
    figures = json.loads((tmp_path / "job" / "demo.json").read_text())
    assert figures["held_out"] == {"slides": 16, "patients": 8}
    with (tmp_path / "job" / "truth" / "labels.csv").open(newline="") as file:
        truth = list(csv.DictReader(file))
    sides = {row["case_id"]: row["split"] for row in truth}
    assert all(sides[row["case_id"]] == row["split"] for row in truth), "a patient on two sides"


def test_a_slide_of_the_users_own_gets_pictures_and_features(cohort, tmp_path):
    slide = cohort.slides[0]
    code, said = slidemil("demo", "--slide", slide.path, "-o", tmp_path / "job", "-q")
    assert code == 0, said
    for line in ("tissue: ", "tiles: ", "report: "):
        assert line in said
    assert (tmp_path / "job" / "contours" / f"{slide.slide_id}.jpg").is_file()


def test_the_demo_never_writes_into_a_job_of_the_users(finished, tmp_path):
    code, said = slidemil("demo", "-o", finished)
    assert code == 2
    assert "no demo" in said
