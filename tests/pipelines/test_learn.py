"""Who is trained on and who is held out, and what the tables say of it."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from _command import slidemil, slidemil_json

from mil import HEADS
from mil.heads.options import options_of
from mil.tasks import Classification
from pipelines import learn
from pipelines.config import LearnSettings
from pipelines.feature_sets import choose_folder, load_features
from pipelines.jobfolder import JobFolder
from pipelines.labels import Labels
from pipelines.predictions import _cases
from pipelines.progress import Quiet


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def features(job, cohort):
    folder = JobFolder(job)
    return load_features(folder, choose_folder(folder, None), [slide.slide_id for slide in cohort.slides])


def labels_of(cohort, **columns):
    return Labels(
        label={s.slide_id: s.label for s in cohort.slides},
        case=columns.get("case", {s.slide_id: s.case_id for s in cohort.slides}),
        split=columns.get("split", {}),
    )


@pytest.mark.parametrize("seed", range(4))
def test_without_a_split_patients_are_never_torn(features, cohort, seed):
    sides = learn.divide(features, labels_of(cohort), LearnSettings(seed=seed))
    side_of = sides.side_of()
    assert set(side_of.values()) == {"train", "val", "test"}
    for slide in cohort.slides:
        others = {side_of[s.slide_id] for s in cohort.slides if s.case_id == slide.case_id}
        assert len(others) == 1, slide.case_id


def test_the_trainer_gets_training_and_validation_slides_and_no_others(features, cohort, monkeypatch, job):
    seen = {}
    real = learn.mil.train

    def spy(train, validation, task, settings, on_epoch=None, **more):
        seen["train"] = {bag.ids[0] for bag in train.bags}
        seen["val"] = {bag.ids[0] for bag in validation.bags}
        return real(train, validation, task, settings, on_epoch=on_epoch, **more)

    monkeypatch.setattr(learn.mil, "train", spy)
    split = {s.slide_id: s.split for s in cohort.slides}
    learn.train(JobFolder(job), "spied", features, labels_of(cohort, split=split), LearnSettings(epochs=2), Quiet())
    for side in ("train", "val"):
        assert seen[side] == {s.slide_id for s in cohort.slides if s.split == side}


def test_labels_of_test_slides_do_not_reach_the_model(job, cohort, tmp_path):
    """The same training with the test labels turned round gives the same weights, byte for byte."""
    for name, flip in (("one", False), ("two", True)):
        turned = {"negative": "positive", "positive": "negative"}
        table = tmp_path / f"{name}.csv"
        lines = [
            f"{s.slide_id},{s.case_id},{turned[s.label] if flip and s.split == 'test' else s.label},{s.split}"
            for s in cohort.slides
        ]
        table.write_text("slide_id,case_id,label,split\n" + "\n".join(lines) + "\n")
        code, said = slidemil("train", job, "-l", table, "--name", name, "--epochs", 3, "-q")
        assert code == 0, said
    models = [(job / "models" / name / "model.safetensors").read_bytes() for name in ("one", "two")]
    assert models[0] == models[1]


def test_changed_training_settings_are_noticed(job, labels):
    for seed, new in ((0, False), (5, True), (5, False)):
        code, said = slidemil_json("train", job, "-l", labels, "--seed", seed)
        assert (code, said["new"]) == (0, new)


def test_options_of_a_head_are_noticed_kept_and_refused_where_it_does_not_take_them(job, labels):
    def trained(options):
        code, said = slidemil_json("train", job, "-l", labels, "--epochs", 1, "--set", f"head_options={options}")
        assert code == 0, said
        return said["new"]

    assert [trained(text) for text in ("hidden=16,dropout=0.5", "dropout=0.5, hidden=16.0", "hidden=8")] == [
        True,
        False,
        True,
    ]
    config = json.loads((job / "models" / "gated_abmil" / "config.json").read_text())
    assert config["head"]["options"] == {"hidden": 8, "attention": 32, "dropout": 0.25}
    assert "Head `gated_abmil`: hidden 8," in (job / "models" / "gated_abmil" / "README.md").read_text()
    for wrong, words in {
        "hiden=8": "no option is called 'hiden'. Did you mean hidden? By default: hidden=64, attention=32, dropout",
        "layers=2,hidden=0": "'layers'. hidden=0 is no whole number from 1 to 65536.",
        "hidden=8.5": "hidden=8.5 is no whole number",
    }.items():
        for verb in (("train", job), ("run", job / "nowhere", "-o", job)):
            code, said = slidemil(*verb, "-l", labels, "--set", f"head_options={wrong}")
            assert (code, words in " ".join(said.split())) == (2, True), said
    assert config == json.loads((job / "models" / "gated_abmil" / "config.json").read_text())


def test_the_page_says_what_every_head_takes():
    page = (Path(__file__).parents[2] / "docs" / "learn.md").read_text(encoding="utf-8")
    said = {
        name: row[2].strip()
        for row in re.finditer(r"^\| (`[a-z`, -]+`) \| (hidden=.*) \|$", page, re.MULTILINE)
        for name in row[1].replace("`", "").split(", ")
    }
    takes = {name.replace("_", "-"): options_of(head) for name, head in HEADS.items()}
    assert all(takes[name].pop("dropout") == 0.25 for name in takes)
    assert said == {name: ", ".join(f"{key}={value:g}" for key, value in mine.items()) for name, mine in takes.items()}


def test_predictions_say_which_slides_the_model_was_made_with(job, cohort):
    (job / "predictions" / "gated_abmil" / "slides.csv").unlink()
    code, _ = slidemil("predict", job, "-m", "gated_abmil")
    assert code == 0
    table = {row["slide_id"]: row for row in rows(job / "predictions" / "gated_abmil" / "slides.csv")}
    for slide in cohort.slides:
        row = table[slide.slide_id]
        assert row["split"] == slide.split
        assert ("was made with this slide" in row["warning"]) == (slide.split != "test")
    cases = {row["case_id"]: row["split"] for row in rows(job / "predictions" / "gated_abmil" / "cases.csv")}
    assert cases == {s.case_id: s.split for s in cohort.slides}
    text = (job / "models" / "gated_abmil" / "cohort.json").read_text()
    assert not any(s.slide_id in text or s.case_id in text for s in cohort.slides), "names travel with the model"


def test_labels_come_later_stay_when_a_table_is_lost_and_judge_a_model_elsewhere(job, cohort, labels, tmp_path):
    """A job of another hospital: no model, no labels; its slides go by other names than those of the training."""
    other, model = shutil.copytree(job, tmp_path / "other"), job / "models" / "gated_abmil"
    shutil.copytree(model, tmp_path / "m")
    strangers = {"0" * 20: "train"}
    (tmp_path / "m" / "cohort.json").write_text(json.dumps({"slides": strangers, "cases": strangers}))
    for name in ("models", "predictions"):
        shutil.rmtree(other / name)
    odd = tmp_path / "odd.csv"
    named = [f"{s.slide_id};ä-{s.case_id};{s.label if i else 'unsure'}" for i, s in enumerate(cohort.slides)]
    odd.write_text("\n".join(["slide_id;case_id;diagnosis", *named]) + "\n")
    code, said = slidemil("evaluate", other, "-m", tmp_path / "m")
    assert (code, "has predicted nothing here. Run `slidemil predict`" in " ".join(said.split())) == (2, True)
    assert slidemil("predict", other, "-m", tmp_path / "m")[0] == 0
    code, said = slidemil("evaluate", other, "-m", tmp_path / "m")
    assert (code, "give their labels with --labels" in " ".join(said.split())) == (2, True), said
    table = other / "predictions" / "m" / "slides.csv"
    code, said = slidemil_json("evaluate", other, "-m", tmp_path / "m", "-l", odd, "--target", "diagnosis")
    assert (code, said["score"]["n"], said["which"]) == (0, 11, "labelled slides that the model has not seen"), said
    first = said["score"]["slides"]["auc"]["value"]
    code, said = slidemil_json("predict", other, "-m", tmp_path / "m", "-l", odd, "--target", "diagnosis")
    assert (code, said["new"]) == (0, True), said
    assert any("1 slides have a label that m does not know" in text for text in said["warnings"])
    told = {row["slide_id"]: (row["case_id"], row["label"]) for row in rows(table)}
    assert sum(told[s.slide_id] == (f"ä-{s.case_id}", s.label) for s in cohort.slides) == 11
    assert slidemil_json("evaluate", other, "-m", tmp_path / "m")[1]["score"]["slides"]["auc"]["value"] == first
    table.unlink()
    assert slidemil("predict", other, "-m", tmp_path / "m")[0] == 0
    assert {row["slide_id"]: (row["case_id"], row["label"]) for row in rows(table)} == told
    code, said = slidemil("predict", other, "-m", tmp_path / "m", "-l", labels, "--target", "case_id")
    assert (code, "Name the column with --target" in " ".join(said.split())) == (2, True), said


def test_another_model_of_the_same_name_takes_no_ones_place(job, tmp_path, labels):
    from shutil import copytree

    stranger = Path(copytree(job / "models" / "gated_abmil", tmp_path / "gated_abmil"))
    config = json.loads((stranger / "config.json").read_text())
    (stranger / "config.json").write_text(json.dumps(config | {"threshold": 0.123}))
    before = (job / "predictions" / "gated_abmil" / "slides.csv").read_bytes()
    code, said = slidemil_json("predict", job, "-m", stranger)
    assert code == 0
    assert said["model"].startswith("gated_abmil__")
    assert (job / "predictions" / "gated_abmil" / "slides.csv").read_bytes() == before


def test_predicting_a_selection_keeps_the_other_predictions(job, tmp_path):
    table = job / "predictions" / "gated_abmil" / "slides.csv"
    before = rows(table)
    (tmp_path / "one.csv").write_text(f"slide_id\n{before[0]['slide_id']}\n")
    code, said = slidemil_json("predict", job, "-m", "gated_abmil", "--select", tmp_path / "one.csv")
    assert (code, said["slides"], said["in_table"]) == (0, 1, len(before)), said
    assert rows(table) == before


def test_a_changed_threshold_changes_the_predictions(job):
    from pipelines.records import read_record, seal

    config = job / "models" / "gated_abmil" / "config.json"
    folder = JobFolder(job)
    record = read_record(folder, config)
    config.write_text(json.dumps(json.loads(config.read_text()) | {"threshold": 1.1}))
    seal(folder, config, record.parts)
    code, _ = slidemil("predict", job, "-m", "gated_abmil")
    assert code == 0
    assert {row["pred"] for row in rows(job / "predictions" / "gated_abmil" / "slides.csv")} == {"negative"}


def test_cases_are_the_mean_of_their_slides_cut_at_the_threshold():
    def slide(case, positive, label):
        return {
            "case_id": case,
            "p_negative": 1 - positive,
            "p_positive": positive,
            "label": label,
            "pred": "x",
            "split": "test",
        }

    table = [slide("A", 0.9, "positive"), slide("A", 0.2, "positive"), slide("B", 0.3, ""), slide("C", 0.6, "negative")]
    found = {row["case_id"]: row for row in _cases(table, Classification(("negative", "positive")), 0.58)}
    assert found["A"]["p_positive"] == pytest.approx(0.55)
    assert [found[case]["pred"] for case in "ABC"] == ["negative", "negative", "positive"]
    assert found["A"]["n_slides"] == 2
    three = [{"case_id": "D", "p_a": 0.2, "p_b": 0.5, "p_c": 0.3, "label": "", "pred": "b", "split": ""}]
    assert _cases(three, Classification(("a", "b", "c")), None)[0]["pred"] == "b"


def test_a_training_that_cannot_be_done_hides_nothing_of_the_extraction(cohort, tmp_path):
    """One slide is broken and there are too few patients: both are said, and the report is written."""
    slides = tmp_path / "slides"
    slides.mkdir()
    for slide in cohort.slides[:3]:
        shutil.copy(slide.path, slides)
    (slides / "bad.svs").write_text("no slide")
    table = tmp_path / "labels.csv"
    table.write_text("slide_id,label\n" + "".join(f"{s.slide_id},{s.label}\n" for s in cohort.slides[:3]))
    code, said = slidemil_json("run", slides, "-o", tmp_path / "job", "-l", table)
    assert code == 3
    assert [failure["slide"] for failure in said["failed"]] == ["bad"]
    assert "patient" in said["problem"]
    assert (tmp_path / "job" / "report.html").is_file()
    (slides / "bad.svs").unlink()
    code, said = slidemil_json("run", slides, "-o", tmp_path / "job", "-l", table)
    assert code == 2
    assert said["status"] == "partial"


def test_three_classes_train_and_predict(job, cohort, tmp_path):
    names = ("high", "low", "mid")
    cases = sorted({s.case_id for s in cohort.slides})
    side = dict(zip(cases, ("train", "train", "train", "train", "val", "test"), strict=True))
    table = tmp_path / "l.csv"
    table.write_text(
        "slide_id,case_id,grade,split\n"
        + "".join(f"{s.slide_id},{s.case_id},{names[i % 3]},{side[s.case_id]}\n" for i, s in enumerate(cohort.slides))
    )
    code, said = slidemil("train", job, "-l", table, "--target", "grade", "--name", "grade", "--epochs", 3, "-q")
    assert code == 0, said
    check_that_the_column_is_known_again(job, table)
    for row in rows(job / "predictions" / "grade" / "slides.csv"):
        chances = [float(row[f"p_{name}"]) for name in names]
        assert sum(chances) == pytest.approx(1, abs=1e-6)
        assert row["pred"] == names[int(np.argmax(chances))]


def check_that_the_column_is_known_again(job, table):
    """Of a model named "grade": the column of its training serves `predict` and `evaluate`, or is missed by name."""
    model = job / "models" / "grade"
    assert json.loads((model / "config.json").read_text())["target"] == "grade"
    assert "The labels stood in `grade`" in (model / "README.md").read_text()
    (job / "predictions" / "grade" / "slides.csv").unlink()
    (job / "predictions" / "grade" / "labels.csv").unlink()
    code, said = slidemil_json("predict", job, "-m", "grade", "-l", table)
    assert code == 0, said
    told = {row["slide_id"]: row["label"] for row in rows(job / "predictions" / "grade" / "slides.csv")}
    assert told == {row["slide_id"]: row["grade"] for row in rows(table)}
    assert slidemil("evaluate", job, "-m", "grade", "-l", table, "--by", "case_id")[0] == 0
    other = table.with_name("other.csv")
    other.write_text(table.read_text().replace("grade", "diagnosis"))
    for verb in ("predict", "evaluate"):
        code, said = slidemil(verb, job, "-m", "grade", "-l", other)
        words = "Name yours with --target. grade was trained on `grade`."
        assert (code, words in " ".join(said.split())) == (2, True), said
        assert slidemil(verb, job, "-m", "grade", "-l", other, "--target", "diagnosis")[0] == 0


def test_a_head_without_attention_trains_and_predicts_and_says_what_to_train_for_a_heatmap(job, cohort, labels):
    code, said = slidemil("run", cohort.slides[0].path.parent, "-o", job, "-l", labels, "--head", "mean", "-q")
    assert code == 0, said
    assert (job / "predictions/mean/slides.csv").is_file()
    assert not (job / "heatmaps/mean").exists()
    code, said = slidemil("heatmap", job, "--model", "mean", "-q")
    assert code == 2
    assert "--head gated-abmil" in said
