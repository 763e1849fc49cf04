"""Tiles at several µm/px in one job: each as if alone; joined tile by tile, they train and predict."""

from __future__ import annotations

import csv
import json
import shutil

import numpy as np
import pytest
from _command import digests, slidemil, slidemil_json
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines import tables_of_job
from pipelines.config import load_settings
from pipelines.errors import CheckFailedError, UsageError
from pipelines.feature_sets import choose_folder, load_features
from pipelines.features import FeatureFile, read_features, same_passport
from pipelines.jobfolder import JobFolder
from pipelines.joined import joined, joined_passport, nearest

FINE, COARSE = "20x_224px_0px_overlap", "10x_224px_0px_overlap"
COMMON = ("--set", "processes=0")
BOTH = f"{FINE}/features_descriptors,{COARSE}/features_descriptors"


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def made(cohort, finished, tmp_path_factory):
    """A finished job to which a second scale was added."""
    job = tmp_path_factory.mktemp("scales") / "job"
    shutil.copytree(finished, job)
    code, said = slidemil_json("extract", cohort.slides[0].path.parent, "-o", job, *COMMON, "--mpp", "0.5,1")
    assert (code, said["slides"], said["features"]) == (0, {"found": 12, "done": 12, "failed": 0, "skipped": 0}, BOTH)
    assert all(name.startswith(COARSE) for name in said["outputs"]), "0.5 was there"
    return job


def test_each_scale_is_what_it_is_alone_and_is_done_once(made, cohort, tmp_path):
    slides = cohort.slides[0].path.parent
    assert slidemil("extract", slides, "-o", tmp_path / "job", *COMMON, "--mpp", 1, "--limit", 2)[0] == 0
    wanted = {name: sha for name, sha in digests(tmp_path / "job").items() if f"{COARSE}/" in name}
    assert len(wanted) == 10
    assert wanted.items() <= digests(made).items()
    code, said = slidemil_json("extract", slides, "-o", made, "-c", made / "job.yaml")
    assert (code, said["slides"]["skipped"], len(said["scales"])) == (0, 12, 2)


def test_a_slide_too_coarse_for_one_scale_fails_and_says_at_which(cohort, tmp_path):
    """The slides have 0.25 µm/px: tiles at 0.1 would be made up."""
    job = tmp_path / "job"
    slides = cohort.slides[0].path.parent
    code, said = slidemil_json("extract", slides, "-o", job, *COMMON, "--mpp", "1,0.1", "--limit", 1)
    assert (code, said["slides"]["failed"], said["slides"]["done"]) == (3, 1, 0)
    assert said["failed"][0]["cause"].startswith("at 0.1 µm/px: ")
    assert rows(job / "slides.csv")[0]["status"] == "failed"
    assert (job / COARSE / "features_descriptors" / f"{cohort.slides[0].slide_id}.h5").is_file()


def test_the_joined_features_train_and_predict(made, cohort, labels):
    train = ("train", made, "-l", labels, "--epochs", 2)
    assert slidemil(*train)[0] == 2, "several folders: which?"
    code, said = slidemil_json(*train, "--features", BOTH, "--name", "joined")
    assert code == 0
    config = json.loads((made / "models" / "joined" / "config.json").read_text())
    single = read_features(next((made / FINE / "features_descriptors").glob("*.h5")))
    assert config["head"]["in_dim"] == 2 * single.features.shape[1]
    code, said = slidemil_json("predict", made, "--model", "joined")
    assert (code, said["slides"]) == (0, 12), "the model knows which folders it joins"
    row = rows(made / "predictions" / "joined" / "slides.csv")[0]
    assert row["encoder_id"] == "descriptors at 0.5 µm/px + descriptors at 1 µm/px"
    code, text = slidemil("predict", made, "--model", "joined", "--features", f"{FINE}/features_descriptors")
    assert (code, "were made differently" in text) == (7, True)
    code, text = slidemil("heatmap", made, "--model", "joined", "--limit", 1)
    assert code == 0, text


def test_each_tile_gets_the_coarse_tile_that_holds_its_middle(made, cohort):
    names = [slide.slide_id for slide in cohort.slides]
    both = load_features(JobFolder(made), BOTH, names)
    name = names[3]
    fine, coarse = (read_features(made / folder / "features_descriptors" / f"{name}.h5") for folder in (FINE, COARSE))
    bag = both.bag(name).features.numpy()
    for row, (x, y) in enumerate(fine.xy + 224):
        over = (coarse.xy <= (x, y)).all(1) & ((x, y) < coarse.xy + 896).all(1)
        if over.any():
            assert np.array_equal(bag[row], np.concatenate([fine.features[row], coarse.features[over][0]]))
    assert both.digest(name) != load_features(JobFolder(made), BOTH.split(",")[0], names).digest(name)


def file_of(xy, side, seed=0):
    features = np.random.default_rng(seed).standard_normal((len(xy), 3)).astype(np.float32)
    return FeatureFile("a", features, np.asarray(xy, np.int64).reshape(-1, 2), (side, side), (0, 0), {}, {})


places = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), min_size=1, max_size=20, unique=True)


@settings(deadline=None)  # scipy is loaded by the first
@given(places, places, st.integers(1, 9), st.integers(1, 20))
def test_the_nearest_is_nearest_and_a_tile_that_holds_the_middle_wins(fine, coarse, small, large):
    one, other = file_of(fine, small), file_of(coarse, large, seed=1)
    found = nearest(one, other)
    away = np.abs((one.xy[:, None] + small / 2) - (other.xy[None] + large / 2)).max(2)
    assert np.array_equal(away[np.arange(len(found)), found], away.min(1))
    inside = away <= large / 2
    assert (inside[np.arange(len(found)), found] == inside.any(1)).all()
    both = joined(one, [other])
    assert np.array_equal(both, np.hstack([one.features, other.features[found]]))


def test_no_tiles_joined_are_no_tiles():
    assert joined(file_of([], 4), [file_of([(0, 0)], 8)]).shape == (0, 0)


def killed(made, tmp_path):
    """A copy of the job as a run leaves it that was killed before it wrote its table."""
    copy = tmp_path / "job"
    shutil.copytree(made, copy)
    (copy / "slides.csv").unlink()
    return JobFolder(copy)


def test_slides_that_lack_one_part_are_left_out_and_told(made, cohort, tmp_path):
    names = [slide.slide_id for slide in cohort.slides]
    job = JobFolder(made)
    record = job.record(made / COARSE / "features_descriptors" / f"{names[0]}.h5")
    hidden = record.with_suffix(".hidden")
    record.rename(hidden)
    try:
        found = load_features(job, BOTH, names)
        assert names[0] not in found
        assert len(found.records) == 11
        assert any(names[0] in note for note in found.notes)
        rows_now = {row["slide_id"]: row["status"] for row in tables_of_job.rows_by_records(killed(made, tmp_path))}
        assert [name for name, status in rows_now.items() if status == "pending"] == [names[0]]
    finally:
        hidden.rename(record)


def test_the_part_that_differs_is_named(made):
    job = JobFolder(made)
    passport = read_features(next((made / FINE / "features_descriptors").glob("*.h5"))).passport
    other = {**passport, "stain": "macenko"}
    with pytest.raises(CheckFailedError, match="stain of part 2: 'none' against 'macenko'"):
        same_passport(joined_passport([passport, passport]), joined_passport([passport, other]), what="x")
    with pytest.raises(UsageError, match="0 folders of the job"):
        choose_folder(job, None, joined_passport([passport, other]))


@pytest.mark.parametrize("given", ["0.5,1.0", [0.5, 1], "0.5, 1"])
def test_several_mpp_are_read_in_every_way(given, tmp_path):
    config = tmp_path / "job.yaml"
    config.write_text(f"mpp: {given}\n")
    for found in (load_settings(config), load_settings(options={"mpp": given})):
        assert found.extract.scales == (0.5, 1.0)
    assert load_settings(config, options={"mpp": "2"}).extract.scales == (2.0,), "an option replaces all of them"


@pytest.mark.parametrize("wrong", ["0.5,0.5", "0.5,x", "0.5,2000", "x"])
def test_mpp_that_cannot_be_meant_are_refused(wrong):
    with pytest.raises(UsageError, match="mpp"):
        load_settings(options={"mpp": wrong})


def test_a_plan_tells_each_scale_and_all(cohort):
    slides = cohort.slides[0].path.parent
    code, said = slidemil_json("plan", slides, *COMMON, "--limit", 2, "--mpp", "0.5,1", "--probe", 2)
    assert (code, list(said["scales"])) == (0, ["0.5", "1"])
    assert said["seconds"] == pytest.approx(sum(one["seconds"] for one in said["scales"].values()))
