"""Every head of the registry goes the whole way: training, model folder, prediction, explanation."""

from __future__ import annotations

import numpy as np
import pytest
import sklearn.metrics as sk
from _mil_cohort import cohort

from mil import HEADS, Bag, MilError, TrainSettings, explain, load_model, predict, train

CLASSES = ("negative", "positive")
PLAIN = {"concept": 1, "delta": 3.0, "tiles": (20, 40), "positive": (3, 8)}


@pytest.fixture(scope="module")
def sides():
    return cohort(8, 1, seed=0, **PLAIN)[0], cohort(4, 1, seed=100, **PLAIN)[0]


@pytest.mark.parametrize("head", sorted(HEADS))
def test_the_model_folder_gives_the_same_answers_and_the_same_seed_the_same_bytes(head, sides, tmp_path):
    settings = TrainSettings(head=head, epochs=1)
    model = train(*sides, CLASSES, settings)
    files = model.to_files()
    assert train(*sides, CLASSES, settings).to_files() == files
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    loaded, bag = load_model(tmp_path), Bag.from_list(list(sides[1].bags))
    for before, after in zip(predict(model, bag), predict(loaded, bag), strict=True):
        assert np.array_equal(before.logits, after.logits)
        assert np.array_equal(before.attention, after.attention)
    if not HEADS[head].contract.attention:
        with pytest.raises(MilError, match=r"weighs all tiles alike.*--head gated-abmil"):
            explain("attention", loaded.head, bag, 1)
        return
    values = explain("attention", loaded.head, bag, 1)
    assert values.shape == (bag.n_tiles,)
    assert [rows.sum() for rows in np.split(values, bag.offsets[1:-1])] == pytest.approx([1] * 4, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("head", sorted(HEADS))
def test_every_head_tells_held_out_patients_apart(head):
    """80 patients to learn from, 40 others to be told apart; one epoch of chance would give an AUC of 0.5."""
    fit, stop = cohort(80, 1, seed=1, **PLAIN)[0], cohort(16, 1, seed=101, **PLAIN)[0]
    held_out, _ = cohort(40, 1, seed=201, **PLAIN)
    model = train(fit, stop, CLASSES, TrainSettings(head=head, epochs=8, lr=1e-3))
    found = predict(model, Bag.from_list(list(held_out.bags)))
    assert sk.roc_auc_score(held_out.labels, [p.probabilities[1] for p in found]) > 0.9
