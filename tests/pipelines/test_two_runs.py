"""Several runs share one job folder: each slide whole, once, and every run ends with the truth."""

from __future__ import annotations

import json
import shutil
import threading
import time
from contextlib import nullcontext
from dataclasses import asdict, replace

import pytest
from _command import digests

from pipelines import stages, tables_of_job
from pipelines.claims import Claims, all_claims
from pipelines.company import check_company
from pipelines.config import load_settings
from pipelines.errors import UsageError
from pipelines.files import read_csv
from pipelines.jobfolder import JobFolder
from pipelines.processes import this_process

SETTINGS = load_settings(options={"batch_size": 16, "processes": "0", "quality": False})


@pytest.fixture(scope="module")
def slides(cohort, tmp_path_factory):
    """Four of the cohort's slides."""
    folder = tmp_path_factory.mktemp("four") / "slides"
    folder.mkdir()
    for slide in cohort.slides[:4]:
        shutil.copy(slide.path, folder)
    return folder


@pytest.fixture(scope="module")
def calm_job(slides, tmp_path_factory):
    """The job of one undisturbed run."""
    job = tmp_path_factory.mktemp("calm") / "job"
    stages.extract([slides], job, SETTINGS, quiet=True)
    return job


@pytest.fixture(scope="module")
def calm(calm_job):
    """What one undisturbed run makes."""
    return digests(calm_job)


def at_once(*calls):
    """Call functions at the same time; return what they return."""
    results, errors = {}, []

    def run(number, call):
        try:
            results[number] = call()
        except BaseException as error:  # a thread's error must not pass unseen
            errors.append(error)

    threads = [threading.Thread(target=run, args=item) for item in enumerate(calls)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not errors, errors
    return [results[number] for number in range(len(calls))]


def test_two_runs_do_each_slide_once_and_both_know_all(slides, calm, tmp_path):
    def extract():
        return stages.extract([slides], tmp_path / "job", SETTINGS, quiet=True)

    one, two = at_once(extract, extract)
    assert sorted([*one.done, *two.done]) == sorted(path.stem for path in slides.glob("*.svs"))
    assert one.done
    assert two.done
    assert len(one.done) + len(one.skipped) == len(two.done) + len(two.skipped) == 4
    assert digests(tmp_path / "job") == calm
    assert all_claims(JobFolder(tmp_path / "job"), "slides") == {}


def test_runs_on_different_slides_lose_no_rows_of_each_other(slides, calm, tmp_path):
    some = sorted(slides.glob("*.svs"))
    halves = (some[:2], some[2:])
    at_once(*(lambda half=half: stages.extract(half, tmp_path / "job", SETTINGS, quiet=True) for half in halves))
    assert digests(tmp_path / "job") == calm
    assert {row["status"] for row in read_csv(tmp_path / "job" / "slides.csv")} == {"done"}


def test_a_slide_that_another_run_holds_is_waited_for_and_taken_when_that_ends(slides, calm, tmp_path):
    job = JobFolder(tmp_path / "job")
    first = sorted(path.stem for path in slides.glob("*.svs"))[0]
    other = Claims(job, "slides")
    assert other.take(first)
    result = []
    thread = threading.Thread(
        target=lambda: result.append(stages.extract([slides], job.root, SETTINGS, quiet=True)), daemon=True
    )
    thread.start()
    records = job.root / ".done"
    until = time.monotonic() + 60
    while len(list(records.glob("*/features_*/*"))) < 3 and time.monotonic() < until:
        time.sleep(0.05)
    time.sleep(1)
    assert not result, "it must not end before the other run does"
    other.close()
    thread.join(60)
    assert len(result[0].done) == 4
    assert digests(job.root) == calm


def test_a_claim_of_a_dead_run_holds_up_nobody_and_that_is_recorded(slides, tmp_path):
    job = JobFolder(tmp_path / "job")
    first = sorted(path.stem for path in slides.glob("*.svs"))[0]
    (job.claims / "slides").mkdir(parents=True)
    dead = {"id": "x", "owner": asdict(replace(this_process(), started="1")), "run": "earlier"}
    (job.claims / "slides" / first).write_text(json.dumps(dead))
    assert len(stages.extract([slides], job.root, SETTINGS, quiet=True).done) == 4
    (log,) = job.logs.glob("*.jsonl")
    took = [row for row in map(json.loads, log.read_text().splitlines()) if row["event"] == "took over"]
    assert [(row["slide"], row["run"]) for row in took] == [(first, "earlier")]


def test_a_slide_that_failed_in_the_other_run_is_not_tried_again_by_this_one(slides, tmp_path):
    """Both hold that it failed; nobody reads a bad slide twice at the same time."""
    mine = tmp_path / "slides"
    mine.mkdir()
    for path in sorted(slides.glob("*.svs"))[:2]:
        shutil.copy(path, mine)
    (mine / "broken.svs").write_bytes(b"II*\0 and then nothing of use")

    def extract():
        return stages.extract([mine], tmp_path / "job", SETTINGS, quiet=True)

    one, two = at_once(extract, extract)
    assert [failure.slide for failure in one.failed] == [failure.slide for failure in two.failed] == ["broken"]
    assert one.failed == two.failed
    assert one.exit_code == two.exit_code == 3
    rows = {row["slide_id"]: row for row in read_csv(tmp_path / "job" / "slides.csv")}
    assert rows["broken"]["cause"]
    assert [row["status"] for row in rows.values()].count("done") == 2
    shutil.copy(next(mine.glob("[!b]*.svs")), mine / "broken.svs")
    mended = extract()
    assert (mended.done, mended.failed) == (("broken",), ())
    again = {row["slide_id"]: row for row in tables_of_job.read_slides(JobFolder(tmp_path / "job"))}
    assert (again["broken"]["status"], again["broken"]["cause"]) == ("done", "")
    assert not list((tmp_path / "job" / ".failed").rglob("*.json"))


@pytest.mark.parametrize(
    ("more", "mine", "refused"),
    [
        ({"stain": "macenko"}, True, True),
        ({"icc": "srgb", "mpp": 2.0}, True, True),
        ({"stain": "macenko", "mpp": 2.0}, True, False),
        ({"memory_gb": 1.0, "workers": 2}, True, False),
        ({"stain": "macenko"}, False, False),
    ],
)
def test_a_run_that_would_undo_what_another_makes_does_not_begin(slides, calm_job, tmp_path, more, mine, refused):
    """Where the other one lives, and makes other features in the same folder, or looks at slides otherwise."""
    job = JobFolder(shutil.copytree(calm_job, tmp_path / "job"))
    settings = load_settings(options={"batch_size": 16, "processes": "0", "quality": False, **more}).extract
    with Claims(job, "slides", run="other") as claims:
        assert claims.take("some slide")
        if not mine:  # of a process that has ended
            path = job.claims / "slides" / "some slide"
            said = json.loads(path.read_text())
            path.write_text(json.dumps({**said, "owner": {**said["owner"], "pid": 2**22 + 1}}))
        with pytest.raises(UsageError, match="works on this job just now") if refused else nullcontext():
            check_company(job, settings)
