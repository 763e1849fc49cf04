"""Every head trains and predicts through the command with options of its own, on the cohort of the demo."""

from __future__ import annotations

import csv
import json
import shutil

import pytest
from _command import slidemil_json

from mil import HEADS
from mil.heads.options import options_of

OWN = {"groups": 3, "branches": 3, "layers": 1, "rank": 5, "landmarks": 7, "neighbors": 4, "mask_share": 0.5}
"""Values other than the default ones; `hidden` is 16 everywhere."""


def rows(path):
    with path.open(newline="") as file:
        return {row["slide_id"]: row for row in csv.DictReader(file)}


@pytest.fixture(scope="module")
def jobs(finished, tmp_path_factory):
    """One copy of the finished job for all heads."""
    return shutil.copytree(finished, tmp_path_factory.mktemp("heads") / "job")


@pytest.mark.parametrize("head", sorted(HEADS))
def test_every_head_trains_and_predicts_through_the_command(head, jobs, labels):
    name = head.replace("_", "-")
    asked = {"hidden": 16, **{key: value for key, value in OWN.items() if key in options_of(HEADS[head])}}
    given = "head_options=" + ",".join(f"{key}={value}" for key, value in asked.items())
    code, said = slidemil_json(
        "train", jobs, "-l", labels, "--head", name, "--epochs", 1, "--name", head, "--set", given
    )
    assert code == 0, said
    table = jobs / "predictions" / head / "slides.csv"
    first = rows(table)
    table.unlink()
    code, said = slidemil_json("predict", jobs, "-m", head)
    assert (code, said["new"], said["slides"]) == (0, True, len(first))
    again = rows(table)
    assert first == again  # labels, too: they were kept
    chances = [(float(row["p_negative"]), float(row["p_positive"])) for row in first.values()]
    assert all(abs(a + b - 1) < 1e-6 for a, b in chances)
    assert len({round(a, 7) for a, _ in chances}) > 1  # it looked at the slides
    config = json.loads((jobs / "models" / head / "config.json").read_text())
    assert config["head"]["name"] == head
    assert config["head"]["options"] == options_of(HEADS[head]) | asked
    assert json.loads((jobs / "models" / head / "metrics.json").read_text())["test"]["n_patients"] > 0
