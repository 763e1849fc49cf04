"""Quality and hand-drawn tissue through a whole job: columns, pictures, tiles, and what an edit makes anew."""

from __future__ import annotations

import csv
import json
import shutil

import h5py
import numpy as np
import pytest
from _command import slidemil, slidemil_json
from _planted import SIDE, blurred, section
from _slides import write_aperio
from shapely.geometry import box, mapping, shape

from pipelines.config import ARTIFACTS, load_settings
from pipelines.errors import UsageError
from pipelines.report import render

NAMES = ("left", "right")


@pytest.fixture(scope="module")
def slides(tmp_path_factory):
    """Two slides of real tissue, 1.5 mm a side; half of the second is out of focus."""
    folder = tmp_path_factory.mktemp("slides")
    picture, _ = section("crc")
    half = np.broadcast_to(np.arange(SIDE) > 1500, (SIDE, SIDE))
    for name, pixels in zip(NAMES, (picture, blurred(picture, half, 5)), strict=True):
        cut = np.ascontiguousarray(pixels[750:2250, 750:2250])
        write_aperio(folder / f"{name}.svs", cut, mpp=1.0, power=10, compressionargs={"level": 90})
    return folder


@pytest.fixture(scope="module")
def done(slides, tmp_path_factory):
    job = tmp_path_factory.mktemp("job") / "job"
    code, said = slidemil("extract", slides, "-o", job, "--mpp", "1.0", "-q")
    assert code == 0, said
    return job


@pytest.fixture
def job(done, tmp_path):
    return shutil.copytree(done, tmp_path / "job")


def table(job):
    with (job / "slides.csv").open(newline="") as file:
        return {row["slide_id"]: row for row in csv.DictReader(file)}


def again(slides, job, *options):
    return slidemil_json("extract", slides, "-o", job, "--mpp", "1.0", *options)


def patches(job, name):
    with h5py.File(next(job.glob(f"*/patches/{name}_patches.h5"))) as file:
        return {key: file[key][()] for key in file}


def test_each_slide_has_its_shares_its_picture_and_a_warning_where_much_is_flagged(done):
    rows = table(done)
    for name in NAMES:
        assert all(0 <= float(rows[name][f"{artifact}_share"]) <= 1 for artifact in ARTIFACTS)
        assert (done / "quality" / f"{name}.jpg").read_bytes()[:2] == b"\xff\xd8"
    assert float(rows["left"]["blur_share"]) < 0.03
    assert rows["left"]["warning"] == ""
    assert 0.4 < float(rows["right"]["blur_share"]) < 0.6
    assert "blur: " in rows["right"]["warning"]


def test_the_report_shows_what_is_flagged(done):
    page = render(done).decode()
    assert "right: blur" in page
    assert "quality of left" not in page


def test_tiles_know_their_piece_their_tissue_and_what_is_flagged(done):
    found = patches(done, "right")
    count = len(found["coords"])
    assert found["quality"].shape == (count, len(ARTIFACTS))
    assert found["tissue_share"].shape == found["piece"].shape == (count,)
    assert set(found["piece"]) == {0}
    x = found["coords"][:, 0] + 112
    blur = found["quality"][:, 0]
    assert blur[x > 950].mean() > 0.9
    assert blur[x < 550].mean() < 0.1


def test_what_is_excluded_makes_no_tiles_and_is_made_anew(slides, job):
    before = len(patches(job, "right")["coords"])
    code, said = again(slides, job, "--set", "exclude=[blur]", "--min-tissue", "0.5")
    assert (code, said["slides"]["done"]) == (0, 2)
    found = patches(job, "right")["coords"]
    assert 0 < len(found) < 0.75 * before
    assert found[:, 0].max() + 112 < 900


def test_quality_can_be_left_out(slides, job):
    code, said = again(slides, job, "--set", "quality=false")
    assert (code, said["slides"]["done"]) == (0, 2)
    assert table(job)["left"]["blur_share"] == ""
    assert set(patches(job, "left")) == {"coords", "piece", "tissue_share"}


def test_outlines_drawn_as_they_were_detected_give_the_same_tiles(slides, job, tmp_path):
    masks = tmp_path / "masks"
    masks.mkdir()
    before = {name: patches(job, name)["coords"] for name in NAMES}
    outlines = {name: json.loads((job / "contours_geojson" / f"{name}.geojson").read_text()) for name in NAMES}
    for name, outline in outlines.items():
        del outline["sha256_as_detected"]  # as if QuPath had saved it
        (masks / f"{name}.geojson").write_text(json.dumps(outline))
    code, said = again(slides, job, "--masks", masks)
    assert (code, said["slides"]["done"]) == (0, 2)
    for name in NAMES:
        assert np.array_equal(patches(job, name)["coords"], before[name])
        assert json.loads((job / "contours_geojson" / f"{name}.geojson").read_text()) == outlines[name]


def test_an_edit_redoes_that_slide_alone(slides, job, tmp_path):
    masks = tmp_path / "masks"
    masks.mkdir()
    drawn = box(200, 300, 900, 1000)
    exclude = {"type": "Feature", "geometry": mapping(box(200, 300, 500, 1000))}
    exclude["properties"] = {"classification": {"name": "Exclude"}}
    tree = [{"type": "Feature", "geometry": mapping(drawn), "properties": {"classification": "Tissue"}}]
    file = masks / "right.geojson"
    file.write_text(json.dumps(tree))
    code, said = again(slides, job, "--masks", masks)
    assert (code, said["slides"]["done"], said["slides"]["skipped"]) == (0, 1, 1)
    assert any("1 of 2 slides take their tissue from" in text for text in said["warnings"])
    inside = len(patches(job, "right")["coords"])
    outline = json.loads((job / "contours_geojson" / "right.geojson").read_text())
    assert shape(outline["features"][0]["geometry"]).area == pytest.approx(drawn.area, rel=0.02)

    file.write_text(json.dumps([*tree, exclude]))
    code, said = again(slides, job, "--masks", masks)
    assert (said["slides"]["done"], said["slides"]["skipped"]) == (1, 1)
    assert any("tissue.mask" in text for text in said["warnings"])
    assert 0 < len(patches(job, "right")["coords"]) < inside

    code, said = again(slides, job, "--masks", masks)
    assert (said["slides"]["done"], said["slides"]["skipped"]) == (0, 2)
    code, said = again(slides, job)
    assert (said["slides"]["done"], said["slides"]["skipped"]) == (1, 1)


def test_copied_outlines_that_nobody_edited_redo_nothing(slides, job, tmp_path):
    masks = shutil.copytree(job / "contours_geojson", tmp_path / "masks")
    code, said = again(slides, job, "--masks", masks)
    assert (code, said["slides"]["done"], said["slides"]["skipped"]) == (0, 0, 2)
    assert any("2 are as they were detected" in text for text in said["warnings"])

    file = masks / "left.geojson"
    outline = json.loads(file.read_text())
    outline["features"][0]["geometry"]["coordinates"][0][1][0] -= 40  # one corner of one outline
    file.write_text(json.dumps(outline))
    code, said = again(slides, job, "--masks", masks)
    assert (code, said["slides"]["done"], said["slides"]["skipped"]) == (0, 1, 1)
    drawn = json.loads((job / "contours_geojson" / "left.geojson").read_text())
    assert "sha256_as_detected" not in drawn  # a copy of this is drawn, too


def test_an_outline_that_cannot_be_used_fails_its_slide_alone(slides, job, tmp_path):
    masks = tmp_path / "masks"
    masks.mkdir()
    (masks / "left.geojson").write_text("{")
    code, said = again(slides, job, "--masks", masks)
    assert code == 3
    (failed,) = said["failed"]
    assert failed["slide"] == "left"
    assert "cannot be read as GeoJSON" in failed["cause"]
    assert "QuPath" in failed["mend"]


def test_a_folder_of_masks_that_cannot_be_meant_is_refused(slides, job, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "stranger.geojson").write_text("[]")
    for folder, text in (
        (tmp_path / "nowhere", "no such folder"),
        (empty, "named after a slide"),
        (job / "contours_geojson", "writes anew"),
    ):
        code, said = slidemil("extract", slides, "-o", job, "--mpp", "1.0", "--masks", folder, "-q")
        assert code == 2, said
        assert text in " ".join(said.split())


@pytest.mark.parametrize("text", ["exclude=smoke", "mask_origin=corner", "exclude=3.5"])
def test_settings_that_cannot_be_meant_are_refused(text):
    with pytest.raises(UsageError, match=text.partition("=")[0]):
        load_settings(assignments=[text])


def test_exclude_without_quality_is_refused():
    with pytest.raises(UsageError, match="needs quality"):
        load_settings(assignments=["exclude=blur", "quality=false"])


def test_exclude_is_taken_as_a_list_and_as_text():
    for text in ("exclude=[pen, blur]", "exclude=pen,blur", "exclude=pen, blur"):
        assert load_settings(assignments=[text]).extract.excluded == ("pen", "blur")
