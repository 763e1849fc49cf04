"""A manifest that the user filled in survives the next scan."""

from __future__ import annotations

import csv

import pytest
import tifffile
from _command import slidemil, slidemil_json
from _slides import smooth_picture, write_aperio

pytestmark = pytest.mark.usefixtures("looked_at_here")


@pytest.fixture
def slides(tmp_path):
    folder = tmp_path / "sl"
    folder.mkdir()
    write_aperio(folder / "good.svs", smooth_picture(512, 384))
    for number in (1, 2):
        image = smooth_picture(450, 350, number)
        tifffile.imwrite(folder / f"bare{number}.tif", image, tile=(256, 256), compression="jpeg", metadata=None)
    return folder


def read(path, separator=","):
    with path.open(newline="", encoding="utf-8") as file:
        return {row["path"]: row for row in csv.DictReader(file, delimiter=separator)}


def write(path, rows, separator=","):
    rows = list(rows.values())
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=separator)
        writer.writeheader()
        writer.writerows(rows)


def scan(slides, manifest, *more):
    code, said = slidemil_json("scan", slides, "--manifest", manifest, "--no-quality", *more)
    return code, {row["slide_id"]: row["light"] for row in said["slides"]}, said["written"][-1]


@pytest.fixture
def filled(slides, tmp_path):
    """The manifest of a first scan, filled in: µm/px, patients, a name and a column of the user's own."""
    manifest = tmp_path / "m.csv"
    assert scan(slides, manifest)[0] == 0
    rows = read(manifest)
    for number, row in enumerate(rows.values()):
        row |= {"case_id": f"P{number}", "label": "tumor, or so"}
    rows["sl/bare1.tif"] |= {"mpp": "0.4", "slide_id": "mine"}
    write(manifest, rows)
    return manifest


SAID = ("path", "slide_id", "case_id", "mpp", "label")


def said_in(manifest):
    return {path: tuple(row.get(key) for key in SAID) for path, row in read(manifest).items()}


def test_what_was_filled_in_is_there_after_the_next_scan(slides, filled):
    before = said_in(filled)
    code, lights, written = scan(slides, filled)
    assert (code, lights) == (0, {"good": "green", "mine": "green", "bare2": "amber"})  # the filled in µm/px counts
    assert "what was filled in before is kept (3 slides)" in written
    assert said_in(filled) == before
    assert {path: bool(row["to_do"]) for path, row in read(filled).items()} == {
        "sl/good.svs": False,
        "sl/bare1.tif": False,
        "sl/bare2.tif": True,
    }
    once = filled.read_bytes()
    scan(slides, filled)
    assert filled.read_bytes() == once
    scan(filled, filled)  # the manifest may itself be what is scanned
    assert said_in(filled) == before


def test_a_spreadsheet_with_semicolons_may_have_saved_it(slides, filled):
    before, rows = said_in(filled), read(filled)
    rows["sl/bare1.tif"]["mpp"] = "0,4"
    write(filled, rows, ";")
    assert scan(slides, filled)[0] == 0
    assert said_in(filled) == before


def test_slides_that_are_not_looked_at_keep_their_rows(slides, filled):
    before = said_in(filled)
    code, lights, written = scan(slides, filled, "--limit", 1)
    assert (code, len(lights)) == (0, 1)
    assert "what was said of 2 slides not looked at stays" in written
    assert said_in(filled) == before


def test_a_slide_that_fails_now_keeps_what_was_said_of_it(slides, filled):
    before = said_in(filled)
    (slides / "bare1.tif").write_bytes(b"II*\0 cut short")
    assert scan(slides, filled)[0] == 3
    assert said_in(filled) == before
    assert read(filled)["sl/bare1.tif"]["to_do"].startswith("it would fail: ")


def test_what_is_given_wins_over_what_was_filled_in(slides, filled, tmp_path):
    given = tmp_path / "given.csv"
    given.write_text("path,case_id,mpp\nsl/bare1.tif,Q,0.3\n")
    scan(given, filled)
    row = read(filled)["sl/bare1.tif"]
    assert (row["case_id"], row["mpp"], row["label"]) == ("Q", "0.3", "tumor, or so")


def test_cells_that_do_not_fit_stop_the_scan(slides, filled):
    rows = read(filled)
    rows["sl/bare1.tif"]["mpp"] = "a lot"
    write(filled, rows)
    before = filled.read_bytes()
    code, said = slidemil("scan", slides, "--manifest", filled, "-q")
    assert (code, "`a lot` is no number" in said) == (2, True)
    assert filled.read_bytes() == before
