"""Model folder, prediction and explanation."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from _mil_cohort import cohort

from mil import Bag, MilError, ModelError, TrainSettings, explain, load_model, predict, train


@pytest.fixture(scope="module")
def model():
    sides = [cohort(8, 1, concept=0, seed=s)[0] for s in (0, 1)]
    return train(*sides, ("negative", "positive"), TrainSettings(epochs=3)).described(
        encoder={"id": "descriptors", "weights_sha256": None}, tile={"size": 224, "mpp": 0.5}
    )


@pytest.fixture
def folder(model, tmp_path):
    for name, data in model.to_files().items():
        (tmp_path / name).write_bytes(data)
    return tmp_path


@pytest.fixture(scope="module")
def bag():
    return Bag.from_list(list(cohort(4, 1, concept=0, seed=7)[0].bags))


def test_a_loaded_model_gives_the_same_logits_and_files(model, folder, bag):
    loaded = load_model(folder)
    for before, after in zip(predict(model, bag), predict(loaded, bag), strict=True):
        assert np.array_equal(before.logits, after.logits)
        assert np.array_equal(before.attention, after.attention)
        assert before.pred == after.pred
    assert loaded.to_files() == model.to_files()


def test_config_and_card_say_what_the_model_is(folder):
    config = json.loads((folder / "config.json").read_text())
    assert config["classes"] == ["negative", "positive"]
    assert config["encoder"]["id"] == "descriptors"
    assert config["tile"] == {"size": 224, "mpp": 0.5}
    assert len(config["training"]["history"]) == 3
    card = (folder / "README.md").read_text()
    assert "descriptors" in card
    assert "224 px at 0.5 µm/px" in card
    assert "The positive class is `positive`" in card
    assert "Not a medical device" in card
    for part in ("Training data", "Splits and choice", "Figures", "Intended use", "Limits", "Encoder passport"):
        assert f"## {part}\n" in card
    assert "nothing says how good the model is" in card  # no figures are told here


def test_a_prediction_does_not_depend_on_what_else_is_asked(model, bag):
    for one, among in zip(bag.split(), predict(model, bag), strict=True):
        (alone,) = predict(model, one)
        assert np.array_equal(alone.logits, among.logits)
        assert alone.attention.sum() == pytest.approx(1, abs=1e-5)
        assert alone.probabilities.sum() == pytest.approx(1)
        assert alone.n_tiles == one.n_tiles == len(alone.scores)


def test_the_stored_threshold_decides(model, bag):
    for threshold, word in ((0.0, "positive"), (1.1, "negative")):
        moved = replace(model, config={**model.config, "threshold": threshold})
        assert {p.pred for p in predict(moved, bag)} == {word}


def test_features_of_another_encoder_are_refused(model):
    with pytest.raises(ModelError, match="descriptors"):
        predict(model, Bag.from_list([np.ones((3, 7), np.float32)]))


def test_explained_attention_is_the_attention_of_the_prediction(model, bag):
    values = explain("attention", model.head, bag, 1)
    assert values.dtype == np.float32
    assert np.array_equal(values, np.concatenate([p.attention for p in predict(model, bag)]))
    with pytest.raises(MilError, match="Did you mean attention"):
        explain("atention", model.head, bag, 1)
    with pytest.raises(MilError, match="class 2"):
        explain("attention", model.head, bag, 2)


class _Trap:
    def __reduce__(self):
        return (pytest.fail, ("the pickle was executed",))


def test_a_folder_with_a_pickle_is_refused_unopened(tmp_path):
    (tmp_path / "model.pt").write_bytes(pickle.dumps(_Trap()))
    with pytest.raises(ModelError, match="may run code"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda f: (f / "config.json").unlink(), "no config.json"),
        (lambda f: (f / "config.json").write_text("{"), "not JSON"),
        (lambda f: (f / "config.json").write_text("{}"), "not of a slidemil model"),
        (lambda f: _edit(f, version=99), "version 99"),
        (lambda f: _edit(f, head={"name": "nosuch", "in_dim": 1, "classes": 2, "options": {}}), "no head is called"),
        (lambda f: _edit(f, head={"name": "mean"}), "lacks"),
        (lambda f: _edit(f, classes=["a"]), "names 1 classes"),
        (lambda f: _edit(f, head={"name": "mean", "in_dim": 3, "classes": 2, "options": {}}), "does not fit"),
        (lambda f: (f / "model.safetensors").write_bytes(b"12345678"), "cannot be read"),
        (lambda f: (f / "model.safetensors").write_bytes(pickle.dumps(_Trap())), "cannot be read"),
    ],
)
def test_a_spoiled_folder_is_refused_with_its_name(folder, spoil, words):
    spoil(folder)
    with pytest.raises(ModelError, match=words):
        load_model(folder)


def _edit(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def test_three_classes_go_by_the_most_probable(tmp_path):
    sets = []
    for seed in (0, 1):
        side, _ = cohort(9, 1, concept=0, seed=seed)
        sets.append(replace(side, labels=np.arange(9) % 3))
    model = train(*sets, ("a", "b", "c"), TrainSettings(epochs=2))
    assert model.threshold is None
    for p in predict(model, sets[0].bags[0]):
        assert p.pred == ("a", "b", "c")[int(p.logits.argmax())]
    assert torch.is_grad_enabled()
