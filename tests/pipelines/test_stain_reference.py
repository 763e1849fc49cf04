"""References from the command: fitted over a folder, taken by an extraction, part of what decides its features."""

from __future__ import annotations

import json

import numpy as np
import pytest
from _command import slidemil, slidemil_json
from _slides import write_aperio
from PIL import Image

import stain
from pipelines.features import read_features

DYES = np.array([[0.65, 0.70, 0.29], [0.09, 0.95, 0.28]])


def stained(seed, strength, side=512):
    """H&E by the law of Beer and Lambert, blurred a little as tissue is; a margin of glass."""
    rng = np.random.default_rng(seed)
    amounts = rng.gamma(1.2, strength, (side // 4, side // 4, 2)).repeat(4, 0).repeat(4, 1)
    amounts[:64] = 0
    return np.clip(245 * np.exp(-amounts @ DYES), 0, 255).astype(np.uint8)


@pytest.fixture
def slides(tmp_path):
    folder = tmp_path / "slides"
    folder.mkdir()
    for number, strength in enumerate((0.5, 0.7, 0.9)):
        write_aperio(folder / f"s{number}.svs", stained(number, strength))
    return folder


def test_a_cohort_reference_is_fitted_and_used(slides, tmp_path):
    """The middle slide is the reference; the features change with the file's content, and say so."""
    reference = tmp_path / "reference.json"
    code, said = slidemil_json("stain", "fit", slides, "-o", reference)
    assert (code, said["status"], said["reference"]["slides"]) == (0, "done", 3)
    made = stain.CohortReference.from_json(json.loads(reference.read_text()))
    for found, true in zip(made.target.vectors, DYES, strict=True):
        assert np.degrees(np.arccos(np.clip(true @ found / np.linalg.norm(true), -1, 1))) < 5

    def extract(*more):
        code, said = slidemil_json(
            "extract", slides, "-o", tmp_path / "job", "--tile", 128, "--set", "processes=0", *more
        )
        assert code == 0, said
        (file,) = (tmp_path / "job").glob("*/features_*/s1.h5")
        return said, read_features(file)

    asked = ("--stain", "macenko", "--stain-reference", reference)
    _, plain = extract("--stain", "macenko")
    said, first = extract(*asked)
    assert any("encoder.stain_reference" in warning for warning in said["warnings"])
    assert first.passport["stain_reference"].startswith("sha256:")
    assert first.passport["stain_bytes"] == stain.BYTES
    assert "stain_reference" not in plain.passport
    params = json.loads(first.attributes["stain_params"])
    assert params["target"] == made.target.to_json()
    assert params["status"] == "ok"
    assert not np.array_equal(first.features, plain.features)
    assert extract(*asked)[0]["slides"]["skipped"] == 3

    Image.fromarray(stained(9, 0.6)).save(tmp_path / "image.png")
    _, by_image = extract("--stain", "vahadane", "--stain-reference", tmp_path / "image.png")
    assert by_image.passport["stain_reference"] != first.passport["stain_reference"]


def test_images_serve_as_a_cohort_too(tmp_path):
    for number in range(3):
        Image.fromarray(stained(number, 0.6)).save(tmp_path / f"{number}.png")
    (tmp_path / "broken.png").write_bytes(b"no image")
    code, said = slidemil_json("stain", "fit", tmp_path, "-o", tmp_path / "r.json", "--method", "reinhard")
    assert (code, said["status"]) == (3, "partial")
    assert said["reference"]["left_out"] == {"unreadable": 1}
    assert said["reference"]["slides"] == 3


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--stain", "macenko", "--stain-reference", "nowhere.json"), "slidemil stain fit"),
        (("--stain-reference", "tiatoolbox-target"), "needs a stain normalization"),
        (("--stain", "reinhard", "--stain-reference", "OWN"), "fitted by 'macenko'"),
        (("--stain", "macenko", "--stain-reference", "BROKEN"), "no stain reference"),
        (("--stain", "macenko", "--stain-reference", "WHITE"), "too little tissue"),
    ],
)
def test_a_reference_that_cannot_serve_is_refused_before_any_slide_is_read(tmp_path, slides, options, told):
    made = stain.combine("macenko", [stain.REFERENCES["tiatoolbox-target"].macenko])
    (tmp_path / "own.json").write_text(json.dumps(made.to_json()))
    (tmp_path / "broken.json").write_text('{"kind": "stain reference"}')
    Image.new("RGB", (64, 64), "white").save(tmp_path / "white.png")
    places = {
        word: tmp_path / f"{word.lower()}{end}"
        for word, end in (("OWN", ".json"), ("BROKEN", ".json"), ("WHITE", ".png"))
    }
    code, text = slidemil("extract", slides, "-o", tmp_path / "job", *(places.get(one, one) for one in options))
    assert code == 2
    assert told in text
    assert not (tmp_path / "job" / "manifest.csv").exists()
