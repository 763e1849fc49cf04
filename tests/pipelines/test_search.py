"""Settings searched on inner folds: who has a say, what is kept, and that a stopped search goes on to the same end."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
from _command import slidemil, slidemil_json

from pipelines import learn, search
from pipelines.config import LearnSettings
from pipelines.feature_sets import choose_folder, load_features
from pipelines.jobfolder import JobFolder
from pipelines.labels import Labels
from pipelines.progress import Quiet
from pipelines.search import RANGES, Trial, suggest

pytest.importorskip("optuna", reason="the extra `search` is not installed")


def searched(seed):
    """Thirty trials of a loss that is lowest at lr = 1e-3."""
    done: list[Trial] = []
    for number in range(30):
        values = suggest(done, ["lr"], seed=seed)
        done.append(Trial(number, values, ((np.log10(values["lr"]) + 3) ** 2,)))
    return done


def test_suggestions_go_where_the_loss_is_low_and_depend_on_nothing_but_trials_and_seed():
    low, high, _ = RANGES["lr"]
    far = []
    for seed in range(4):
        done = searched(seed)
        assert all(low <= one.values["lr"] <= high for one in done)
        far += [abs(np.log10(one.values["lr"]) + 3) for one in done[15:]]
    assert np.mean(far) < 0.3  # at random 0.44
    assert suggest(done[:12], ["lr"], seed=3) == done[12].values


@pytest.fixture
def parts(job, cohort):
    folder = JobFolder(job)
    features = load_features(folder, choose_folder(folder, None), [slide.slide_id for slide in cohort.slides])
    labels = Labels({s.slide_id: s.label for s in cohort.slides}, {s.slide_id: s.case_id for s in cohort.slides}, {})
    settings = LearnSettings(head="mean", epochs=2, search=3, inner_folds=2, validation=0.3)
    return folder, features, learn.divide(features, labels, settings), settings


def test_held_out_patients_have_no_say_and_a_stopped_search_goes_on(parts, monkeypatch):
    job, features, sides, settings = parts
    seen, real = [], learn.mil.train

    def spy(train, validation, *args, **more):
        seen.append({*train.patients} | {*validation.patients})
        return real(train, validation, *args, **more)

    monkeypatch.setattr(search.mil, "train", spy)
    asked = (job, "m", features, sides, settings, Quiet(), {"a": 1})
    whole = search.choose(*asked)
    test = {sides.patients[row] for row in sides.split.test}
    assert test
    assert all(not test & some for some in seen)
    assert len(seen) == 3 * 2
    # no fold tests whom it trains
    for fold in search.inner_folds(sides, settings):
        sets = [{sides.patients[row] for row in rows} for rows in (fold.train, fold.validation, fold.test)]
        assert not sets[0] & sets[2]
        assert not sets[1] & sets[2]
    seen.clear()

    class Stop(Exception):
        pass

    def dies(done, wanted, seed):
        if len(done) == 2:
            raise Stop
        return suggest(done, wanted, seed)

    monkeypatch.setattr(search, "suggest", dies)
    with pytest.raises(Stop):
        search.choose(*asked)
    monkeypatch.setattr(search, "suggest", suggest)
    assert search.choose(*asked) == whole
    assert len(seen) == 3 * 2  # the two that were done are not done again


def test_the_best_trial_trains_the_model_of_each_fold_and_what_the_user_set_is_not_searched(job, cohort, tmp_path):
    table = tmp_path / "each.csv"  # every slide a patient: six would be too few for folds in folds
    lines = [f"{s.slide_id},{s.slide_id},{s.label}" for s in cohort.slides]
    table.write_text("slide_id,case_id,label\n" + "\n".join(lines) + "\n")
    command = ("train", job, "-l", table, "--head", "mean", "--epochs", 2, "--folds", 2, "--search", 3)
    more = ("--set", "inner_folds=2", "--set", "dropout=0.1", "--set", "validation=0.3", "--name", "s")
    code, said = slidemil_json(*command, *more)
    assert code == 0, said
    lrs = []
    for fold in ("r0f0", "r0f1"):
        folder = job / "models" / f"s_{fold}"
        with (folder / "search.csv").open(newline="") as file:
            trials = list(csv.DictReader(file))
        assert set(trials[0]) == {"trial", "lr", "weight_decay", "feature_dropout", "loss", "loss_0", "loss_1"}
        best = min(trials, key=lambda row: float(row["loss"]))
        told = json.loads((folder / "config.json").read_text())["training"]["settings"]
        assert told["lr"] == pytest.approx(float(best["lr"]))
        assert told["dropout"] == 0.1
        lrs.append(told["lr"])
    assert slidemil_json(*command, *more)[1]["new"] is False
    assert not list((job / ".state" / "search").glob("*"))
    all_set = [word for text in ("lr=0.001", "weight_decay=0.01", "feature_dropout=0.1") for word in ("--set", text)]
    code, said = slidemil(*command, *more, *all_set)
    assert (code, "nothing is left to search" in said) == (2, True)


def test_too_few_patients_for_inner_folds_are_told(parts):
    _, _, sides, settings = parts
    from mil import TrainingDataError

    with pytest.raises(TrainingDataError):
        search.inner_folds(sides, replace(settings, inner_folds=9))
