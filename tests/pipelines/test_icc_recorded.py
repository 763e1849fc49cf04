"""Colour profiles in a job: which was there, what was done about it, and that the two are never mixed."""

from __future__ import annotations

import json

import numpy as np
import pytest
from _command import slidemil
from _icc import expected, linear_profile
from _slides import with_profile, write_aperio

import wsi
from pipelines import extract_stage, stages
from pipelines.config import load_settings
from pipelines.errors import CheckFailedError, UsageError
from pipelines.features import read_features, same_passport
from pipelines.manifest import find_slides
from pipelines.reread import SlideTiles


class MeanColor:
    id, dim, input_size, device = "toy", 3, 64, "cpu"

    def __call__(self, pixels):
        return pixels.reshape(len(pixels), -1, 3).mean(axis=1).astype(np.float32)

    def passport(self):
        return {"id": self.id}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(extract_stage, "encoders_of", lambda settings, *, offline=False: [MeanColor()])
    shades = np.random.default_rng(0).integers(90, 200, (8, 8, 3)) * np.array([1.0, 0.6, 0.9])
    image = np.kron(shades, np.ones((64, 64, 1))).astype(np.uint8)
    (tmp_path / "slides").mkdir()
    write_aperio(tmp_path / "slides" / "a.svs", image, **with_profile(linear_profile()))
    return tmp_path / "slides"


def extract(folder, icc):
    settings = load_settings(assignments=[f"icc={icc}"], options={"tile": 64, "dtype": "float32"})
    outcome = stages.extract([folder], folder.parent / "job", settings, quiet=True)
    return outcome, lambda: read_features(next((folder.parent / "job").rglob("features_toy/a.h5")))


def test_features_follow_the_profile_and_the_file_says_so(folder):
    outcome, read = extract(folder, "none")
    assert outcome.done == ("a",)
    plain = read()
    assert "icc" not in plain.passport
    assert plain.attributes["icc_profile"] == "linear scanner"
    outcome, read = extract(folder, "srgb")
    assert outcome.done == ("a",)
    assert "icc" in outcome.warnings[0]
    srgb = read()
    assert srgb.passport["icc"] == "srgb"
    assert len(srgb.attributes["icc_sha256"]) == 64
    both = {tuple(xy): row for row, xy in enumerate(plain.xy.tolist())}
    rows = [(both[tuple(xy)], row) for row, xy in enumerate(srgb.xy.tolist()) if tuple(xy) in both]
    assert len(rows) > 30
    for one, other in rows:  # each tile has one shade, but for what JPEG makes of it
        assert abs(srgb.features[other] - expected(plain.features[one][None])[0]).max() < 3
    with pytest.raises(CheckFailedError, match="icc: None against 'srgb'"):
        same_passport(plain.passport, srgb.passport, what="a")
    (entry,) = find_slides([folder]).entries
    again = SlideTiles(entry, srgb, range(5)).all()  # what explanations show is what was encoded
    assert np.allclose(MeanColor()(again), srgb.features[:5], atol=1e-3)


def test_a_damaged_profile_is_a_warning_or_a_failed_slide(folder):
    path = folder / "a.svs"
    data = path.read_bytes()
    path.write_bytes(data.replace(b"acsp", b"nope"))
    outcome, read = extract(folder, "none")
    assert outcome.done == ("a",)
    table = (folder.parent / "job" / "slides.csv").read_text()
    assert "its color profile is damaged" in table
    assert read().attributes["icc_profile"] == "it is no ICC profile"
    outcome, _ = extract(folder, "srgb")
    assert outcome.failed[0].slide == "a"
    assert "--set icc=none" in outcome.failed[0].mend


def test_a_scan_and_info_say_what_a_damaged_profile_costs(folder):
    path = folder / "a.svs"
    path.write_bytes(path.read_bytes().replace(b"acsp", b"nope"))
    for verb in ("scan", "info"):
        code, said = slidemil(verb, path)
        assert (code, "--set icc=srgb" in said, "fail" in said) == (0, True, True), said


def test_info_tells_of_the_profile(folder, tmp_path):
    code, said = slidemil("info", folder / "a.svs")
    assert code == 0
    assert "colors      profile `linear scanner`, applied with --set icc=srgb" in said
    code, said = slidemil("info", folder / "a.svs", "--json")
    row = json.loads(said)["slides"][0]
    assert (row["icc_profile"], row["icc_problem"]) == ("linear scanner", None)


def test_any_other_choice_is_refused_before_work():
    with pytest.raises(UsageError, match="icc must be one of none, srgb, not adobe"):
        load_settings(assignments=["icc=adobe"])


def test_the_choices_are_those_of_the_readers():
    from pipelines.config import ICC
    from wsi.icc import CHOICES

    assert ICC == CHOICES
    assert wsi.open_slide.__kwdefaults__["icc"] == load_settings().extract.icc
