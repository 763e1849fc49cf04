"""`slidemil plan`: counts what a run finds, writes nothing but its record, and is held against the run."""

from __future__ import annotations

import csv
import json
import math
import os
import subprocess
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from _command import digests, slidemil, slidemil_json
from _prepare_badly import prepared_badly
from hypothesis import given
from hypothesis import strategies as st

import wsi
from pipelines import extract_stage, machine, plan_text, planning, preparing, probe, probe_clock, sampling
from pipelines.config import ExtractSettings, load_settings
from pipelines.counting import estimate
from pipelines.forecast import Kept, Measured, Work, forecast, half_width, kept_by_plan, score, told
from pipelines.jobfolder import JobFolder
from pipelines.units import duration
from pipelines.verdict import Verdict
from wsi import engine
from wsi.plan import read_plan


def everything(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")} if folder.exists() else {}


def records(job, verb):
    found = [json.loads(path.read_text()) for path in sorted((job / "runs").glob("*.json"))]
    return [record for record in found if record["verb"] == verb]


# ------------------------------------------------------------------ on slides


def test_a_plan_counts_the_tiles_that_the_run_finds(cohort, tmp_path):
    """The oracle is the run itself."""
    slides, job = cohort.slides[0].path.parent, tmp_path / "job"
    code, plan = slidemil_json("plan", slides, "-o", job, "--limit", 4, "--probe", 60)
    assert code == 0, plan
    assert [path.relative_to(job).parts[0] for path in job.rglob("*.json")] == ["runs"]
    assert sum(path.is_file() for path in job.rglob("*")) == 1
    assert plan["slides"] == {"found": 4, "to_do": 4, "done": 0, "failed": 0}
    assert plan["tiles"]["exact"]
    code, run = slidemil_json("extract", slides, "-o", job, "--limit", 4)
    assert code == 0
    with (job / "slides.csv").open() as file:
        found = sum(int(row["n_tiles"]) for row in csv.DictReader(file) if row["n_tiles"])
    assert plan["tiles"]["expected"] == found > 0
    assert plan["gb"]["to_hash"] == pytest.approx(
        sum(slide.path.stat().st_size for slide in cohort.slides[:4]) / 1e9, abs=6e-4
    )
    assert {"decode", "encode", "prepare", "write"} <= set(plan["stages"])
    assert plan["seconds"] > 0
    assert plan["hours"] == pytest.approx(plan["seconds"] / 3600, abs=1e-4)
    assert plan["workers"] >= 1
    assert set(plan["one_more"]) == {"reader", "core"}
    scored = run["forecast"]
    assert scored["by"] == "plan"
    assert scored["forecast_seconds"] == plan["seconds"]
    assert scored["ratio"] == pytest.approx(scored["actual_seconds"] / scored["forecast_seconds"], rel=0.01)
    (record,) = records(job, "extract")
    assert record["forecast"] == scored
    assert record["verdict"]["limit"] == scored["bottleneck_found"]


def test_without_a_job_nothing_is_written(cohort, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    slides = cohort.slides[0].path.parent
    before = everything(slides)
    code, said = slidemil("plan", slides, "--limit", 2, "--probe", 60, "-q")
    assert code == 0, said
    assert everything(slides) == before
    assert not list(tmp_path.iterdir())
    assert "2 slides: 2 to do" in said
    assert "bottleneck" in said
    assert "(counted on all of them)" in said


def test_of_a_job_only_what_is_missing_is_planned_and_what_changed_is_named(cohort, job):
    slides = cohort.slides[0].path.parent
    before = digests(job)
    code, plan = slidemil_json("plan", slides, "-o", job, "--probe", 60)
    assert code == 0
    assert (plan["slides"]["to_do"], plan["slides"]["done"]) == (0, 12)
    assert plan["seconds"] == 0
    (job / "20x_224px_0px_overlap" / "features_descriptors" / f"{cohort.slides[3].slide_id}.h5").unlink()
    code, plan = slidemil_json("plan", slides, "-o", job, "--probe", 60)
    assert plan["redo"] == [{"slide": cohort.slides[3].slide_id, "changed": []}]
    assert plan["slides"]["to_do"] == 1
    code, plan = slidemil_json("plan", slides, "-o", job, "--min-tissue", 0.5, "--limit", 2, "--probe", 60)
    assert [one["changed"] for one in plan["redo"]] == [["tissue.min_tissue"]] * 2
    code, said = slidemil("plan", slides, "-o", job, "--min-tissue", 0.5, "--limit", 2, "--probe", 60, "-q")
    assert "redo        2 slides" in said
    assert "tissue.min_tissue" in said
    after = digests(job)
    assert {name: after[name] for name in after} == {name: before[name] for name in before if name in after}


def test_a_report_after_a_plan_still_tells_of_the_run(cohort, job):
    slidemil("plan", cohort.slides[0].path.parent, "-o", job, "--force", "--limit", 1, "--probe", 1, "-q")
    code, _ = slidemil("report", job)
    assert code == 0
    assert "extract" in (job / "report.html").read_text() or "run" in (job / "report.html").read_text()


def test_slides_that_cannot_be_used_are_counted_and_named(cohort, tmp_path):
    folder = tmp_path / "slides"
    folder.mkdir()
    (folder / "good.tif").symlink_to(cohort.slides[0].path)
    (folder / "empty.svs").write_bytes(b"")
    (folder / "page.svs").write_bytes(b"<html>not found</html>")
    code, plan = slidemil_json("plan", folder, "--probe", 60)
    assert code == 3
    assert plan["status"] == "partial"
    assert plan["slides"] == {"found": 3, "to_do": 1, "done": 0, "failed": 2}
    assert {one["slide"] for one in plan["failed"]} == {"empty", "page"}
    assert all(one["cause"] and one["mend"] for one in plan["failed"])
    (folder / "good.tif").unlink()
    code, plan = slidemil_json("plan", folder, "--probe", 60)
    assert code == 3
    assert plan["slides"]["to_do"] == 0
    assert plan["verdict"] is None
    assert slidemil("plan", tmp_path / "nothing", "-q")[0] == 2


# ------------------------------------------------------------------ the clock


@pytest.fixture
def six_seconds(monkeypatch):
    """What aims at less than two seconds ends after six."""
    monkeypatch.setattr(probe_clock, "_LEAST", 6.0)


@pytest.mark.slow
def test_a_slide_that_takes_for_ever_is_left_and_guessed_from_the_others(cohort, tmp_path, monkeypatch):
    monkeypatch.setattr(preparing, "prepared", prepared_badly)
    folder = tmp_path / "slides"
    folder.mkdir()
    (folder / "a.tif").symlink_to(cohort.slides[0].path)
    (folder / "slow.tif").symlink_to(cohort.slides[1].path)
    monkeypatch.setattr(
        sampling, "in_chance_order", lambda entries: sorted(entries, key=lambda e: e.slide_id != "slow")
    )
    monkeypatch.setattr(sampling, "_ONE", 0.2)
    began = time.monotonic()
    code, plan = slidemil_json("plan", folder, "--probe", 1, "--set", "processes=1", "--set", "quality=false")
    assert time.monotonic() - began < 30
    assert code == 0
    assert plan["slides"] == {"found": 2, "to_do": 2, "done": 0, "failed": 0}
    assert plan["tiles"]["slides_counted"] == 1
    assert plan["tiles"]["expected"] > 0
    assert plan["rough"]
    assert plan["seconds"] > 0
    (note,) = (text for text in plan["warnings"] if "probe ended" in text)
    assert "1 slide took too long to be looked through (slow)" in note
    assert "--probe 30 gives it three times as long" in note


class Slow:
    """Mean colors, at 0.6 s a tile."""

    id, dim, device = "slow", 3, "cpu"

    def __call__(self, pixels):
        time.sleep(0.6 * len(pixels))
        return pixels.mean((1, 2)).astype(np.float32)

    def passport(self):
        return {"id": self.id}


def test_a_slow_encoder_is_measured_on_few_tiles(cohort, tmp_path, monkeypatch):
    """64 of them, a batch of the run, would take it 38 seconds."""
    monkeypatch.setattr(extract_stage, "encoders_of", lambda *_, **__: [Slow()])
    began = time.monotonic()
    code, plan = slidemil_json("plan", cohort.slides[0].path, "--probe", 2)
    assert time.monotonic() - began < 12
    assert code == 0
    assert plan["stages"]["encode"]["rate"] == pytest.approx(1 / 0.6, rel=0.1)
    assert plan["verdict"]["limit"] == "encoder"
    assert plan["seconds"] > 0.55 * plan["tiles"]["expected"]
    assert not plan["rough"]


def test_reads_that_do_not_come_end_the_probe_and_what_is_known_is_told(cohort, monkeypatch, six_seconds):
    def stuck(slide, grid):
        plan = read_plan(slide, grid)
        plan.read = lambda *_: time.sleep(12) or {}
        return plan

    monkeypatch.setattr(engine, "read_plan", stuck)
    monkeypatch.setattr(engine, "_JOIN_SECONDS", 0.1)
    began = time.monotonic()
    code, said = slidemil("plan", cohort.slides[0].path, "--probe", 1, "--set", "processes=0", "-q")
    assert time.monotonic() - began < 10
    assert code == 0
    assert "GB to be hashed" in said
    assert "too little could be measured: no time can be told" in said
    assert "open, tissue" in said
    assert "only 0 tiles could be read" in said


def test_a_batch_of_the_probe_takes_no_more_than_its_share_of_the_time(monkeypatch):
    monkeypatch.setattr(wsi, "available_cores", lambda: 2)
    assert probe._batch(64, 20.0, 0.001, 0.01) == 64
    assert probe._batch(64, 20.0, 6.0, 0.01) == 1
    assert probe._batch(64, 20.0, 0.1, 0.01) == 20
    assert probe._batch(64, 20.0, 0.001, 1.0) == 4  # two readers
    assert probe._batch(64, 20.0, 0.001, None) == 1


@pytest.mark.parametrize("seconds", ["nan", "inf", "0", "-3"])
def test_a_probe_without_end_is_refused(cohort, seconds):
    code, said = slidemil("plan", cohort.slides[0].path, "--probe", seconds)
    assert code == 2
    assert "probe" in said


# ------------------------------------------------------------------ tiles of slides that were not counted


def test_an_estimate_by_hand():
    """Two slides of 10 and 30 tiles in 1 and 3 MB: 10 tiles a MB, and no scatter at all."""
    found = estimate({"a": 10, "b": 30}, {"a": 1, "b": 3, "c": 2, "d": 5})
    assert found.expected == found.low == found.high == 110
    assert found.tiles == {"a": 10, "b": 30, "c": 20, "d": 50}
    assert not found.exact
    whole = estimate({"a": 10}, {"a": 1, "b": 4}, unusable=["b"])
    assert (whole.exact, whole.expected) == (True, 10)


def test_the_range_holds_the_truth_about_as_often_as_two_standard_errors_do():
    """Slides with a scatter of their own, a quarter of them counted: by chance 95 %, here at least 85 %."""
    dice = np.random.default_rng(0)
    held = 0
    for _ in range(200):
        sizes = {str(i): int(size) for i, size in enumerate(dice.lognormal(20, 0.6, 80))}
        tiles = {name: round(size * 1e-6 * dice.lognormal(0, 0.3)) for name, size in sizes.items()}
        counted = dict(list(tiles.items())[:20])
        found = estimate(counted, sizes)
        held += found.low <= sum(tiles.values()) <= found.high
    assert 170 <= held < 200


@given(st.lists(st.tuples(st.integers(0, 10**4), st.integers(1, 10**9)), min_size=1, max_size=30), st.integers(0, 30))
def test_an_estimate_never_loses_what_was_counted(slides, known):
    sizes = {str(i): size for i, (_, size) in enumerate(slides)}
    counted = {str(i): tiles for i, (tiles, _) in enumerate(slides[:known])}
    found = estimate(counted, sizes)
    assert found.low <= found.expected <= found.high
    assert found.low >= sum(counted.values())
    assert set(found.tiles) == set(sizes)


# ------------------------------------------------------------------ the forecast, from rates given by hand


def measured(**read):
    clock = {"core": 0.0, "queued": 0.0}
    queue = {"tiles": 100, "seconds": 0.7, "service": 0.0, "core": 0.0, "queued": 0.0, "W_mean": 0.01, "workers": 2}
    queue |= {"wait": 0.0, "starved": 0.0, "saturated": True, "capped_by": None}
    rates = {
        "read": queue | read,
        "hash": clock | {"busy": 1.0, "things": 10**9},
        "prepare": clock | {"busy": 4.0, "things": 2},
        "encode": clock | {"busy": 0.5, "things": 100},
        "write": clock | {"busy": 0.2, "things": 2},
    }
    return Measured(rates, cores=4)


def test_many_slides_take_as_long_as_their_slowest_station():
    works = [Work(str(i), tiles=1000, size=10**9) for i in range(50)]
    settings = load_settings().extract
    by_encoder = forecast(measured(service=0.002), works, settings)
    assert by_encoder.seconds == pytest.approx(50 * (1000 * 0.005 + 0.1) + 3, rel=0.02)
    assert by_encoder.verdict.limit == "encoder"
    by_storage = forecast(measured(service=0.020), works, settings)
    assert by_storage.seconds == pytest.approx(50 * 1000 * 0.010 + 3, rel=0.02)
    assert by_storage.verdict.limit == "storage"
    few = [Work(str(i), tiles=100, size=10**9) for i in range(50)]
    by_looking = forecast(measured(service=0.002), few, settings)
    assert by_looking.seconds == pytest.approx(50 * (1 + 2), rel=0.03)
    assert by_looking.verdict.limit == "preparation"


def test_reads_that_are_late_set_the_pace():
    """100 tiles in 4 s, of which 1 s without a slide: 30 ms a tile, whatever one reader is kept by a read."""
    late = measured(service=0.02, seconds=4.0, wait=0.8, starved=0.25)
    works = [Work("a", tiles=10_000, size=0)]
    found = forecast(late, works, load_settings(options={"workers": 2}).extract)
    assert found.seconds == pytest.approx(10_000 * 0.03 + 2, rel=0.02)


def test_the_cores_are_shared():
    """Decoding 4 ms a tile in 8 readers on 4 cores: one tile a millisecond, however many readers there are."""
    works = [Work("a", tiles=100_000, size=0)]
    settings = load_settings(options={"workers": 8}).extract
    found = forecast(measured(service=0.024, core=0.024, workers=8), works, settings)
    assert found.seconds == pytest.approx(100_000 * 0.006 + 2, rel=0.02)
    assert found.verdict.limit == "cores"


def test_readers_are_added_only_where_they_wait_and_it_pays():
    works = [Work("a", tiles=10_000, size=0)]
    auto, fixed = load_settings().extract, load_settings(options={"workers": 2}).extract
    slow = measured(service=0.100, saturated=False)
    assert forecast(slow, works, auto).readers == 20  # 0.1 s / 20 = the encoder's 5 ms
    assert forecast(slow, works, fixed).readers == 2
    assert forecast(measured(service=0.100), works, auto).readers == 2  # tried, and it gave no more
    assert forecast(measured(service=0.100, core=0.09, saturated=False), works, auto).readers == 2


# ------------------------------------------------------------------ kept, and scored


def kept(**changes):
    return Kept(
        **{"by": "plan", "key": "k", "slides": ("a", "b"), "seconds": 100.0, "limit": "cores", "tiles": 9.0} | changes
    )


def test_a_forecast_serves_only_the_slides_and_settings_it_was_made_for(tmp_path):
    job = JobFolder(tmp_path)
    job.runs.mkdir()
    (job.runs / "1.json").write_text(json.dumps({"verb": "plan", "forecast": kept(seconds=50.0).to_dict()}))
    (job.runs / "2.json").write_text(json.dumps({"verb": "plan", "forecast": kept().to_dict()}))
    (job.runs / "3.json").write_text(json.dumps({"verb": "plan", "forecast": kept(key="other").to_dict()}))
    (job.runs / "4.json").write_text(json.dumps({"verb": "extract", "forecast": {"by": "run"}}))
    (job.runs / "5.json").write_text("{torn")
    assert kept_by_plan(job, "k", ["b", "a"]) == kept()  # the newest that fits
    assert kept_by_plan(job, "k", ["a"]) is None
    assert kept_by_plan(job, "none", ["a", "b"]) is None


def test_a_score_by_hand():
    scored = score(kept(), 110.0, Verdict("storage", ("cores",), 0.5, 1.0, ""))
    assert scored["ratio"] == 1.1
    assert scored["bottleneck_right"]
    assert told(scored) == (
        "forecast by slidemil plan: 1 min 40 s; it took 1 min 50 s (1.10 of it); "
        "the bottleneck was storage, as forecast"
    )
    wrong = score(kept(by="run", made_after=10.2), 50.0, Verdict("encoder", (), 0.0, 1.0, ""))
    assert told(wrong) == (
        "forecast by the run's first 10 s: 1 min 40 s; it took 50 s (0.50 of it); "
        "the bottleneck was encoder, not cores as forecast"
    )


def test_a_long_run_without_a_plan_makes_its_own_forecast(cohort, tmp_path, monkeypatch):
    from pipelines import watch

    monkeypatch.setattr(watch, "_FORECAST_AFTER", 0.0)
    monkeypatch.setattr(watch, "_EVERY", 0.0)
    slides, few = cohort.slides[0].path.parent, ("--set", "batch_size=8")  # a batch is there before half of it is over
    code, run = slidemil_json("extract", slides, "-o", tmp_path / "job", "--limit", 6, *few)
    assert code == 0
    assert run["forecast"]["by"] == "run"
    assert run["forecast"]["made_after"] <= 0.5 * run["forecast"]["actual_seconds"] + 0.1
    assert math.isfinite(run["forecast"]["ratio"])
    assert run["forecast"]["forecast_seconds"] >= run["forecast"]["made_after"]


def test_a_forecast_of_the_run_that_came_when_it_was_over_is_not_scored(cohort, tmp_path, monkeypatch):
    from pipelines import watch

    monkeypatch.setattr(watch, "_FORECAST_AFTER", 0.0)
    monkeypatch.setattr(watch, "_EVERY", 0.0)
    monkeypatch.setattr(watch, "_EARLY", 0.0)
    code, run = slidemil_json("extract", cohort.slides[0].path.parent, "-o", tmp_path / "job", "--limit", 2)
    assert code == 0
    assert "forecast" not in run


def test_a_plan_is_scored_once_by_the_first_run_after_it(cohort, tmp_path):
    slides, job = cohort.slides[0].path.parent, tmp_path / "job"
    both = (slides, "-o", job, "--limit", 2)
    slidemil_json("plan", *both, "--probe", 20)
    _, first = slidemil_json("extract", *both)
    assert first["forecast"]["by"] == "plan"
    _, again = slidemil_json("extract", *both, "--force")
    assert "forecast" not in again
    slidemil_json("plan", *both, "--force", "--probe", 20)
    _, new = slidemil_json("extract", *both, "--force")
    assert new["forecast"]["by"] == "plan"


def test_a_slide_of_the_plan_that_is_gone_is_named_once(cohort, tmp_path):
    folder, job = tmp_path / "slides", tmp_path / "job"
    folder.mkdir()
    for slide in cohort.slides[:3]:
        (folder / slide.path.name).symlink_to(slide.path)
    slidemil_json("plan", folder, "-o", job, "--probe", 10)
    lost = cohort.slides[1]
    (folder / lost.path.name).unlink()
    note = f"1 slide of the plan is no longer there: {lost.slide_id}"
    _, run = slidemil_json("extract", folder, "-o", job, "--limit", 1)  # a limit takes no slide away
    assert note in run["warnings"]
    assert note in records(job, "extract")[0]["notes"]
    _, run = slidemil_json("extract", folder, "-o", job)
    assert note not in run["warnings"]


def test_a_plan_tells_the_memory_of_a_whole_run(cohort, tmp_path):
    """The oracle is the system's own count of a run's process, libraries included."""
    slides = cohort.slides[0].path.parent
    command = [sys.executable, "-c", RUN_AND_TELL]
    said = subprocess.run([*command, "plan", slides, "--limit", "1", "--probe", "3"], capture_output=True, text=True)
    told = json.loads(said.stdout.splitlines()[0])["memory_gb"] * 1e9
    said = subprocess.run(
        [*command, "run", slides, "-o", tmp_path / "job", "--limit", "1"], capture_output=True, text=True
    )
    took = int(said.stderr.splitlines()[-1])
    assert took <= told <= 1.2 * (took + 250e6)  # a process that looks through slides, one that reads, the rounding


RUN_AND_TELL = """
import sys
from pipelines.cli import app
try:
    app([*sys.argv[1:], "--json", "-q"])
except SystemExit:
    pass
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))  # getrusage: that of pytest
print(1024 * int(peak.split()[1]), file=sys.stderr)
"""


# ------------------------------------------------------------------ how sure


def test_the_wait_of_a_plan_is_that_of_its_time():
    """One slide: 2 s until it was looked through, then 100 tiles at 5 ms, 0.1 s to write it: 0.6 of 2.6 s are work."""
    found = forecast(measured(service=0.002), [Work("a", tiles=100, size=0)], load_settings().extract)
    assert found.seconds == pytest.approx(2.6, rel=0.05)
    assert found.verdict.wait == pytest.approx(1 - 0.6 / found.seconds, abs=0.01)


def test_what_cannot_be_gained_stays_in_the_gain_of_a_plan():
    found = forecast(measured(service=0.002), [Work("a", tiles=1000, size=0)], load_settings().extract)
    assert found.verdict.limit == "encoder"
    assert found.seconds == pytest.approx(7.1, rel=0.05)
    assert found.verdict.gain == pytest.approx(found.seconds / (found.seconds - 2.5), rel=0.05)


def test_a_depth_can_be_checked_by_hand():
    found = forecast(measured(service=0.002), [Work("a", tiles=10**5, size=0)], load_settings().extract)
    assert found.under_way == pytest.approx(found.rate * found.latency)
    assert found.depth == max(math.ceil(found.under_way + 3 * math.sqrt(found.under_way)), found.readers)


def test_the_interval_of_a_mean_is_students():
    """scipy's own interval is the oracle."""
    from scipy.stats import t

    dice = np.random.default_rng(0)
    for n in (2, 3, 6, 11, 15):
        pieces = list(1 + 0.1 * dice.standard_normal(n))
        low, high = t.interval(0.95, n - 1, np.mean(pieces), np.std(pieces, ddof=1) / math.sqrt(n))
        assert half_width(pieces) == pytest.approx(min(1.0, (high - low) / 2 / np.mean(pieces)), rel=0.08)
    assert half_width([1.0]) is None
    assert half_width([]) is None


def test_few_pieces_make_a_wide_range_and_none_make_no_range():
    works, settings = [Work("a", tiles=10_000, size=0)], load_settings().extract
    unsure = [
        forecast(replace(measured(service=0.002), pieces=pieces), works, settings).unsure
        for pieces in ((1.0, 1.2) * 20, (1.0, 1.2) * 2, (1.0, 1.2), (1.0,))
    ]
    assert unsure[3] is None
    assert 0.1 <= unsure[0] < unsure[1] < unsure[2] <= 1


def test_a_range_without_width_is_not_printed():
    data = {"seconds": 54.0, "seconds_low": 54.0, "seconds_high": 54.4}
    assert plan_text._range(data) == "54 s"
    assert plan_text._range({**data, "seconds_high": 70.0}) == "54 s (54 s to 1 min 10 s)"
    assert "too little was measured" in plan_text._range({**data, "seconds_low": None})


def test_others_that_use_the_cores_are_told_of(tmp_path):
    stat = tmp_path / "stat"
    tick = os.sysconf("SC_CLK_TCK")
    core = min(os.sched_getaffinity(0))
    stat.write_text(f"cpu 1 1 1 1\ncpu{core} {3 * tick} {tick} {tick} 999 99 0 0 {tick} 0 0\ncpu9999 7 7 7 7\n")
    assert machine.busy_core_seconds(stat) == pytest.approx(6)  # not idle, nor waiting for storage
    assert machine.busy_core_seconds(tmp_path / "none") is None
    assert "about 0.8 of 2 cores" in machine.others_told(10.0, 30.0, 12.0, 10.0, 2)
    assert machine.others_told(10.0, 30.0, 19.5, 10.0, 2) == ""
    assert machine.others_told(None, 30.0, 0.0, 10.0, 2) == ""


def test_memory_is_rounded_up():
    assert [machine.round_up(size) for size in (0, 1.0e9, 1.01e9, 8.72e8)] == pytest.approx([0, 1.0e9, 1.1e9, 8.8e8])


def test_seconds_in_words():
    assert [duration(s) for s in (0.04, 9.94, 9.96, 59.4, 59.6, 200, 3725)] == [
        "0.0 s",
        "9.9 s",
        "10 s",
        "59 s",
        "1 min 00 s",
        "3 min 20 s",
        "1 h 02 min",
    ]


def test_the_time_of_starting_is_told_where_it_is_much():
    assert plan_text._start({"seconds": 57.0, "seconds_start": 49.0}) == ", 49 s of it until reading begins"
    assert plan_text._start({"seconds": 57.0, "seconds_start": 2.0}) == ""


@pytest.mark.parametrize(("workers", "cores", "told"), [(0, 2, False), (64, 2, False), (999, 2, True), (99, 32, False)])
def test_far_more_readers_than_cores_are_remarked_on(workers, cores, told):
    plan = SimpleNamespace(forecast=SimpleNamespace(line=SimpleNamespace(cores=cores)))
    assert bool(planning._too_many(plan, ExtractSettings(workers=workers))) is told
