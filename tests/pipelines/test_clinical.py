"""Clinical variables and confounders through the command, on a finished job."""

from __future__ import annotations

import csv
import json

import pytest
from _command import slidemil, slidemil_json


def rows(path):
    with path.open(newline="") as file:
        return {row["slide_id"]: row for row in csv.DictReader(file)}


@pytest.fixture
def table(cohort, tmp_path):
    """Labels with a split, an age, a stage with an empty cell, and a site that goes across the labels."""
    path = tmp_path / "more.csv"
    lines = ["slide_id,case_id,label,split,age,stage,site"]
    cases = sorted({slide.case_id for slide in cohort.slides})
    for i, slide in enumerate(cohort.slides):
        age, stage = 50 + 3 * i, "" if i == 3 else ("I", "II")[i % 2]
        site = f"s{cases.index(slide.case_id) // 2 % 2}"
        lines.append(f"{slide.slide_id},{slide.case_id},{slide.label},{slide.split},{age},{stage},{site}")
    path.write_text("\n".join(lines) + "\n")
    return path


def only(table, path, change):
    """The table of the clinical variables alone, its cells changed."""
    with table.open(newline="") as file:
        found = list(csv.DictReader(file))
    lines = ["slide_id,age,stage", *(",".join([row["slide_id"], *change(row["age"], row["stage"])]) for row in found)]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_late_fusion_through_the_command_needs_the_table_again_and_says_what_is_missing(job, table, tmp_path):
    command = ("train", job, "-l", table, "--clinical", "age,stage", "--fusion", "late", "--epochs", 3, "--name", "c")
    code, said = slidemil_json(*command)
    assert code == 0, said
    folder = job / "predictions" / "c"
    first = rows(folder / "slides.csv")
    config = json.loads((job / "models" / "c" / "config.json").read_text())
    assert [one["name"] for one in config["clinical"]["variables"]] == ["age", "stage"]
    assert slidemil_json(*command)[1]["new"] is False
    card = (job / "models" / "c" / "README.md").read_text()
    assert "| `stage` | `I`, `II` |" in card
    assert f"on {said['metrics']['n']} held-out slides of {said['metrics']['n_patients']} patients" in card
    # heatmaps hold the stored prediction against the model: they read the same cells
    assert slidemil("heatmap", job, "-m", "c", "--limit", 1, "-q")[0] == 0
    same = only(table, tmp_path / "same.csv", lambda age, stage: (age, stage))
    code, said = slidemil_json("predict", job, "-m", "c", "--clinical-table", same)
    assert (code, said["new"]) == (0, False)
    none = only(table, tmp_path / "none.csv", lambda age, stage: (age if age == "53" else "", ""))
    code, said = slidemil_json("predict", job, "-m", "c", "--clinical-table", none)
    assert (code, said["new"]) == (0, True)
    assert any("11 of 12 slides have no clinical variable (age, stage)" in text for text in said["warnings"])
    without = rows(folder / "slides.csv")
    assert all(first[name]["p_positive"] != without[name]["p_positive"] for name in first)
    odd = only(table, tmp_path / "odd.csv", lambda age, stage: (age, "IX"))
    code, said = slidemil_json("predict", job, "-m", "c", "--clinical-table", odd)
    assert any("`stage` says 'IX', which the model has not met" in text for text in said["warnings"])
    code, said = slidemil("predict", job, "-m", "gated_abmil", "--clinical-table", same)
    assert (code, "takes no clinical variables" in said) == (2, True)


def test_folds_keep_their_own_scales_and_their_mean_predicts(job, table):
    command = ("train", job, "-l", table, "--clinical", "age", "--folds", 2, "--epochs", 2, "--head", "mean")
    code, said = slidemil_json(*command, "--fusion", "cross-attention")
    assert code == 0, said
    means = {
        fold: json.loads((job / "models" / f"mean_cv_{fold}" / "config.json").read_text())["clinical"]["variables"]
        for fold in ("r0f0", "r0f1")
    }
    assert means["r0f0"] != means["r0f1"]
    code, said = slidemil_json("predict", job, "-m", "mean_cv")  # the job keeps the cells
    assert (code, said["warnings"]) == (0, [])


def test_a_table_without_its_columns_is_refused(job, table):
    code, said = slidemil("train", job, "-l", table, "--clinical", "age,grade")
    assert (code, "grade" in said) == (2, True)
    code, said = slidemil("train", job, "-l", table, "--clinical-table", table)
    assert (code, "--clinical age,stage" in said) == (2, True)
    code, said = slidemil("train", job, "-l", table, "--set", "adapt=coral")
    assert (code, "--site" in said) == (2, True)


def test_what_is_kept_out_is_probed_before_and_after_and_told_in_metrics_card_and_report(job, table):
    command = ("train", job, "-l", table, "--site", "site", "--set", "adapt=covariance", "--epochs", 3, "--name", "a")
    code, said = slidemil_json(*command)
    assert code == 0, said
    found = json.loads((job / "models" / "a" / "metrics.json").read_text())["site_probe"]
    assert set(found) == {"site"}
    told = found["site"]["all"]
    assert told["slides"] == 12
    for which in ("before", "after"):
        assert 0 <= told[which]["balanced_accuracy"] <= 1
        assert 0 < told[which]["p"] <= 1
    assert "reason" in found["site"]["held_out"]  # a site with one patient: no probe, and it is said
    card = (job / "models" / "a" / "README.md").read_text()
    assert f"| `site` | all (12) | {told['before']['balanced_accuracy']:.2f} |" in card
    assert slidemil("report", job)[0] == 0
    assert "a fresh probe tells it with balanced accuracy" in (job / "report.html").read_text()
    # before: the same training without adaptation
    assert slidemil("train", job, "-l", table, "--epochs", 3, "--name", "plain")[0] == 0
    plain, adapted = ((job / "models" / name / "model.safetensors").read_bytes() for name in ("plain", "a"))
    assert plain != adapted
    assert slidemil_json(*command)[1]["new"] is False
    assert not list((job / ".state" / "training").glob("*"))
