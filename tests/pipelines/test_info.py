"""What `info` says of a slide agrees with `scan` and with a job."""

from __future__ import annotations

import csv
import json

import pytest
from _command import slidemil, slidemil_json
from _shared import shared_path
from _slides import smooth_picture, write_aperio
from _zoo import write_zoo


def told(path):
    code, said = slidemil("info", path, "--json")
    assert code == 0
    return json.loads(said)["slides"][0]


@pytest.mark.parametrize("direct", [True, False])
def test_the_reader_is_the_one_a_job_names(tmp_path, direct):
    path = tmp_path / "a.svs"
    write_aperio(
        path, smooth_picture(700, 500), **({} if direct else {"compression": "packbits", "compressionargs": {}})
    )
    row = told(path)
    assert row["reader"].endswith("+ direct") is direct
    assert slidemil("extract", path, "-o", tmp_path / "job", "-q")[0] == 0
    with (tmp_path / "job" / "slides.csv").open(newline="") as file:
        assert next(csv.DictReader(file))["reader"] == row["reader"]
    assert slidemil_json("scan", path, "--no-quality")[1]["slides"][0]["direct"] is direct


def test_what_a_scan_refuses_for_its_picture_is_told():
    path = shared_path("data/slides/hamamatsu-DAPI-387.ndpi")
    (row,) = slidemil_json("scan", path)[1]["slides"]
    assert row["light"] == "red"
    code, said = slidemil("info", path)
    assert code == 0
    assert f"problem     {row['cause']}. {row['mend']}" in said
    path = shared_path("data/slides/CMU-1-Small-Region.svs")
    assert told(path)["problem"] is None


NAMES = ("deflate_checksum", "deflate_noise", "tile_noise", "tile_start", "unknown_photometric", "xml_entities")


def test_a_slide_that_fails_has_a_mend_in_a_job_and_in_its_plan(tmp_path):
    """Each of these is refused for its bytes; what helps is said by all verbs alike. A plan reads few tiles of it."""
    write_zoo(tmp_path / "zoo", lambda case: any(name in case["file"] for name in NAMES))
    scanned = {row["slide_id"]: row for row in slidemil_json("scan", tmp_path / "zoo", "--no-quality")[1]["slides"]}
    red = {name for name, row in scanned.items() if row["light"] == "red"}
    for verb, known in (("extract", red), ("plan", red - set(NAMES[:4]))):
        failed = slidemil_json(verb, tmp_path / "zoo", "-o", tmp_path / "job", "--slide-mpp", 0.5)[1]["failed"]
        assert {row["slide"] for row in failed} == known
        assert len(known) >= 2
        assert [row["slide"] for row in failed if not row["mend"]] == []


@pytest.mark.parametrize("value", ["nan", "-1", "0", "1e9"])
def test_a_pixel_size_that_no_job_would_take_is_wrong_usage(tmp_path, value):
    path = write_aperio(tmp_path / "a.svs", smooth_picture(300, 200))
    code, said = slidemil("info", path, "--slide-mpp", value)
    assert code == 2
    assert "slide_mpp must be 0.02 to 10 µm per pixel (0.5 for a 20x scan" in said
