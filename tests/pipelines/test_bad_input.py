"""Bad input: one clear error that names the file and the mend, and nothing else is lost."""

from __future__ import annotations

import csv
import re
import shutil

import h5py
import numpy as np
import pytest
import tifffile
from _command import digests, slidemil, slidemil_json
from _slides import write_aperio

from pipelines.demo_svs import write_svs


def tissue_like(side=1024, seed=0):
    """Pink noise on glass: enough to count as tissue."""
    rng = np.random.default_rng(seed)
    picture = np.full((side, side, 3), 243, np.uint8)
    inner = slice(side // 8, -side // 8)
    noise = rng.integers(-25, 25, (side, side, 1))
    picture[inner, inner] = np.clip(np.array([200, 120, 180]) + noise, 0, 255)[inner, inner]
    return picture


def set_mpp(path, text):
    """Overwrite the description's MPP, in place and of the same length."""
    data = path.read_bytes()
    changed, count = re.subn(rb"MPP = \d\.\d{4}", b"MPP = " + text.encode().ljust(6), data)
    assert count >= 1
    path.write_bytes(changed)


def bad_slide(path, kind):
    if kind == "text file":
        path.write_text("this is no slide\n" * 100)
    elif kind == "empty file":
        path.write_bytes(b"")
    elif kind == "cut at half":
        write_svs(path, tissue_like(), mpp=0.5)
        data = path.read_bytes()
        path.write_bytes(data[: len(data) // 2])
    elif kind == "no µm/px":
        tifffile.imwrite(path, tissue_like(), tile=(256, 256), compression="jpeg", metadata=None)
    else:
        write_svs(path, tissue_like(), mpp=0.5)
        set_mpp(path, kind.removeprefix("µm/px "))


BAD = ["text file", "empty file", "cut at half", "no µm/px", "µm/px 0.0", "µm/px -0.5", "µm/px nan", "µm/px 1e9"]


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_slide_is_a_row_with_its_cause_and_the_others_go_on(tmp_path, kind):
    slides = tmp_path / "slides"
    slides.mkdir()
    write_svs(slides / "good.svs", tissue_like(seed=1), mpp=0.5)
    bad_slide(slides / "bad.svs", kind)
    code, said = slidemil_json("extract", slides, "-o", tmp_path / "job")
    assert code == 3
    assert said["status"] == "partial"
    assert said["slides"] == {"found": 2, "done": 1, "failed": 1, "skipped": 0}
    (failure,) = said["failed"]
    assert "bad.svs" in failure["cause"]
    assert failure["mend"]
    assert len(failure["cause"]) + len(failure["mend"]) < 500
    if "µm/px" in kind:
        assert "--slide-mpp" in failure["mend"]
    with (tmp_path / "job" / "slides.csv").open(newline="") as file:
        table = {row["slide_id"]: row for row in csv.DictReader(file)}
    assert table["good"]["status"] == "done"
    assert int(table["good"]["n_tiles"]) > 0
    assert (table["bad"]["status"], table["bad"]["cause"]) == ("failed", failure["cause"])


def test_a_tile_that_no_decoder_takes_is_missing_from_a_slide_without_a_pyramid(tmp_path):
    """The one below the middle, where a slide is first looked at; its tissue is sought on its own tiles."""
    path = write_aperio(tmp_path / "flat.svs", tissue_like(), compressionargs={"level": 90})
    with tifffile.TiffFile(path) as tiff:
        offset, count = tiff.pages[0].dataoffsets[10], tiff.pages[0].databytecounts[10]
    data = path.read_bytes()
    path.write_bytes(data[:offset] + bytes(count) + data[offset + count :])
    options = ("-o", tmp_path / "job", "--tile", 64, "--set", "processes=0")
    code, said = slidemil_json("extract", path, *options)
    assert code == 3
    assert "16 of 144 tiles could not be read" in said["failed"][0]["cause"]
    code, said = slidemil_json("extract", path, *options, "--max-bad-tiles", 0.12)
    assert code == 0, said
    with (tmp_path / "job" / "slides.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["n_tiles"], row["n_missing"]) == ("128", "16")
    assert "6.2% of the slide cannot be read" in row["warning"]
    with h5py.File(next((tmp_path / "job").glob("*/features_*/flat.h5"))) as file:
        missing = {(int(one["x"]), int(one["y"])) for one in file["missing"][()]}
    assert missing == {(x, y) for x in range(512, 768, 64) for y in range(512, 768, 64)}


@pytest.mark.parametrize("kind", [kind for kind in BAD if "µm/px" in kind])
def test_slide_mpp_mends_a_slide_without_resolution_and_is_recorded(tmp_path, kind):
    bad_slide(tmp_path / "bad.svs", kind)
    code, said = slidemil("extract", tmp_path / "bad.svs", "-o", tmp_path / "job", "--slide-mpp", 0.5, "-q")
    assert code == 0, said
    with (tmp_path / "job" / "slides.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["mpp_x"], row["mpp_source"].lstrip("'")) == ("0.5", "--slide-mpp")  # no formula for a spreadsheet


def test_good_slides_are_the_same_bytes_with_and_without_bad_ones(tmp_path):
    alone, mixed = tmp_path / "alone", tmp_path / "mixed"
    for folder in (alone, mixed):
        folder.mkdir()
        write_svs(folder / "good.svs", tissue_like(seed=1), mpp=0.5)
    bad_slide(mixed / "bad.svs", "cut at half")
    slidemil("extract", alone, "-o", tmp_path / "job1", "-q")
    slidemil("extract", mixed, "-o", tmp_path / "job2", "-q")
    one, two = digests(tmp_path / "job1"), digests(tmp_path / "job2")
    features = "20x_224px_0px_overlap/features_descriptors/good.h5"
    assert one[features] == two[features]


def test_no_tissue_is_a_result_with_its_reason(tmp_path):
    write_svs(tmp_path / "white.svs", np.full((1024, 1024, 3), 243, np.uint8), mpp=0.5)
    code, said = slidemil_json("extract", tmp_path / "white.svs", "-o", tmp_path / "job")
    assert (code, said["status"]) == (0, "done")
    code, again = slidemil_json("extract", tmp_path / "white.svs", "-o", tmp_path / "job")
    assert again["slides"]["skipped"] == 1
    with (tmp_path / "job" / "slides.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["status"], row["n_tiles"]) == ("done", "0")
    assert "no tissue" in row["warning"]


def test_a_folder_without_slides(tmp_path):
    (tmp_path / "readme.md").write_text("hello")
    code, said = slidemil("run", tmp_path, "-o", tmp_path / "job")
    assert code == 4
    assert "readme.md" in said
    assert not (tmp_path / "job").exists()


def test_an_encoder_with_a_typo(tmp_path):
    write_svs(tmp_path / "a.svs", tissue_like(), mpp=0.5)
    code, said = slidemil("extract", tmp_path / "a.svs", "-o", tmp_path / "job", "--encoder", "resnet81")
    assert code == 2
    assert "did you mean" in said.lower()
    assert "resnet18" in said


def test_an_encoder_without_weights_names_the_three_ways(tmp_path):
    write_svs(tmp_path / "a.svs", tissue_like(), mpp=0.5)
    code, said = slidemil("extract", tmp_path / "a.svs", "-o", tmp_path / "job", "--encoder", "resnet18", "--offline")
    assert code == 6
    for way in ("--weights", "local-dir:", "hub"):
        assert way in said, way


def test_labels_that_match_no_slide(job, tmp_path):
    table = tmp_path / "labels.csv"
    table.write_text("slide_id,label\nother-1,positive\nother-2,negative\n")
    code, said = slidemil("train", job, "-l", table)
    assert code == 4
    assert "other-1" in said
    assert "DEMO-01-A" in said


def test_labels_are_checked_before_the_slides_are_read(cohort, tmp_path):
    table = tmp_path / "labels.csv"
    table.write_text("slide_id,label\nother-1,positive\n")
    code, _ = slidemil("run", cohort.slides[0].path.parent, "-o", tmp_path / "job", "-l", table)
    assert code == 4
    assert not (tmp_path / "job").exists()


def write_labels(path, rows):
    path.write_text("slide_id,case_id,label,split\n" + "".join(",".join(row) + "\n" for row in rows))
    return path


def test_a_patient_in_two_folds(job, cohort, tmp_path):
    rows = [(s.slide_id, s.case_id, s.label, "train" if s.slide_id.endswith("A") else "test") for s in cohort.slides]
    code, said = slidemil("train", job, "-l", write_labels(tmp_path / "l.csv", rows), "--force")
    assert code == 2
    assert "DEMO-01" in said
    assert "patient" in said


def test_one_class_only(job, cohort, tmp_path):
    rows = [(s.slide_id, s.case_id, "positive", "") for s in cohort.slides]
    code, said = slidemil("train", job, "-l", write_labels(tmp_path / "l.csv", rows))
    assert code == 2
    assert "class" in said


def test_two_slides_of_one_stem_keep_apart(tmp_path):
    for number, folder in enumerate(("a", "b")):
        (tmp_path / "slides" / folder).mkdir(parents=True)
        write_svs(tmp_path / "slides" / folder / "s.svs", tissue_like(seed=number), mpp=0.5)
    code, said = slidemil_json("extract", tmp_path / "slides", "-o", tmp_path / "job")
    assert code == 0
    assert len([name for name in said["outputs"] if name.endswith(".h5")]) == 2
    assert any("2 slides are called s" in text for text in said["warnings"])


def test_a_slide_of_the_same_name_added_later_overwrites_nothing(tmp_path):
    for number, folder in enumerate(("a", "b")):
        (tmp_path / folder).mkdir()
        write_svs(tmp_path / folder / "s.svs", tissue_like(seed=number), mpp=0.5)
    slidemil("extract", tmp_path / "a", "-o", tmp_path / "job", "-q")
    before = digests(tmp_path / "job")["20x_224px_0px_overlap/features_descriptors/s.h5"]
    code, said = slidemil_json("extract", tmp_path / "b", "-o", tmp_path / "job")
    assert code == 0
    assert any("another s" in text for text in said["warnings"])
    assert digests(tmp_path / "job")["20x_224px_0px_overlap/features_descriptors/s.h5"] == before


def test_a_moved_cohort_is_not_done_again(tmp_path):
    (tmp_path / "a").mkdir()
    write_svs(tmp_path / "a" / "s.svs", tissue_like(), mpp=0.5)
    slidemil("extract", tmp_path / "a", "-o", tmp_path / "job", "-q")
    shutil.move(tmp_path / "a", tmp_path / "b")
    _, said = slidemil_json("extract", tmp_path / "b", "-o", tmp_path / "job")
    assert said["slides"]["skipped"] == 1


def test_a_verb_on_a_folder_that_is_no_job(tmp_path):
    for verb in ("status", "report"):
        code, said = slidemil(verb, tmp_path)
        assert code == 2
        assert "no job lies here" in said


def test_an_unknown_model_names_those_there_are(job):
    code, said = slidemil("predict", job, "--model", "gated_abmli")
    assert code == 2
    assert "gated_abmil" in said


def test_a_config_with_mistakes_names_all(tmp_path):
    config = tmp_path / "c.yaml"
    config.write_text("tyle: 3\nmpp: wide\n")
    write_svs(tmp_path / "a.svs", tissue_like(), mpp=0.5)
    code, said = slidemil("extract", tmp_path / "a.svs", "-o", tmp_path / "job", "-c", config)
    assert code == 2
    assert "tyle" in said
    assert "wide" in said


def never_extracts(monkeypatch):
    from pipelines import stages

    def extract(*_, **__):
        raise AssertionError("slides were read before the mistake was said")

    monkeypatch.setattr(stages, "extract", extract)


def test_mistakes_are_said_before_slides_are_read(finished, cohort, tmp_path, monkeypatch):
    never_extracts(monkeypatch)
    slides, job = cohort.slides[0].path.parent, tmp_path / "job"
    good = [(s.slide_id, s.case_id, s.label, s.split) for s in cohort.slides]
    one_class = [(s.slide_id, s.case_id, "positive", "") for s in cohort.slides]
    torn = [(s.slide_id, s.case_id, s.label, "train" if s.slide_id.endswith("A") else "test") for s in cohort.slides]
    odd = [(s.slide_id, s.case_id, s.label, "tset") for s in cohort.slides]
    model = finished / "models" / "gated_abmil"
    cases = [
        (2, "l.csv", ["-l", write_labels(tmp_path / "l.csv", one_class)]),
        (2, "t.csv", ["-l", write_labels(tmp_path / "t.csv", torn)]),
        (2, "tset", ["-l", write_labels(tmp_path / "o.csv", odd)]),
        (2, "gated", ["-l", write_labels(tmp_path / "g.csv", good), "--head", "gatedabmil"]),
        (7, "tile", ["-m", model, "--tile", 256]),
    ]
    for code, part, options in cases:
        found, said = slidemil("run", slides, "-o", job, *options, "-q")
        assert (found, part in said) == (code, True), (options, said)
    assert not job.exists()


def test_a_device_that_is_not_there(tmp_path):
    import torch

    write_svs(tmp_path / "a.svs", tissue_like(), mpp=0.5)
    code, said = slidemil("extract", tmp_path / "a.svs", "-o", tmp_path / "job", "--device", "gpu")
    assert (code, "--device gpu" in said) == (2, True)
    if not torch.cuda.is_available():
        code, said = slidemil("extract", tmp_path / "a.svs", "-o", tmp_path / "job", "--device", "cuda:3")
        assert (code, "CUDA" in said) == (5, True)


def test_a_slide_without_resolution_is_refused_before_a_pixel_is_read(tmp_path, monkeypatch):
    import wsi

    bad_slide(tmp_path / "bad.svs", "no µm/px")
    monkeypatch.setattr(wsi, "find_tissue", lambda *_: pytest.fail("pixels were read"))
    code, said = slidemil("extract", tmp_path / "bad.svs", "-o", tmp_path / "job", "-q")
    assert (code, "--slide-mpp" in said) == (3, True)


def test_a_link_gives_way_to_the_file_itself(tmp_path):
    (tmp_path / "slides").mkdir()
    write_svs(tmp_path / "slides" / "real.svs", tissue_like(), mpp=0.5)
    (tmp_path / "slides" / "a-link.svs").symlink_to(tmp_path / "slides" / "real.svs")
    code, said = slidemil_json("extract", tmp_path / "slides", "-o", tmp_path / "job")
    assert code == 0
    assert any("a-link.svs was given more than once and is taken once, as real.svs" in w for w in said["warnings"])


def test_status_after_a_kill_counts_what_is_finished(job):
    (job / "slides.csv").unlink()
    code, text = slidemil("status", job, "--json")
    assert code == 0
    assert '"done": 12' in text


def test_a_training_without_held_out_patients_says_so(job, cohort, tmp_path):
    rows = [(s.slide_id, s.case_id, s.label, "val" if s.split == "val" else "train") for s in cohort.slides]
    table = write_labels(tmp_path / "l.csv", rows)
    code, said = slidemil("train", job, "-l", table, "--name", "all", "--epochs", 2, "-q")
    assert code == 0
    assert "no patient is held out" in said
