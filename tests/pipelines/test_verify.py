"""`verify` finds every changed byte, `--redo` has it made anew, `why` and `status` say what became of a slide."""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from _command import digests, slidemil, slidemil_json

from pipelines import stages
from pipelines.claims import Claims
from pipelines.config import load_settings
from pipelines.jobfolder import JobFolder
from pipelines.processes import this_process

SETTINGS = load_settings(options={"processes": "0", "quality": False})
KINDS = (
    "thumbnails/*.jpg",
    "contours/*.jpg",
    "contours_geojson/*.geojson",
    "quality/*.jpg",
    "*/visualization/*.jpg",
    "*/patches/*.h5",
    "*/features_*/*.h5",
    "models/*/*",
    "predictions/*/*.csv",
    "heatmaps/*/*.png",
    "heatmaps/*/*.h5",
    "heatmaps/*/*.geojson.gz",
    "heatmaps/*/top/*.jpg",
    ".done/**/*.json",
    "runs/*.json",
    "manifest.csv",
    "slides.csv",
    "job.yaml",
    "report.html",
)


def flip(path: Path, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def told(*arguments) -> tuple[int, dict]:
    """Return the exit code and the object of a verb that shows no progress."""
    code, said = slidemil(*arguments, "--json")
    return code, json.loads(said)


def findings(job: Path) -> set[str]:
    code, said = slidemil_json("verify", job)
    assert (code == 7) == bool(said["findings"])
    return {row["path"] for row in said["findings"]}


def test_a_job_that_nobody_touched_is_as_it_was_written(job):
    assert findings(job) == set()


def test_a_flipped_byte_in_a_file_of_every_kind_is_found_and_no_other_is_named(job):
    rng = random.Random(0)
    wanted = set()
    for kind in KINDS:
        there = [path for path in sorted(job.glob(kind)) if path.is_file()]
        assert there, kind
        if kind.startswith(".done/"):  # a changed record vouches for nothing more: that of a slide without other flips
            there = [
                path
                for path in there
                if "features_" in path.parent.name
                and not any(path.name.removesuffix(".h5.json") in one for one in wanted)
            ]
        path = rng.choice(there)
        flip(path, rng)
        wanted.add(path.relative_to(job).as_posix())
    assert findings(job) == wanted


def test_each_single_flip_in_a_record_is_found(job):
    """Also one that changes what a record says but leaves it readable."""
    rng = random.Random(1)
    path = next((job / ".done").glob("*/features_*/*.json"))
    data = path.read_bytes()
    for _ in range(6):
        flip(path, rng)
        assert findings(job) == {path.relative_to(job).as_posix()}
        path.write_bytes(data)


def test_an_output_and_its_record_forged_together_are_found_by_the_ledger(job):
    from pipelines.records import parse_record, record_bytes

    path = next(job.glob("*/features_*/*.h5"))
    record = JobFolder(job).record(path)
    import hashlib

    data = path.read_bytes()[:-1] + b"x"
    path.write_bytes(data)
    forged = replace(parse_record(record.read_bytes()), sha256=hashlib.sha256(data).hexdigest())
    record.write_bytes(record_bytes(forged))
    assert findings(job) == {record.relative_to(job).as_posix()}


def test_what_is_deleted_with_its_record_is_missed(job):
    path = next(job.glob("*/features_*/*.h5"))
    JobFolder(job).record(path).unlink()
    path.unlink()
    assert findings(job) == {path.relative_to(job).as_posix()}


@pytest.fixture
def small(cohort, tmp_path):
    """Two slides beside a job of their features; returns both folders."""
    (tmp_path / "slides").mkdir()
    for slide in cohort.slides[:2]:
        shutil.copy(slide.path, tmp_path / "slides")
    stages.extract([tmp_path / "slides"], tmp_path / "job", SETTINGS, quiet=True)
    return tmp_path / "slides", tmp_path / "job"


def test_redo_has_damage_mended_by_the_next_run(small):
    slides, job = small
    before = digests(job)
    rng = random.Random(2)
    for kind in ("thumbnails/*.jpg", "*/features_*/*.h5", "slides.csv", "job.yaml", ".done/*/features_*/*.json"):
        flip(sorted(job.glob(kind))[-1 if kind.startswith("thumb") else 0], rng)
    code, said = slidemil("verify", job, "-q", "--redo")
    assert code == 7, said
    assert "taken back" in said
    assert stages.extract([slides], job, SETTINGS, quiet=True).exit_code == 0
    assert digests(job) == before
    assert findings(job) == set()


def test_a_slide_that_was_replaced_is_found_and_one_out_of_reach_is_a_note(small):
    slides, job = small
    one, two = sorted(slides.glob("*.svs"))
    shutil.copy(one, two)
    assert findings(job) == {f"slide {two.stem}"}
    assert slidemil("verify", job, "--no-slides", "-q")[0] == 0
    two.unlink()
    code, said = slidemil_json("verify", job)
    assert code == 0
    assert any(two.stem in note and "out of reach" in note for note in said["notes"])


def test_a_damaged_manifest_is_a_finding_not_a_crash(small):
    _, job = small
    (job / "manifest.csv").write_bytes(b"\xff\xfe\x00nothing")
    assert findings(job) == {"manifest.csv"}


def test_why_tells_of_slides_that_are_done_failed_pending_interrupted_and_in_work(small, monkeypatch):
    slides, job = small
    name = sorted(slides.glob("*.svs"))[0].stem
    (slides / "bad.svs").write_bytes(b"no slide")
    stages.extract([slides], job, SETTINGS, quiet=True)

    def why(slide):
        code, said = told("why", job, slide)
        assert code == 0
        return said

    done = why(name)
    assert (done["status"], done["mend"]) == ("done", "")
    assert any("finished" in line for line in done["history"])
    failed = why("bad.svs")  # by the file's name, too
    assert failed["status"] == "failed"
    assert "OpenSlide cannot open it" in failed["why"][0]
    assert f"slidemil extract {slides / 'bad.svs'} -o {job}" in failed["mend"]
    with Claims(JobFolder(job), "slides", run="other") as claims:
        claims.take(name)
        assert why(name)["status"] == "running"
        assert told("status", job)[1]["running"][0]["slide"] == name
    record = JobFolder(job).record(next(job.glob(f"*/features_*/{name}.h5")))
    record.unlink()
    assert why(name)["status"] == "pending"
    dead = {"id": "x", "owner": asdict(replace(this_process(), started="1")), "run": "earlier"}
    (job / ".state" / "claims" / "slides" / name).write_text(json.dumps(dead))
    assert why(name)["status"] == "interrupted"
    code, said = slidemil("why", job, "nam")
    assert code == 2
    assert "no such slide" in said


def test_the_command_that_why_names_mends_it(small):
    import shlex

    slides, job = small
    bad = slides / "bad.svs"
    bad.write_bytes(b"no slide")
    assert stages.extract([slides], job, SETTINGS, quiet=True).exit_code == 3
    mend = told("why", job, "bad")[1]["mend"]
    shutil.copy(next(slides.glob("[!b]*.svs")), bad)
    verb, *options = shlex.split(mend.partition("slidemil ")[2])
    code, said = slidemil(verb, *options, "-q")
    assert code == 0, said
    assert told("why", job, "bad")[1]["status"] == "done"


def test_a_slide_that_lost_a_file_is_told_as_damaged(small):
    slides, job = small
    name = sorted(slides.glob("*.svs"))[0].stem
    (job / "thumbnails" / f"{name}.jpg").unlink()
    said = told("why", job, name)[1]
    assert said["status"] == "damaged"
    assert f"thumbnails/{name}.jpg is gone" in said["why"][0]
