"""Slides in, predictions out: the whole job through the command, on slides that OpenSlide reads."""

from __future__ import annotations

import csv
import json

import h5py
import numpy as np
import openslide
import pytest
from _command import digests, slidemil, slidemil_json

TILING = "20x_224px_0px_overlap"


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_finished_job_has_the_promised_files(finished, cohort):
    one = cohort.slides[0].slide_id
    for name in (
        "job.yaml",
        "manifest.csv",
        "slides.csv",
        "report.html",
        f"thumbnails/{one}.jpg",
        f"contours/{one}.jpg",
        f"contours_geojson/{one}.geojson",
        f"{TILING}/patches/{one}_patches.h5",
        f"{TILING}/visualization/{one}.jpg",
        f"{TILING}/features_descriptors/{one}.h5",
        "models/gated_abmil/config.json",
        "models/gated_abmil/model.safetensors",
        "models/gated_abmil/metrics.json",
        "models/gated_abmil/README.md",
        "predictions/gated_abmil/slides.csv",
        "predictions/gated_abmil/cases.csv",
        f"heatmaps/gated_abmil/{one}.png",
        f"heatmaps/gated_abmil/{one}.scores.h5",
        f"heatmaps/gated_abmil/{one}.geojson.gz",
        f"heatmaps/gated_abmil/top/{one}.jpg",
    ):
        assert (finished / name).is_file(), name
    assert list((finished / "runs").glob("*.json"))
    assert list((finished / "logs").glob("*.jsonl"))


def test_features_belong_to_the_pixels_at_their_coordinates(finished, cohort):
    """The oracle is openslide-python itself: read at the coordinates, exact area mean, describe again."""
    from mil.encoders.descriptors import DescriptorEncoder

    slide = cohort.slides[1]
    with h5py.File(finished / TILING / "features_descriptors" / f"{slide.slide_id}.h5") as file:
        coords, features = file["coords"][()], file["features"][()].astype(np.float32)
        footprint = int(file["coords"].attrs["patch_size_level0"])
    assert footprint == 448
    with openslide.OpenSlide(slide.path) as reader:
        tiles = []
        for x, y in coords[:4]:
            region = np.asarray(reader.read_region((int(x), int(y)), 0, (448, 448)).convert("RGB"), np.float64)
            tiles.append(region.reshape(224, 2, 224, 2, 3).mean(axis=(1, 3)).round().astype(np.uint8))
    again = DescriptorEncoder()(np.stack(tiles))
    scale = np.abs(features).max(axis=0) + 1e-6
    assert np.median(np.abs(again - features[:4]) / scale) < 0.01
    others = np.abs(again[:, None] - features[None]) / scale
    assert (others.mean(axis=2).argmin(axis=1) == np.arange(4)).all(), "each row is nearest to its own tile"


def test_a_feature_file_says_how_it_was_made(finished, cohort):
    with h5py.File(finished / TILING / "features_descriptors" / f"{cohort.slides[0].slide_id}.h5") as file:
        passport = json.loads(file.attrs["encoder_passport"])
        attributes = dict(file["coords"].attrs)
        assert file["features"].chunks is None
        assert file["features"].dtype == np.float16
        assert file["missing"].shape == (0,)
    assert passport["stain"] == "none"
    assert passport["tile"] == {"size": 224, "mpp": 0.5, "overlap": 0}
    assert attributes["patch_size"] * attributes["level0_magnification"] // attributes["target_magnification"] == 448


def test_a_second_run_does_nothing_new(job, cohort, labels):
    before = digests(job)
    code, said = slidemil_json("run", cohort.slides[0].path.parent, "-o", job, "-l", labels)
    assert code == 0
    assert said["slides"] == {"found": 12, "done": 0, "failed": 0, "skipped": 12}
    assert digests(job) == before


@pytest.mark.slow
def test_workers_and_batches_do_not_change_a_byte(finished, cohort, labels, tmp_path):
    job = tmp_path / "job"
    slides = cohort.slides[0].path.parent
    code, said = slidemil("run", slides, "-o", job, "-l", labels, "-q", "--workers", 1, "--batch-size", 7)
    assert code == 0, said
    here, there = digests(job), digests(finished)
    settings = {"job.yaml"}
    differ = {name for name in here.keys() | there.keys() if here.get(name) != there.get(name)} - settings
    assert not {name for name in differ if "features" in name and name.endswith(".h5")}
    assert not {name for name in differ if name.startswith(("models/", "predictions/", "heatmaps/"))}


def test_changed_settings_are_named_and_redone(job, cohort):
    slide = cohort.slides[0].path
    code, said = slidemil_json("extract", slide, "-o", job, "--min-tissue", 0.9)
    assert code == 0
    assert said["slides"]["done"] == 1
    assert any("tissue.min_tissue" in text for text in said["warnings"])


def test_predictions_and_metrics_are_of_the_same_slides(finished, cohort):
    table = {row["slide_id"]: row for row in rows(finished / "predictions" / "gated_abmil" / "slides.csv")}
    assert len(table) == len(cohort.slides)
    test = [slide for slide in cohort.slides if slide.split == "test"]
    metrics = json.loads((finished / "models" / "gated_abmil" / "metrics.json").read_text())
    assert metrics["test"]["n"] == len(test)
    assert metrics["split"]["test"]["patients"] == len({slide.case_id for slide in test})
    for slide in cohort.slides:
        row = table[slide.slide_id]
        assert row["split"] == slide.split
        assert row["label"] == slide.label
        assert float(row["p_negative"]) + float(row["p_positive"]) == pytest.approx(1, abs=1e-6)


def test_attention_of_a_slide_sums_to_one_and_lies_on_its_tiles(finished, cohort):
    one = cohort.slides[0].slide_id
    with (
        h5py.File(finished / "heatmaps" / "gated_abmil" / f"{one}.scores.h5") as scores,
        h5py.File(finished / TILING / "features_descriptors" / f"{one}.h5") as features,
    ):
        assert (scores["coords"][()] == features["coords"][()]).all()
        assert scores["attention"][()].sum() == pytest.approx(1, abs=1e-5)
        assert scores["attention"].dtype == np.float32


def test_nothing_in_the_job_names_a_place_outside_it(finished):
    """A job can be moved: no absolute path in any file but runs and logs."""
    for path in finished.rglob("*"):
        if path.is_file() and path.relative_to(finished).parts[0] not in ("runs", "logs", ".state"):
            assert str(finished).encode() not in path.read_bytes(), path


def test_run_without_labels_ends_after_features_and_says_so(cohort, tmp_path):
    code, said = slidemil("run", cohort.slides[0].path, "-o", tmp_path / "job", "-q")
    assert code == 0
    assert "features only" in said
    assert not (tmp_path / "job" / "models").exists()


def test_a_model_predicts_slides_it_has_never_seen(finished, cohort, tmp_path):
    model = finished / "models" / "gated_abmil"
    code, _ = slidemil_json("run", cohort.slides[3].path, "-o", tmp_path / "job", "--model", model)
    assert code == 0
    (row,) = rows(tmp_path / "job" / "predictions" / "gated_abmil" / "slides.csv")
    known = {r["slide_id"]: r for r in rows(finished / "predictions" / "gated_abmil" / "slides.csv")}
    assert row["p_positive"] == known[row["slide_id"]]["p_positive"]
    assert (tmp_path / "job" / "heatmaps" / "gated_abmil" / f"{row['slide_id']}.png").is_file()


def test_a_model_refuses_features_made_differently(finished, cohort, tmp_path):
    model = finished / "models" / "gated_abmil"
    code, said = slidemil("run", cohort.slides[3].path, "-o", tmp_path / "job", "-m", model, "--tile", 256, "-q")
    assert code == 7
    assert "tile" in said


def test_status_counts_slides(finished):
    code, text = slidemil("status", finished)
    assert code == 0
    assert "12 slides: 12 done, 0 failed, 0 pending" in text
    assert "features_descriptors" in text


def test_info_says_what_a_slide_is(cohort):
    code, said = slidemil("info", cohort.slides[0].path)
    assert code == 0
    assert "2016 × 2016 px, aperio, objective 40x" in said
    assert "0.25 × 0.25 µm/px" in said


def test_stain_normalization_is_in_the_passport_and_its_parameters_in_the_file(cohort, tmp_path):
    slide = cohort.slides[0]
    code, said = slidemil("extract", slide.path, "-o", tmp_path / "job", "--stain", "macenko", "-q")
    assert code == 0, said
    with h5py.File(tmp_path / "job" / TILING / "features_descriptors" / f"{slide.slide_id}.h5") as file:
        assert json.loads(file.attrs["encoder_passport"])["stain"] == "macenko"
        assert json.loads(file.attrs["stain_params"])["method"] == "macenko"


def test_slides_csv_says_what_read_the_tiles(finished, cohort):
    table = {row["slide_id"]: row for row in rows(finished / "slides.csv")}
    assert all(row["reader"].startswith("openslide 4") and row["reader"].endswith("direct") for row in table.values())
    assert {row["case_id"] for row in table.values()} == {slide.case_id for slide in cohort.slides}
