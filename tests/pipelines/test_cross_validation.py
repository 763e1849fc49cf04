"""Folds, tasks and evaluation through the command, on a finished job."""

from __future__ import annotations

import csv
import json

import h5py
import numpy as np
import pytest
import sklearn.metrics as sk
from _command import slidemil, slidemil_json
from PIL import Image

from pipelines import questions
from pipelines.errors import UsageError
from pipelines.jobfolder import JobFolder
from pipelines.labels import Labels
from pipelines.predictions import digest_of
from pipelines.records import read_record


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def table(cohort, tmp_path):
    """A label table with further columns: a number, a time and an event, a site; one cell is empty."""
    path = tmp_path / "more.csv"
    lines = ["slide_id,case_id,label,age,months,dead,site"]
    for i, slide in enumerate(cohort.slides):
        positive = slide.label == "positive"
        age = "" if i == 0 else f"{60 + 20 * positive + i % 3}"
        lines.append(
            f"{slide.slide_id},{slide.case_id},{slide.label},{age},{12 - 8 * positive + i % 4},{int(positive)},s{i % 2}"
        )
    path.write_text("\n".join(lines) + "\n")
    return path


def test_every_slide_is_answered_by_a_model_that_never_saw_its_patient(job, cohort, table):
    command = ("train", job, "-l", table, "--folds", 2, "--repeats", 2, "--epochs", 3, "--head", "mean")
    code, said = slidemil_json(*command)
    assert code == 0, said
    assert (said["model"], said["folds"]) == ("mean_cv", 4)
    found = rows(job / "predictions" / "mean_cv" / "folds.csv")
    assert len(found) == 2 * len(cohort.slides)
    for row in found:
        own = json.loads((job / "models" / f"mean_cv_{row['fold']}" / "cohort.json").read_text())
        from pipelines.learn import masked

        assert own["slides"][masked(row["slide_id"])] == "test"
        assert own["cases"][masked(row["case_id"])] == "test"
    truth = [row["label"] == "positive" for row in found]
    pooled = sk.roc_auc_score(truth, [float(row["p_positive"]) for row in found])
    assert said["score"]["slides"]["auc"]["value"] == pytest.approx(pooled)
    named = [row["pred"] == "positive" for row in found]  # each by the threshold of its fold's model
    assert said["score"]["slides"]["sensitivity"]["value"] == pytest.approx(sk.recall_score(truth, named))
    assert set(said["score"]["folds"]["auc"]["each"]) == {"r0f0", "r0f1", "r1f0", "r1f1"}
    code, again = slidemil_json(
        "train", job, "-l", table, "--folds", 2, "--repeats", 2, "--epochs", 3, "--head", "mean"
    )
    assert (code, again["new"]) == (0, False)
    # together the models predict as one, by their mean, and say which slides they have seen
    assert slidemil("predict", job, "-m", "mean_cv")[0] == 0
    together = rows(job / "predictions" / "mean_cv" / "slides.csv")
    assert all("was made with this slide" in row["warning"] for row in together)
    one = together[0]["slide_id"]
    each = []
    for fold in ("r0f0", "r0f1", "r1f0", "r1f1"):
        assert slidemil("predict", job, "-m", f"mean_cv_{fold}")[0] == 0
        mine = {row["slide_id"]: row for row in rows(job / "predictions" / f"mean_cv_{fold}" / "slides.csv")}
        each.append(float(mine[one]["p_positive"]))
    assert float(together[0]["p_positive"]) == pytest.approx(np.mean(each))


def test_a_head_is_taught_by_the_models_of_its_own_fold_and_by_none_that_saw_its_held_out_slides(job, table):
    teacher = ("train", job, "-l", table, "--folds", 2, "--epochs", 1, "--head")
    for head in ("mean", "abmil"):
        assert slidemil(*teacher, head)[0] == 0
    command = (*teacher, "mean", "--name", "student", "--teacher", "mean_cv,abmil_cv", "--set", "teacher_share=1")
    code, said = slidemil_json(*command)
    assert (code, said["model"]) == (0, "student"), said
    models = job / "models"
    for fold in ("r0f0", "r0f1"):
        config = json.loads((models / f"student_{fold}" / "config.json").read_text())
        assert config["taught_by"] == {"members": 2, "temperature": 2.0, "share": 1.0}
        cuts = [json.loads((models / f"{t}_cv_{fold}" / "config.json").read_text()) for t in ("mean", "abmil")]
        assert config["threshold"] == pytest.approx(np.mean([c["threshold"] for c in cuts]))
        assert "learned from what 2 model(s) say" in (models / f"student_{fold}" / "README.md").read_text()
    assert slidemil_json(*command)[1]["new"] is False
    record = read_record(JobFolder(job), models / "student_r0f0" / "config.json")  # a changed teacher is noticed
    assert record.parts["teachers"] == sorted(digest_of(models / f"{t}_cv_r0f0") for t in ("mean", "abmil"))
    code, said = slidemil("train", job, "-l", table, "--teacher", "mean_cv", "--seed", 3)
    assert (code, "it was made with slides that are held out here" in " ".join(said.split())) == (2, True), said
    code, said = slidemil("train", job, "-l", table, "--target", "age", "--task", "regression", "--teacher", "mean_cv")
    assert (code, "only classes can be taught" in said) == (2, True), said


def test_models_of_patients_answer_a_case_by_all_its_slides_as_one_bag(job, cohort, tmp_path):
    """Against the model itself on the joined features."""
    import mil
    from mil.bag_set import join
    from pipelines.feature_sets import choose_folder, load_features

    cases = sorted({slide.case_id for slide in cohort.slides})
    table = tmp_path / "cases.csv"
    lines = [f"{s.slide_id},{s.case_id},{'ab'[cases.index(s.case_id) % 2]}" for s in cohort.slides]
    table.write_text("\n".join(["slide_id,case_id,label", *lines]) + "\n")
    loaded = load_features(JobFolder(job), choose_folder(JobFolder(job), None), [s.slide_id for s in cohort.slides])
    patients = ("train", job, "-l", table, "--head", "gated-abmil", "--epochs", 2, "--set", "per_patient=true")
    code, said = slidemil_json(*patients, "--name", "one")
    assert code == 0, said
    assert said["metrics"]["n"] == said["metrics"]["n_patients"]
    model = mil.load_model(job / "models" / "one")
    for row in rows(job / "predictions" / "one" / "cases.csv"):
        mine = sorted(s.slide_id for s in cohort.slides if s.case_id == row["case_id"])
        answer = mil.predict(model, join([loaded.bag(name) for name in mine], "x"))[0].answer
        assert float(row["p_b"]) == pytest.approx(answer[1], abs=1e-6)
        assert row["rule"] == "all slides of the case as one bag"
    code, said = slidemil_json(*patients, "--folds", 2, "--name", "cv")
    assert code == 0, said
    found = rows(job / "predictions" / "cv" / "fold_cases.csv")
    assert len(found) == len(cases)
    truth, p = [row["label"] == "b" for row in found], [float(row["p_b"]) for row in found]
    assert said["score"]["patients"]["figures"]["auc"]["value"] == pytest.approx(sk.roc_auc_score(truth, p))
    assert said["score"]["patients"]["rule"] == "all slides of the case as one bag"


def test_evaluate_says_figures_curves_comparison_and_leaks(job, table):
    for head in ("mean", "gated-abmil"):
        code, said = slidemil("train", job, "-l", table, "--folds", 2, "--epochs", 3, "--head", head)
        assert code == 0, said
    code, said = slidemil_json(
        "evaluate", job, "-m", "mean_cv", "--against", "gated_abmil_cv", "-l", table, "--by", "site"
    )
    assert code == 0, said
    score = said["score"]["slides"]
    assert set(score) >= {"auc", "average_precision", "balanced_accuracy", "f1", "sensitivity", "specificity", "brier"}
    assert set(said["score"]["groups"]["site"]) == {"s0", "s1"}
    assert set(said["against"]["figures"]) == set(score)
    assert said["leakage"]["patients_on_two_sides"] == []
    folder = job / "predictions" / "mean_cv"
    assert {row["curve"] for row in rows(folder / "curves.csv")} == {"roc", "precision_recall", "calibration"}
    assert np.asarray(Image.open(folder / "curves.png")).std() > 5
    before = (folder / "curves.png").read_bytes()
    assert slidemil("evaluate", job, "-m", "mean_cv")[0] == 0
    assert (folder / "curves.png").read_bytes() == before


def test_a_copied_slide_in_another_fold_is_told(job, table, cohort):
    """One slide's features are put in the place of another patient's."""
    from shutil import copyfile

    from pipelines.records import seal

    code, said = slidemil_json("train", job, "-l", table, "--folds", 2, "--epochs", 1, "--head", "mean")
    found = {row["slide_id"]: row["fold"] for row in rows(job / "predictions" / "mean_cv" / "folds.csv")}
    first = next(iter(found))
    other = next(name for name, fold in found.items() if fold != found[first])
    folder = next(job.glob("*/features_*"))
    record = read_record(JobFolder(job), folder / f"{other}.h5")
    facts = read_record(JobFolder(job), folder / f"{first}.h5").facts
    copyfile(folder / f"{first}.h5", folder / f"{other}.h5")
    seal(JobFolder(job), folder / f"{other}.h5", record.parts, facts)
    code, said = slidemil_json("evaluate", job, "-m", "mean_cv")
    assert code == 0, said
    pairs = {frozenset((one["first"], one["second"])): one["shared"] for one in said["leakage"]["suspicions"]}
    assert pairs == {frozenset((first, other)): 1.0}
    assert any(text.startswith("LEAK?") for text in said["warnings"])


@pytest.mark.parametrize(
    ("target", "task", "columns", "figure", "explained"),
    [
        ("age", "regression", ["age"], "mae", "age"),
        ("months+dead", "cox", ["risk"], "c_index", "risk"),
        (
            "label,age",
            "classification,regression",
            ["label:p_negative", "label:p_positive", "age:age"],
            "auc",
            "label:positive",
        ),
    ],
)
def test_other_questions_train_predict_are_judged_and_explained(job, table, target, task, columns, figure, explained):
    asked = ("--target", target, "--task", task)
    code, said = slidemil_json("train", job, "-l", table, *asked, "--epochs", 2, "--name", "q")
    assert code == 0, said
    found = rows(job / "predictions" / "q" / "slides.csv")
    assert all(row["pred"] and all(np.isfinite(float(row[c])) for c in columns) for row in found)
    code, said = slidemil_json("evaluate", job, "-m", "q")
    assert code == 0, said
    score = said["score"] if "slides" in said["score"] else said["score"]["label"]
    assert figure in score["slides"]
    wanted = ("heatmap", job, "-m", "q", "--method", "attention,lrp", "--limit", 1)
    for drawn in (1, 0):  # held against the stored answer, also where it was drawn already
        code, said = slidemil_json(*wanted)
        assert (code, said.get("drawn")) == (0, drawn), said
    with h5py.File(next((job / "heatmaps" / "q").glob("*.scores.h5"))) as file:
        logit = json.loads(file["lrp"].attrs["facts"])["bias"] + file["lrp"][()].sum(dtype=np.float64)
        assert logit == pytest.approx(float(file["coords"].attrs["logit"]), abs=1e-4)
        assert file["coords"].attrs["target"] == explained
    code, said = slidemil(*wanted, "--class", "nothing")
    assert (code, explained in said) == (2, True), said
    code, said = slidemil(*wanted, "--compare")
    assert (code, "Leave --compare out" in " ".join(said.split())) == (2, True), said
    assert slidemil("report", job)[0] == 0


def test_the_epochs_are_a_table_and_lines_and_a_watched_training_is_scored_four_ways(job, table):
    code, said = slidemil("train", job, "-l", table, "--name", "w", "--epochs", 4, "--set", "watch=true")
    assert code == 0, said
    folder = job / "models" / "w"
    history = json.loads((folder / "config.json").read_text())["training"]["history"]
    assert [json.loads(line) for line in (folder / "epochs.jsonl").read_text().splitlines()] == history
    assert [int(row["number"]) for row in rows(folder / "epochs.csv")] == [1, 2, 3, 4]
    plain = slidemil("train", job, "-l", table, "--name", "v", "--epochs", 4)
    assert plain[0] == 0
    assert (job / "models" / "v" / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    ways = slidemil_json("evaluate", job, "-m", "w")[1]["honesty"]["accuracy"]
    assert ways["honest"] <= ways["best_epoch"] <= ways["best_threshold"]


def test_a_stopped_training_goes_on(job, table, monkeypatch):
    """Killed in its sixth epoch: the second run begins there, and the model is the one of an undisturbed run."""
    from pipelines import epochs

    monkeypatch.setattr(epochs, "_SECONDS", 0.0)
    seen = []
    real = epochs.EpochLog.epoch

    def dies(self, epoch):
        seen.append(epoch.number)
        if epoch.number == 6 and len(seen) == 6:
            raise KeyboardInterrupt
        real(self, epoch)

    monkeypatch.setattr(epochs.EpochLog, "epoch", dies)
    command = ("train", job, "-l", table, "--epochs", 8, "--head", "mean")
    assert slidemil(*command, "--name", "stopped")[0] == 130
    assert slidemil(*command, "--name", "stopped")[0] == 0
    assert seen == [1, 2, 3, 4, 5, 6, 6, 7, 8]
    assert slidemil(*command, "--name", "whole")[0] == 0
    models = [(job / "models" / name / "model.safetensors").read_bytes() for name in ("stopped", "whole")]
    assert models[0] == models[1]
    assert not list((job / ".state" / "training").glob("*"))


def test_splits_of_other_tools_are_taken(job, cohort, table, tmp_path):
    cases = sorted({s.case_id for s in cohort.slides})
    folds = [(cases[2:], cases[:2]), (cases[:-2], cases[-2:])]
    split = {"splits": [{"train_patients": fit, "test_patients": test} for fit, test in folds]}
    (tmp_path / "splits.json").write_text(json.dumps(split))
    code, said = slidemil_json(
        "train", job, "-l", table, "--splits", tmp_path / "splits.json", "--epochs", 1, "--head", "mean"
    )
    assert code == 0, said
    found = rows(job / "predictions" / "mean_cv" / "folds.csv")
    assert {row["case_id"] for row in found if row["fold"] == "f0"} == set(cases[:2])


@pytest.mark.parametrize(
    ("target", "task", "words"),
    [
        ("label", "prophecy", "'prophecy' is no task"),
        ("label,age", "classification", "asks 2 questions"),
        ("age", "cox", "time\\+event"),
        ("label", "regression", "wanted a number"),
        ("far", "regression", "wanted a number"),
        ("age+zero", "cox", "says '5', wanted 1 or 0"),
        ("none+age", "discrete-hazard", "`none` says '0', wanted a time over 0"),
    ],
)
def test_questions_that_make_no_sense_are_refused_with_the_mend(target, task, words):
    cells = {"a": {"label": "x", "age": "1", "zero": "5", "none": "0", "far": "inf"}}
    labels = Labels({"a": "x"}, {"a": "a"}, {}, target=target, cells=cells)
    with pytest.raises(UsageError, match=words):
        questions.ask(labels, task)
