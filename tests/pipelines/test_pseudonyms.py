"""Made-up names: true ones are in nothing that a job writes or prints, and the key finds them again."""

from __future__ import annotations

import csv
import json
import stat
import sys
from pathlib import Path

import pytest
from _command import digests, slidemil, slidemil_json
from _shared import ROOT, shared_path
from _slides import smooth_picture, write_aperio
from hypothesis import given
from hypothesis import strategies as st

from pipelines.manifest import SlideEntry
from pipelines.pseudonyms import Keyring

sys.path.insert(0, str(ROOT / "benchmarks"))
from _secrets import leaks

KEY = "0f" * 32
SECRETS = ["mueller", "erika", "a-4711", "b-4711", "stranger-4711"]
"""None that a hash in hexadecimal digits could hold by chance."""


def rows_of(table: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(table.read_text().splitlines()))


def slide(path: Path, seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_aperio(path, smooth_picture(500, 400, seed))


@pytest.fixture
def cohort(tmp_path) -> Path:
    """Slides named after people: whole ones, one damaged, one that is none; two of one name."""
    folder = tmp_path / "slides of erika"
    for n, name in enumerate(["mueller/a-4711", "mueller/b-4711", "erika/a-4711"]):
        slide(folder / f"{name}.svs", n)
    data = bytearray((folder / "mueller/b-4711.svs").read_bytes())
    data[3000:90000] = bytes(87000)
    (folder / "broken-mueller.svs").write_bytes(data)
    (folder / "cut-mueller.svs").write_bytes(data[:50_000])
    (folder / "none-mueller.svs").write_bytes(b"<html> a page </html>" * 99)
    (folder / "table.csv").write_text(
        "path,case_id,label,doctor\n"
        "mueller/a-4711.svs,mueller-1,x,Dr. Erika\nmueller/b-4711.svs,mueller-1,y,Dr. Erika\n"
        "erika/a-4711.svs,erika-2,x,\nbroken-mueller.svs,,y,\ncut-mueller.svs,,y,\nnone-mueller.svs,,,\n"
    )
    return folder


def test_no_true_name_is_in_anything_written_or_printed(cohort, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    job, key = tmp_path / "job", tmp_path / "safe" / "key.json"
    code, first = slidemil("run", cohort / "table.csv", "-o", "job", "--pseudonymize", "safe/key.json", "-v")
    assert code == 3
    (job / "printed.txt").write_text(first)
    for more in (["extract", cohort, "-o", job, "--pseudonymize", key, "-v"], ["status", job], ["report", job]):
        with (job / "printed.txt").open("a") as file:
            file.write(slidemil(*more)[1])
    assert leaks(job, SECRETS) == []
    rows = rows_of(job / "slides.csv")
    assert len(rows) == 6
    assert sum(row["status"] == "done" for row in rows) == 3
    known = json.loads(key.read_text())
    assert {known["slides"][row["slide_id"]]["slide_id"] for row in rows if row["status"] == "done"} == {
        *("a-4711__" + name.split("__")[1] for name in _ids(known) if name.startswith("a-4711__")),
        "b-4711",
    }
    assert {known["cases"][row["case_id"]] for row in rows if row["case_id"] in known["cases"]} == {
        "mueller-1",
        "erika-2",
    }
    assert stat.S_IMODE(key.stat().st_mode) == 0o600


def _ids(known):
    return [told["slide_id"] for told in known["slides"].values()]


def test_the_same_key_gives_the_same_names_and_the_job_goes_on(cohort, tmp_path):
    key, job = tmp_path / "key.json", tmp_path / "job"
    options = (cohort / "mueller", "-o", job, "--pseudonymize", key)
    code, first = slidemil_json("extract", *options)
    before = digests(job)
    assert (code, first["slides"]["done"]) == (0, 2)
    code, again = slidemil_json("extract", *options)
    assert (code, again["slides"]["skipped"]) == (0, 2)
    assert digests(job) == before
    slidemil_json("extract", cohort / "mueller", "-o", tmp_path / "other", "--pseudonymize", key)
    assert {path.name for path in (tmp_path / "other").rglob("*.h5")} == {path.name for path in job.rglob("*.h5")}
    other = slidemil_json("extract", cohort / "mueller", "-o", tmp_path / "third", "--pseudonymize", tmp_path / "k2")
    assert other[0] == 0
    assert not {path.name for path in (tmp_path / "third").rglob("*.h5")} & {path.name for path in job.rglob("*.h5")}


def test_true_and_made_up_names_never_mix(cohort, tmp_path):
    one, job = cohort / "mueller" / "a-4711.svs", tmp_path / "job"
    code, printed = slidemil("extract", one, "-o", job, "--pseudonymize", job / "key.json")
    assert (code, "lies in the job folder" in printed) == (2, True)
    assert not (job / "key.json").exists()
    slidemil("extract", one, "-o", job, "--pseudonymize", tmp_path / "key.json")
    for arguments, said in (
        ([], "true ones must not come in"),
        (["--pseudonymize", tmp_path / "new.json"], "another key file"),
        (["--pseudonymize", one], "no key file"),
    ):
        code, printed = slidemil("extract", one, "-o", job, *arguments)
        assert (code, said in printed) == (2, True), printed
    slidemil("extract", one, "-o", tmp_path / "plain")
    code, printed = slidemil("extract", one, "-o", tmp_path / "plain", "--pseudonymize", tmp_path / "key.json")
    assert (code, "begun with true names" in printed) == (2, True)


def test_labels_name_slides_and_cases_as_they_truly_are(tmp_path):
    job, key, rows = tmp_path / "job", tmp_path / "key.json", ["slide_id,label,case_id"]
    for n in range(8):
        slide(tmp_path / "slides" / f"mueller-{n}.svs", n)
        rows.append(f"mueller-{n},{'ab'[n % 2]},erika-{n}")
    (tmp_path / "labels.csv").write_text("\n".join([*rows, "stranger-4711,a,erika-9"]) + "\n")
    options = ("--pseudonymize", key, "-l", tmp_path / "labels.csv", "--epochs", "2", "--head", "mean")
    code, printed = slidemil("run", tmp_path / "slides", "-o", job, *options)
    assert code == 0, printed
    assert "made-up" not in printed
    code, more = slidemil("train", job, *options, "--name", "second")
    assert code == 0, more
    (job / "printed.txt").write_text(printed + more)
    assert leaks(job, SECRETS) == []
    rows = rows_of(job / "predictions" / "mean" / "slides.csv")
    known = json.loads(key.read_text())
    assert {(known["slides"][row["slide_id"]]["slide_id"], known["cases"][row["case_id"]]) for row in rows} == {
        (f"mueller-{n}", f"erika-{n}") for n in range(8)
    }
    assert all(row["label"] == "ab"[int(known["slides"][row["slide_id"]]["slide_id"][-1]) % 2] for row in rows)


def test_a_dicom_series_and_a_moved_folder_are_found_under_made_up_names(tmp_path):
    real = shared_path("data/slides/cmu-1-small-region-dicom")
    here = tmp_path / "mueller"
    here.mkdir()
    for path in real.glob("*.dcm"):
        (here / path.name).symlink_to(path)
    job, key = tmp_path / "job", tmp_path / "key.json"
    code, said = slidemil_json("extract", here, "-o", job, "--pseudonymize", key)
    assert (code, said["slides"]["done"]) == (0, 1), said
    assert leaks(job, SECRETS) == []
    here.rename(tmp_path / "erika")
    code, said = slidemil_json("extract", tmp_path / "erika", "-o", job, "--pseudonymize", key)
    assert (code, said["slides"]["found"]) == (0, 1)


@given(st.lists(st.text(min_size=1), min_size=2, max_size=20, unique=True))
def test_names_are_stable_and_differ_and_tell_nothing(names):
    entries = [SlideEntry(name, Path(f"/s/{n}/x.svs"), name) for n, name in enumerate(names)]
    one, other = Keyring(KEY), Keyring(KEY)
    made_up = [one.slide(entry) for entry in entries]
    assert made_up == [other.slide(entry) for entry in entries] == [one.slide(entry) for entry in entries]
    assert len(set(made_up)) == len(names)
    assert all(len(name) == 17 and name[0] == "s" and set(name[1:]) <= set("0123456789abcdef") for name in made_up)
    assert not set(made_up) & {Keyring("ab" * 32).slide(entry) for entry in entries}


def test_a_name_is_the_keyed_hash_that_the_standard_library_computes():
    import hashlib
    import hmac

    name = Keyring(KEY).slide(SlideEntry("a", Path("/a.svs"), "a"))
    assert name == "s" + hmac.digest(bytes.fromhex(KEY), b"slide\0a", hashlib.sha256).hex()[:16]
