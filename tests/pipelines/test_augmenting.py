"""Colors changed by chance from the command: images for training encoders, features to see what a model bears."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from _command import slidemil, slidemil_json
from _shared import shared_path
from PIL import Image

import stain
from pipelines.augmenting import Augmentation, augmentation, fits
from pipelines.config import load_settings
from pipelines.errors import UsageError

NAMES = ("tia_source_256", "gigapath_01581x_25327y", "gigapath_01581x_25583y")


@pytest.mark.parametrize("text", ["hed:0.1:7", "hed:0.25:0:tile", "rand:1:3"])
def test_what_is_written_is_read(text):
    found = augmentation(text)
    assert isinstance(found, Augmentation)
    assert str(found) == text
    assert fits(text) == text.startswith("hed")


@pytest.mark.parametrize(
    "text",
    ["hed", "hed:0.1", "hed:1:0", "hed:0:0", "hed:nan:0", "hed:x:0", "hed:0.1:-1", "hed:0.1:1:tiles", "lab:0.1:1"],
)
def test_what_cannot_be_meant_is_refused(text, tmp_path):
    with pytest.raises(UsageError, match="augment"):
        load_settings(options={"augment": text})
    code, said = slidemil("stain", "apply", tmp_path, "-o", tmp_path / "out", "--augment", text)
    assert (code, "--augment" in said) == (2, True)


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    (folder / "sub").mkdir(parents=True)
    for name in NAMES:
        shutil.copy(shared_path(f"data/tiles/stain/{name}.png"), folder / f"{name}.png")
    shutil.copy(folder / f"{NAMES[0]}.png", folder / "sub" / "other.png")
    return folder


def written(folder):
    return {path.relative_to(folder).as_posix(): np.asarray(Image.open(path)) for path in folder.rglob("*.png")}


@pytest.mark.parametrize("kind", ["hed:0.3", "rand:1"])
@pytest.mark.parametrize("method", [(), ("--method", "macenko")])
def test_images_get_other_colors_by_seed_and_name(images, tmp_path, kind, method):
    before = {name: np.asarray(Image.open(images / name).convert("RGB")) for name in ("tia_source_256.png",)}
    made = []
    for run, seed in enumerate((1, 1, 2)):
        out = tmp_path / str(run)
        code, said = slidemil_json("stain", "apply", images, "-o", out, "--augment", f"{kind}:{seed}", *method)
        assert (code, said["unchanged"], len(said["outputs"])) == (0, [], 4)
        assert json.loads((out / "stain.json").read_text())["applied"]["augment"] == f"{kind}:{seed}"
        made.append(written(out))
    name = "tia_source_256.png"
    assert made[0][name].shape == before[name].shape
    assert not np.array_equal(made[0][name], before[name])
    assert all(np.array_equal(made[0][one], made[1][one]) for one in made[0])
    assert not np.array_equal(made[0][name], made[2][name])
    assert not np.array_equal(made[0][name], made[0]["sub/other.png"]), "a copy by another name has its own colors"


def test_the_library_gives_the_same(images, tmp_path):
    assert slidemil("stain", "apply", images, "-o", tmp_path / "out", "--augment", "hed:0.2:5")[0] == 0
    records = {one["file"]: one for one in json.loads((tmp_path / "out" / "stain.json").read_text())["files"]}
    for name in NAMES:
        image = np.asarray(Image.open(images / f"{name}.png").convert("RGB"))
        params = stain.fit("macenko", image)
        assert records[name]["augment_stains"] == params.to_json()
        wanted = augmentation("hed:0.2:5").change_image(image[None], name, params)[0]
        np.testing.assert_array_equal(written(tmp_path / "out")[f"{name}.png"], wanted)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--augment", "hed:0.1:1", "--model", "m"), "not with --model"),
        (("--augment", "hed:0.1:1:tile"), "Leave :tile out"),
        (("--augment", "hed:0.1:1", "--backwards"), "--backwards is for --model"),
        ((), "either --method"),
        (("--augment", "rand:1:1", "--limit", 1), "two images or more, and 1 fit"),
    ],
)
def test_mistakes_are_told(images, tmp_path, arguments, told):
    code, said = slidemil("stain", "apply", images, "-o", tmp_path / "out", *arguments)
    assert code == 2
    assert told in " ".join(said.split())


def test_a_model_is_asked_about_changed_colors_and_says_so(finished, cohort, tmp_path):
    model = finished / "models" / "gated_abmil"
    slides = cohort.slides[0].path.parent
    extract = ("extract", slides, "-o", tmp_path / "job", "--limit", 2, "--set", "augment=hed:0.2:3", "-q")
    assert slidemil(*extract, "--set", "quality=false")[0] == 0
    code, said = slidemil_json("predict", tmp_path / "job", "--model", model)
    assert code == 0, said
    assert any("changed by chance (hed:0.2:3)" in note for note in said["warnings"])
    rows = (tmp_path / "job" / "predictions" / model.name / "slides.csv").read_text().splitlines()
    assert len(rows) == 3
