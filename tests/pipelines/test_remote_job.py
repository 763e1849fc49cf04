"""A job over slides behind addresses: as over files, resumed by what the server tells, and no secret written."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import h5py
import pytest
from _command import slidemil, slidemil_json
from _range_server import Shelf, serving
from _shared import ROOT, shared_path

from pipelines.errors import NothingMatchedError, UsageError
from pipelines.manifest import find_slides
from wsi import ranges, staging
from wsi.remote_path import RemotePath

sys.path.append(str(ROOT / "benchmarks"))  # at the end: both folders have a file _slides.py
from _secrets import leaks

WORD = "-".join(["geheim", "4711"])
NAMES = ("CMU-1-Small-Region.svs", "TCGA-XK-AAJU-section.tif")
ASKED = ("--mpp", "2", "--slide-mpp", "0.5", "--set", "quality=false")


@pytest.fixture(autouse=True)
def quick(tmp_path, monkeypatch):
    monkeypatch.setattr(ranges, "PAUSE", 0.01)
    monkeypatch.setenv(staging.FOLDER, str(tmp_path / "copies"))


@pytest.fixture
def shelf():
    files = {f"b/deep/{name}": shared_path(f"data/slides/{name}").read_bytes() for name in NAMES}
    with serving(Shelf({**files, "b/notes.txt": b"x", "b/deep/one.dcm": b"x"})) as shelf:
        yield shelf


def features(job: Path) -> dict[str, bytes]:
    found = {}
    for path in job.glob("*/features_*/*.h5"):
        with h5py.File(path) as file:
            found[path.stem] = file["features"][()].tobytes() + file["coords"][()].tobytes()
    return found


def test_a_folder_behind_an_address_gives_the_features_of_the_files(shelf, tmp_path):
    slides = tmp_path / "slides"
    slides.mkdir()
    for name in NAMES:
        (slides / name).symlink_to(shared_path(f"data/slides/{name}"))
    near, far = tmp_path / "near", tmp_path / "far"
    assert slidemil_json("extract", slides, "-o", near, *ASKED)[0] == 0
    code, said = slidemil_json("extract", f"{shelf.url}/b/", "-o", far, *ASKED)
    assert (code, said["slides"]["done"]) == (0, 2), said
    assert any("2 files are no slides" in text for text in said["warnings"])
    assert features(far) == features(near) != {}
    asked = len(shelf.asked)
    code, said = slidemil_json("extract", f"{shelf.url}/b/", "-o", far, *ASKED)
    assert said["slides"]["skipped"] == 2
    assert not [one for one in shelf.asked[asked:] if one[3] > 0], "a resume read slides"
    shelf.files[f"b/deep/{NAMES[0]}"] += b" "
    code, said = slidemil_json("extract", f"{shelf.url}/b/", "-o", far, *ASKED)
    assert (said["slides"]["skipped"], said["slides"]["done"]) == (1, 1)
    assert slidemil_json("verify", far)[0] == 0
    shelf.files[f"b/deep/{NAMES[0]}"] += b" "
    code, said = slidemil_json("verify", far)
    assert (code, [one["path"] for one in said["findings"]]) == (7, [f"slide {Path(NAMES[0]).stem}"]), said


@pytest.mark.slow
def test_signed_links_in_a_list_are_read_and_never_written(shelf, tmp_path):
    shelf.secret = f"sig={WORD}"
    rows = [f"{shelf.url}/b/deep/{name}?sig={WORD}" for name in NAMES]
    (tmp_path / "list.csv").write_text("\n".join(["path", *rows, f"{shelf.url}/b/deep/gone.svs?sig={WORD}"]) + "\n")
    job = tmp_path / "job"
    code, printed = slidemil("run", tmp_path / "list.csv", "-o", job, *ASKED, "-v")
    assert (code, "nothing at this address" in printed) == (3, True), printed
    for verb in (["scan", "--no-quality"], ["info"], ["plan", "--probe", "2"]):
        printed += slidemil(verb[0], tmp_path / "list.csv", *verb[1:], "--slide-mpp", "0.5", "-v")[1]
    printed += slidemil("status", job)[1]
    shelf.secret = "another"
    code, more = slidemil("extract", tmp_path / "list.csv", "-o", job, "--force", *ASKED, "-v")
    assert (code, "access is refused" in more) == (3, True)
    (job / "printed.txt").write_text(printed + more)
    assert leaks(job, [WORD]) == []
    paths = [row["path"] for row in csv.DictReader((job / "manifest.csv").read_text().splitlines())]
    assert sorted(paths) == sorted(row.partition("?")[0] for row in [*rows, f"{shelf.url}/b/deep/gone.svs?"])


def test_made_up_names_hide_addresses_too(shelf, tmp_path):
    job = tmp_path / "job"
    code, printed = slidemil(
        "extract", f"{shelf.url}/b/deep/{NAMES[0]}", "-o", job, *ASKED, "--pseudonymize", tmp_path / "key", "-v"
    )
    assert code == 0, printed
    (job / "printed.txt").write_text(printed)
    assert leaks(job, ["CMU", "127.0.0.1", "deep"]) == []


@pytest.mark.slow
def test_a_fault_of_the_network_fails_the_slide_and_the_next_run_has_it(shelf, tmp_path):
    """Not as tiles that are missing: they are there, and would be lost for good."""
    job, address = tmp_path / "job", f"{shelf.url}/b/deep/{NAMES[0]}"
    code, said = slidemil_json("extract", address, "-o", tmp_path / "calm", *ASKED)
    whole = len(shelf.asked)
    shelf.asked.clear()
    shelf.fault = lambda number: "500" if number >= whole - 3 else ""
    code, said = slidemil_json("extract", address, "-o", job, *ASKED, "--max-bad-tiles", "1", "--workers", "1")
    assert code == 3, said
    assert "status 500" in said["failed"][0]["cause"]
    shelf.fault = None
    code, said = slidemil_json("extract", address, "-o", job, *ASKED, "--max-bad-tiles", "1")
    assert (code, said["slides"]["done"]) == (0, 1)
    assert features(job) == features(tmp_path / "calm")


def test_lists_at_addresses_stay_below_their_folder(shelf):
    shelf.files["b/list.csv"] = f"path,case_id\ndeep/{NAMES[0]},P1\n".encode()
    (entry,) = find_slides([RemotePath(f"{shelf.url}/b/list.csv")]).entries
    assert (str(entry.path), entry.case_id) == (f"{shelf.url}/b/deep/{NAMES[0]}", "P1")
    for row in ("../other.svs", "/other.svs", "http://elsewhere.invalid/a.svs", "/etc/passwd"):
        shelf.files["b/list.csv"] = f"path\n{row}\n".encode()
        with pytest.raises(UsageError, match="outside the folder"):
            find_slides([RemotePath(f"{shelf.url}/b/list.csv")])


def test_an_address_that_lists_nothing_says_what_helps(shelf):
    for address, said in ((f"{shelf.url}/none/", "nothing"), ("http://127.0.0.1:1/b/", "Check the network")):
        with pytest.raises((UsageError, NothingMatchedError), match=said):
            find_slides([RemotePath(address)])


@pytest.mark.slow
def test_a_scan_keeps_addresses_and_needs_no_server_that_gives_parts(shelf, tmp_path):
    """Its manifest serves the next scan; slides of one stem are told apart."""
    shelf.ranges = False
    slide = shelf.files.pop(f"b/deep/{NAMES[1]}")
    shelf.files = {"b/a.tif": slide, "b/deep/a.tif": slide + b" "}
    table, addresses = tmp_path / "found.csv", {f"{shelf.url}/{name}" for name in shelf.files}
    for source in (f"{shelf.url}/b/", table):
        code, said = slidemil_json("scan", source, "--no-quality", "--manifest", table, "--slide-mpp", "0.5")
        assert (code, said["lights"]["red"]) == (0, 0), said
        rows = list(csv.DictReader(table.read_text().splitlines()))
        assert {row["path"] for row in rows} == addresses
        assert len({row["slide_id"] for row in rows}) == 2
    assert {str(entry.path) for entry in find_slides([table]).entries} == addresses
