"""`slidemil heatmap` with several methods: what it writes, what it refuses, and how it ranks them."""

from __future__ import annotations

import csv
import gzip
import json
import re
import shutil

import h5py
import numpy as np
import pytest
import tifffile
from _command import digests, slidemil, slidemil_json
from PIL import Image

import mil
from mil.explain import METHODS
from mil.explain.faithfulness import deletion, insertion
from mil.tasks import Classification
from pipelines import stages
from pipelines.comparing import COLUMNS, ranked
from pipelines.errors import ExitCode, UsageError
from pipelines.explainable import check_prediction
from pipelines.feature_sets import bag_of
from pipelines.features import read_features
from pipelines.heatmap import FRAME_KEY, SIGNED
from pipelines.heatmap_files import shown_values
from pipelines.heatmap_stage import chosen
from pipelines.jobfolder import JobFolder
from pipelines.made_with import digest_now
from pipelines.manifest import SlideEntry
from pipelines.outcome import Said
from pipelines.predictions import find_model
from pipelines.tables_of_job import read_manifest
from pipelines.true_regions import true_regions

QUICK = ("attention", "lrp", "perturbation")
DRAWN = ("--method", ",".join(QUICK))


@pytest.fixture(scope="module")
def explained(finished, tmp_path_factory):
    """A job with three methods drawn on every slide, compared with the truth."""
    return shutil.copytree(finished, tmp_path_factory.mktemp("explained") / "job")


def rows_in(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def folder(job):
    return job / "heatmaps" / "gated_abmil"


@pytest.fixture(scope="module")
def compared(explained, labels):
    return slidemil_json(
        "heatmap", explained, "-m", "gated_abmil", *DRAWN, "--compare", "--zarr", "--truth", labels.parent
    )


def test_methods_lie_beside_one_another(explained, compared):
    code, said = compared
    assert code == 0, said
    one = sorted(folder(explained).glob("*.scores.h5"))[0].name.removesuffix(".scores.h5")
    with h5py.File(folder(explained) / f"{one}.scores.h5") as file:
        assert set(file) == {"coords", *QUICK}
        facts = json.loads(file["lrp"].attrs["facts"])
        total = float(file["lrp"][()].sum(dtype=np.float64)) + facts["bias"]
        assert total == pytest.approx(float(file["coords"].attrs["logit"]), abs=1e-4)
        assert facts["target"] == file["coords"].attrs["target"] == "positive"
        n = len(file["coords"])
        values = file["lrp"][()]
    named = find_model(JobFolder(explained), "gated_abmil")
    bag = bag_of(read_features(next(explained.glob(f"*/features_*/{one}.h5"))))
    best_first = np.argsort(-values, kind="stable")
    assert facts["deletion"] == deletion(named.model.head, bag, 1, best_first, steps=10).drop
    assert facts["insertion"] == insertion(named.model.head, bag, 1, best_first, steps=10).area
    for path in (f"{one}.png", f"lrp/{one}.png", f"perturbation/{one}.png"):
        with Image.open(folder(explained) / path) as image:
            assert json.loads(image.text[FRAME_KEY])["slide_size"] == [2016, 2016]
    for path in (f"top/{one}.jpg", f"bottom/{one}.jpg"):
        with Image.open(folder(explained) / path) as image:
            assert image.size[0] > 600
    tiles = json.loads(gzip.decompress((folder(explained) / f"{one}.geojson.gz").read_bytes()))["features"]
    assert len(tiles) == n
    assert {"lrp", "perturbation", "attention", "attention_rank", "attention_log_ratio"} <= set(
        tiles[0]["properties"]["measurements"]
    )
    with tifffile.TiffFile(folder(explained) / f"{one}.scores.ome.tif") as tiff:
        assert tiff.series[0].shape[0] == 3
    assert (folder(explained) / f"{one}.scores.ome.zarr/.zattrs").is_file()


def test_the_table_ranks_by_what_is_known(explained, compared):
    _, said = compared
    with (folder(explained) / "methods.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    assert [row["rank"] for row in rows] == ["1", "2", "3"]
    assert {row["method"] for row in rows} == set(QUICK)
    assert said["comparison"][0]["method"] == rows[0]["method"]
    for row in rows:
        assert row["stability"], "the head was not trained again from other seeds"
        assert -1 <= float(row["randomized"]) <= 1
        assert int(row["n_truth"]) > 0
        assert (row["class"], row["model"]) == ("positive", "gated_abmil")
        assert row["model_sha256"] == digest_now(JobFolder(explained), "gated_abmil")
        assert 0 <= float(row["localization_auc"]) <= 1


def test_one_slide_alone_is_compared_with_heads_trained_on_all(explained, compared, labels):
    with labels.open(newline="") as file:
        rows = list(csv.DictReader(file))
    one = next(row["slide_id"] for row in rows if (row["split"], row["label"]) == ("test", "positive"))
    code, said = slidemil_json(
        "heatmap",
        explained,
        "-m",
        "gated_abmil",
        *DRAWN,
        "--zarr",
        "--compare",
        "--slide",
        one,
        "--truth",
        labels.parent,
    )
    assert code == 0, said
    assert [row["n_slides"] for row in said["comparison"]] == [1, 1, 1]
    assert all(row["stability"] is not None for row in said["comparison"])


@pytest.fixture(scope="module")
def of_folds(finished, labels, tmp_path_factory):
    """A job with a model of two folds, predicted, explained and compared on two slides."""
    job = shutil.copytree(finished, tmp_path_factory.mktemp("folds") / "job")
    code, said = slidemil("train", job, "-l", labels, "--folds", 2, "--name", "both", "--epochs", 6, "-q")
    assert code == 0, said
    code, said = slidemil("predict", job, "-m", "both", "-q")
    assert code == 0, said
    two = [f"--slide={name}" for name in sorted(p.stem for p in (job / "contours").iterdir())[:2]]
    wanted = ("--method", "attention,lrp,integrated-gradients", "--compare", "--truth", labels.parent)
    return job, slidemil_json("heatmap", job, "-m", "both", *two, *wanted)


def test_folds_are_explained_by_the_mean_of_their_models(of_folds):
    """The stored prediction is the mean of both: so is what explains it, and each model's own map is another."""
    job, (code, said) = of_folds
    assert code == 0, said
    assert [row["stability"] is not None for row in said["comparison"]] == [True] * 3
    named = find_model(JobFolder(job), "both")
    one = sorted((job / "heatmaps" / "both").glob("*.scores.h5"))[0]
    bag = bag_of(read_features(next(job.glob(f"*/features_*/{one.name.removesuffix('.scores.h5')}.h5"))))
    with h5py.File(one) as file:
        logit = float(file["coords"].attrs["logit"])
        facts = json.loads(file["lrp"].attrs["facts"])
        values = {name: file[name][()] for name in ("attention", "lrp")}
    members = [mil.load_model(job / "models" / name) for name in ("both_r0f0", "both_r0f1")]
    for name, found in values.items():
        each = [mil.explain(name, model.head, bag, 1) for model in members]
        np.testing.assert_allclose(found, np.mean(each, axis=0), rtol=1e-5, atol=1e-7)
        assert not np.allclose(*each)
    assert facts["mean_of_models"] == len(named.members) == 2
    assert float(values["lrp"].sum(dtype=np.float64)) + facts["bias"] == pytest.approx(logit, abs=1e-5)
    assert logit == pytest.approx(np.mean([mil.predict(model, bag)[0].logits[1] for model in members]), abs=1e-5)


def test_concepts_of_folds_ask_all_their_models(of_folds, tmp_path):
    job, _ = of_folds
    (tmp_path / "c/x").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for k in range(6):
        Image.fromarray(rng.integers(0, 90, (224, 224, 3), np.uint8)).save(tmp_path / f"c/x/{k}.png")
    code, said = slidemil_json("heatmap", job, "-m", "both", "--limit", 1, "--concepts", tmp_path / "c")
    assert code == 0, said
    (row,) = rows_in(job / "heatmaps/both/concepts.csv")
    assert (row["concept"], row["class"], row["n_models"]) == ("x", "positive", "2")
    assert row["model_sha256"] == digest_now(JobFolder(job), "both")


def test_a_selection_is_explained_and_judged_alone(explained, compared, tmp_path):
    rows = rows_in(explained / "predictions/gated_abmil/slides.csv")
    held = [row["slide_id"] for row in rows if row["split"] == "test"]
    table = tmp_path / "review.csv"
    table.write_text(
        "slide_id,status,note\n" + "".join(f"{name},accept,\n" for name in held[1:]) + f"{held[0]},flag,\n"
    )
    code, said = slidemil_json("heatmap", explained, "-m", "gated_abmil", *DRAWN, "--zarr", "--select", f"{table}:flag")
    assert (code, said["drawn"] + said["skipped"]) == (0, 1)
    whole = explained / "predictions/gated_abmil/evaluation.json"
    before = whole.read_bytes() if whole.is_file() else None
    code, said = slidemil_json("evaluate", explained, "-m", "gated_abmil", "--select", table)
    assert (code, said["score"]["n"]) == (0, len(held) - 1)
    assert "--select" in said["which"]
    assert said["outputs"][0].endswith("/evaluation_selected.json")
    assert (whole.read_bytes() if whole.is_file() else None) == before
    table.write_text(f"slide_id,status\n{rows[0]['slide_id']},reject\n")
    for verb in ("heatmap", "evaluate"):
        code, said = slidemil(verb, explained, "-m", "gated_abmil", "--select", table)
        assert (code, "--select" in said) == (4, True), said


def test_the_same_again_does_nothing_and_a_method_more_keeps_the_others(explained, compared):
    one = sorted(folder(explained).glob("*.scores.h5"))[0].name.removesuffix(".scores.h5")
    before = digests(explained)
    _, said = slidemil_json("heatmap", explained, "-m", "gated_abmil", *DRAWN, "--zarr", "--slide", one)
    assert (said["drawn"], said["skipped"]) == (0, 1)
    assert digests(explained) == before
    code, said = slidemil_json(
        "heatmap", explained, "-m", "gated_abmil", "--method", "gradient-input", "--zarr", "--slide", one
    )
    assert (code, said["drawn"]) == (0, 1)
    with h5py.File(folder(explained) / f"{one}.scores.h5") as file:
        assert set(file) == {"coords", *QUICK, "gradient_input"}
    after = digests(explained)
    assert {name for name in before if before[name] != after[name] and one not in name} <= set()


def test_the_order_of_the_methods_asked_for_changes_no_byte(finished, tmp_path):
    one = sorted((finished / "heatmaps/gated_abmil").glob("*.scores.h5"))[0].name.removesuffix(".scores.h5")
    found = []
    for name, orders in {"a": (["lrp,perturbation"],), "b": (["perturbation"], ["lrp"])}.items():
        job = shutil.copytree(finished, tmp_path / name)
        for order in orders:
            code, said = slidemil("heatmap", job, "-m", "gated_abmil", "--method", *order, "--slide", one, "-q")
            assert code == 0, said
        found.append(digests(job))
    assert found[0] == found[1]


def test_what_an_earlier_drawing_left_and_this_one_has_not_is_gone(job):
    """Of another class, and of a slide that moved: nothing of it may stand beside what is drawn now."""
    one = sorted(folder(job).glob("*.scores.h5"))[0].name.removesuffix(".scores.h5")
    draw = ("heatmap", job, "-m", "gated_abmil", "--slide", one, "-q", "--method")
    assert slidemil(*draw, "attention,lrp", "--zarr")[0] == 0
    left = [f"{one}.scores.ome.zarr", f"lrp/{one}.png"]
    assert all((folder(job) / name).exists() for name in left)
    assert slidemil(*draw, "attention", "--class", "negative")[0] == 0
    assert not [name for name in left if (folder(job) / name).exists()]
    table = job / "manifest.csv"
    table.write_text(re.sub(r"[^,\n]*/([^/,]+\.svs)", r"nowhere/\1", table.read_text()))
    assert (folder(job) / f"top/{one}.jpg").is_file()
    assert slidemil(*draw, "lrp", "--force")[0] == 0
    assert not [kind for kind in ("top", "bottom") if (folder(job) / kind / f"{one}.jpg").exists()]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--method", "lpr"], "lrp"),
        (["--method", "gradcam"], "--encoder slidemil-compact"),
        (["--method", "rollout"], "does not support it. It supports attention"),
        (["--class", "tumour"], "negative, positive"),
        (["--slide", "nobody"], "no such slide"),
        (["--scale", "log"], "log-ratio, rank, raw"),
        (["--compare", "--truth", "/nowhere"], "no such folder"),
        (["--truth", "/"], "true regions are for --compare"),
        (["--concepts", "/nowhere"], "one folder for each concept"),
    ],
)
def test_what_cannot_be_is_one_clear_error(finished, arguments, words):
    code, said = slidemil("heatmap", finished, "-m", "gated_abmil", "-q", *arguments)
    assert code == 2, said
    assert words in said
    assert "Traceback" not in said


def test_a_slide_that_a_selection_leaves_out_is_not_called_unknown(tmp_path):
    (tmp_path / "s.csv").write_text("slide_id\na\n")
    entries = [SlideEntry(name, tmp_path / name, name) for name in "ab"]
    assert [entry.slide_id for entry in chosen(entries, ["a"], str(tmp_path / "s.csv"))] == ["a"]
    with pytest.raises(UsageError, match=r"--slide b: --select .*s\.csv does not take it"):
        chosen(entries, ["b"], str(tmp_path / "s.csv"))
    with pytest.raises(UsageError, match="--slide c: no such slide"):
        chosen(entries, ["c"], str(tmp_path / "s.csv"))


def test_a_slide_without_features_is_named_with_the_mend(job):
    lost = sorted(job.glob("*/features_*/*.h5"))[0]
    lost.unlink()
    code, said = slidemil("heatmap", job, "-m", "gated_abmil", "--slide", lost.stem, "-q")
    assert code == 2
    assert lost.stem in said
    assert "slidemil extract" in said


def test_a_slide_whose_files_are_bad_fails_alone(job):
    first, second, third, *others = sorted(job.glob("*/features_*/*.h5"))
    (job / "thumbnails" / f"{first.stem}.jpg").unlink()
    second.write_bytes(b"")
    three = [f"--slide={path.stem}" for path in (first, second, third)]
    code, said = slidemil_json("heatmap", job, "-m", "gated_abmil", "--method", "lrp", *three, "--force")
    assert (code, said["status"], said["drawn"]) == (3, "partial", 1), said
    assert {row["slide"]: "slidemil extract" in row["mend"] for row in said["failed"]} == {
        first.stem: True,
        second.stem: True,
    }
    second.unlink()
    for path in others[1:]:
        path.unlink()
    code, said = slidemil_json("heatmap", job, "-m", "gated_abmil", "--limit", 4)
    assert any(text.startswith("not drawn, no features in") and second.stem in text for text in said["warnings"]), said


def test_a_whole_run_tells_heatmaps_that_failed(job, cohort, labels, monkeypatch):
    bad = Said((), {"failed": [{"slide": "a"}]}, ExitCode.SOME_FAILED)
    monkeypatch.setattr(stages, "heatmap", lambda *_, **__: bad)
    code, said = slidemil_json("run", cohort.slides[0].path.parent, "-o", job, "-l", labels)
    assert (code, said["status"], said["problem"]) == (3, "partial", "1 heatmap could not be drawn"), said


def test_a_stored_prediction_that_says_otherwise_is_refused_at_every_run(job):
    table = job / "predictions/gated_abmil/slides.csv"
    with table.open() as file:
        rows = list(csv.DictReader(file))
    rows[0]["p_positive"] = str(0.5 * float(rows[0]["p_positive"]) + 0.2)
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    for more in ([], ["--force"]):  # also where the picture is there already
        code, said = slidemil("heatmap", job, "-m", "gated_abmil", "--slide", rows[0]["slide_id"], "-q", *more)
        assert code == 7, said
        assert rows[0]["slide_id"] in said


def test_probabilities_agree_by_their_logit():
    class Named:
        name = "m"

        class model:
            task = Classification(("a", "b"))

    check_prediction(Named, "s", [2e-10, 1 - 2e-10], {"p_a": "2e-10", "p_b": "1"})
    for stored in ({"p_a": "0.001"}, {"p_a": "0.00021"}):
        with pytest.raises(Exception, match="its stored prediction"):
            check_prediction(Named, "s", [2e-4, 1 - 2e-4], stored)


def test_signed_values_share_one_scale_around_zero_and_attention_has_fixed_ends():
    values = np.array([-1.0, 0.5, 4.0], np.float32)
    shown = shown_values("lrp", values, "log-ratio", "tumor")
    assert "red speaks for tumor" in shown.normalization
    assert shown.limits == (-4.0, 4.0)
    assert shown.colors == SIGNED
    attention = np.full(8, 1 / 8, np.float32)
    assert np.allclose(shown_values("attention", attention, "log-ratio", "x").values, 0)
    assert shown_values("attention", attention, "log-ratio", "x").limits == (-6.0, 6.0)
    assert shown_values("attention", values, "rank", "x").limits == (0.0, 1.0)
    assert "raw" in shown_values("attention", attention, "raw", "x").normalization


def test_true_regions_are_read_from_what_other_programs_write(tmp_path):
    square = {"type": "Polygon", "coordinates": [[[0, 0], [4, 0], [4, 4], [0, 4], [0, 0]]]}
    feature = {"type": "Feature", "properties": {}, "geometry": square}
    collection = {"type": "FeatureCollection", "features": [feature]}
    for tree in (square, feature, [feature], collection):
        (tmp_path / "a.geojson").write_text(json.dumps(tree), encoding="utf-8-sig")
        assert [one.area for one in true_regions(tmp_path, "ab")["a"]] == [16]
    (tmp_path / "b.geojson.gz").write_bytes(gzip.compress(json.dumps(collection).encode()))
    assert [one.area for one in true_regions(tmp_path, "b")["b"]] == [16]
    for text in ("no JSON", "3", '[{"type": "Feature", "geometry": null}]', '{"type": "Polygon", "coordinates": 3}'):
        (tmp_path / "a.geojson").write_text(text)
        with pytest.raises(UsageError, match=r"a\.geojson: no GeoJSON of regions .* Export it anew"):
            true_regions(tmp_path, "a")
    (tmp_path / "b.geojson.gz").write_bytes(b"no gzip")
    with pytest.raises(UsageError, match="no GeoJSON"):
        true_regions(tmp_path, "b")


def test_ranking_is_by_mean_place_with_ties_shared():
    rows = {
        "attention": {"deletion": 0.2, "insertion": 0.9, "localization_auc": 0.9},
        "lrp": {"deletion": 0.5, "insertion": 0.9, "localization_auc": 0.95},
        "gradcam": {"deletion": 0.1, "insertion": 0.1, "localization_auc": None},
    }
    rows = {method: {"method": method, **row} for method, row in rows.items()}
    assert [row["method"] for row in ranked(rows)] == ["lrp", "attention", "gradcam"]
    assert set(METHODS) >= set(rows)


@pytest.fixture(scope="module")
def with_network(cohort, labels, tmp_path_factory):
    """The same slides through a small network, so that pixels are within reach."""
    job = tmp_path_factory.mktemp("network") / "job"
    options = ("--encoder", "test_resnet", "--weights", "random:0", "--tile", "160", "--stain", "macenko")
    options += ("--set", "quality=false")
    code, said = slidemil("run", cohort.slides[0].path.parent, "-o", job, "-l", labels, "-q", *options, "--epochs", 8)
    assert code == 0, said
    return job


def test_gradcam_on_a_job_with_a_network(with_network):
    one = sorted(folder(with_network).glob("*.scores.h5"))[0].name.removesuffix(".scores.h5")
    code, said = slidemil_json("heatmap", with_network, "-m", "gated_abmil", "--method", "gradcam,lrp", "--slide", one)
    assert code == 0, said
    with h5py.File(folder(with_network) / f"{one}.scores.h5") as file:
        values = file["gradcam"][()]
        assert json.loads(file["gradcam"].attrs["facts"])["features_apart"] < 0.01  # the pixels that were encoded
    assert values.std() > 0
    assert (folder(with_network) / f"gradcam_tiles/{one}.jpg").is_file()


def test_the_viewer_explains_a_tile_as_the_heatmap_does(with_network):
    """The mean of the map of one clicked tile is the tile's value in the file, which was computed with all others."""
    from pipelines.viewer.cam import TileCam
    from pipelines.viewer.slides import Slides

    one = next(path.stem for path in sorted(with_network.glob("*/features_*/*.h5")))
    code, said = slidemil_json("heatmap", with_network, "-m", "gated_abmil", "--method", "gradcam,lrp", "--slide", one)
    assert code == 0, said
    job = JobFolder(with_network)
    entry = next(entry for entry in read_manifest(job).entries if entry.slide_id == one)
    with h5py.File(folder(with_network) / f"{one}.scores.h5") as file:
        values, places = file["gradcam"][()], file["coords"][()].tolist()
    pixels = Slides()
    cam = TileCam(job, pixels)
    for row in (int(values.argmax()), int(values.argmin())):
        found = cam.of(entry, "gated_abmil", tuple(places[row]), None)
        assert len(found["values"]) == found["rows"] * found["columns"]
        assert np.mean(found["values"]) == pytest.approx(values[row], rel=1e-3, abs=1e-7)
    with pytest.raises(UsageError, match="no tile at 1, 2"):
        cam.of(entry, "gated_abmil", (1, 2), None)
    pixels.close()


def test_a_slide_that_moved_is_named_and_other_weights_are_refused(with_network, tmp_path):
    job = shutil.copytree(with_network, tmp_path / "moved" / "deeper" / "job")  # the relative paths lead nowhere now
    one = sorted(folder(job).glob("*.scores.h5"))[1].name.removesuffix(".scores.h5")
    code, said = slidemil("heatmap", job, "-m", "gated_abmil", "--method", "gradcam", "--slide", one, "-q")
    assert code == 3, said
    assert "manifest.csv" in said
    code, said = slidemil(
        "heatmap", with_network, "-m", "gated_abmil", "--method", "gradcam", "--weights", "random:1", "-q"
    )
    assert code == 7, said
    assert "weights" in said


def test_a_model_of_another_encoder_is_refused_with_both_mends(finished, with_network):
    """The model lies in another job: its features came from a network, those here from descriptors."""
    before = digests(finished)
    code, said = slidemil("heatmap", finished, "-m", with_network / "models" / "gated_abmil", "-q")
    assert code == 7, said
    assert "made differently" in said
    assert "Extract the slides with the same settings, or use a model that was trained on these features" in said
    assert "Traceback" not in said
    assert not set(digests(finished)) - set(before), "nothing is drawn"


def test_a_job_without_features_is_named_with_the_mend(job):
    for folder in job.glob("*/features_*"):
        shutil.rmtree(folder)
    code, said = slidemil("heatmap", job, "-m", "gated_abmil", "-q")
    assert code == 2, said
    assert "slidemil extract" in said
    assert "Traceback" not in said


def test_concepts_of_example_tiles_are_scored(with_network, tmp_path):
    rng = np.random.default_rng(0)
    for name, color in {"brown": (120, 70, 30), "pale": (235, 230, 235)}.items():
        (tmp_path / name).mkdir()
        for k in range(8):
            pixels = np.clip(np.array(color) + rng.normal(0, 12, (160, 160, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{k}.png")
    code, said = slidemil_json("heatmap", with_network, "-m", "gated_abmil", "--concepts", tmp_path)
    assert code == 0, said
    assert [one["concept"] for one in said["concepts"]] == ["brown", "pale"]
    for one in said["concepts"]:
        assert 0 <= one["score"] <= 1
        assert 0 < one["p"] <= 1
        assert one["accuracy"] > 0.9
    (tmp_path / "pale" / "bad.png").write_bytes(b"no picture")
    code, said = slidemil("heatmap", with_network, "-m", "gated_abmil", "--concepts", tmp_path, "-q")
    assert code == 2
    assert "bad.png" in said
