"""Training: it learns and localizes with few slides, always gives the same bytes, and never sees test data."""

from __future__ import annotations

import inspect
from dataclasses import replace

import numpy as np
import pytest
import sklearn.metrics as sk
import torch
from _mil_cohort import cohort

from mil import Bag, BagSet, TrainingDataError, TrainSettings, predict, train

CLASSES = ("negative", "positive")
QUICK = TrainSettings(epochs=4, patience=4)


@pytest.fixture(scope="module")
def sides():
    return cohort(10, 1, concept=0, seed=0)[0], cohort(4, 1, concept=0, seed=1)[0]


@pytest.mark.parametrize("concept", [0, 1, 2])
def test_few_slides_of_mixed_scale_features_are_told_apart_and_the_tiles_found(concept):
    """22 training slides with 2 to 6 positive of 50 to 99 tiles; held-out slides of other patients."""
    model = train(
        cohort(22, 1, concept=concept, seed=concept)[0],
        cohort(8, 1, concept=concept, seed=concept + 100)[0],
        CLASSES,
        TrainSettings(seed=concept),
    )
    held_out, truth = cohort(16, 1, concept=concept, seed=concept + 200)
    found = predict(model, Bag.from_list(list(held_out.bags)))
    assert sk.roc_auc_score(held_out.labels, [p.probabilities[1] for p in found]) >= 0.95
    inside = [sk.roc_auc_score(t, p.attention) for t, p in zip(truth, found, strict=True) if t.any()]
    assert np.mean(inside) >= 0.9
    assert np.mean([CLASSES.index(p.pred) for p in found] == held_out.labels) >= 0.85


@pytest.mark.parametrize("head", ["mean", "max", "abmil", "gated_abmil"])
def test_the_same_seed_gives_the_same_bytes_with_any_number_of_threads(sides, head):
    settings = replace(QUICK, head=head)
    first = train(*sides, CLASSES, settings).to_files()
    torch.manual_seed(99)
    torch.set_num_threads(2)
    assert train(*sides, CLASSES, settings).to_files() == first
    assert torch.get_num_threads() == 2
    assert (
        train(*sides, CLASSES, replace(settings, seed=1)).to_files()["model.safetensors"] != first["model.safetensors"]
    )


def test_training_leaves_the_callers_random_state_alone(sides):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train(*sides, CLASSES, QUICK)
    assert torch.equal(torch.rand(3), expected)


def test_there_is_no_way_in_for_test_data():
    assert list(inspect.signature(train).parameters) == ["train", "validation", "classes", "settings", "on_epoch"]


def test_the_kept_weights_are_those_of_the_lowest_validation_loss(sides):
    seen = []
    against = replace(sides[1], labels=1 - sides[1].labels)  # learning makes this validation worse
    model = train(sides[0], against, CLASSES, TrainSettings(epochs=40, patience=5), on_epoch=seen.append)
    losses = [epoch.validation_loss for epoch in seen]
    best = model.config["training"]["best_epoch"]
    assert best == int(np.argmin(losses)) + 1
    assert len(losses) == best + 5 < 40
    logits = torch.tensor(np.stack([p.logits for p in predict(model, Bag.from_list(list(against.bags)))]))
    again = torch.nn.functional.cross_entropy(logits, torch.tensor(against.labels))  # the classes are balanced
    assert float(again) == pytest.approx(min(losses), rel=1e-4)


def test_folding_the_decorrelation_into_the_head_changes_no_logit(sides):
    """The validation loss seen in training equals the one of the stored head on raw features: see the test above.

    Here: the transform itself. Its covariance is what the shrinkage formula says.
    """
    from mil.input_transform import InputTransform

    bags = list(sides[0].bags)
    z = InputTransform.fit(bags, 0.0)(Bag.from_list(bags)).features.double()
    white = InputTransform.fit(bags, 0.5)(Bag.from_list(bags)).features.double()
    c = (z.T @ z / len(z)).numpy()
    got = (white.T @ white / len(white)).numpy()
    assert np.allclose(got, np.linalg.solve(0.5 * np.eye(len(c)) + 0.5 * c, c), atol=1e-4)


def test_class_weights_balance_the_loss():
    """With 3 negatives to 1 positive and useless features, the balanced head says 1/2, the plain one 1/4."""
    bags = [Bag.from_list([np.ones((3, 4), np.float32)]) for _ in range(16)]
    labels = np.arange(16) % 4 == 0
    side = BagSet(bags, labels.astype(np.int64), tuple(map(str, range(16))))
    other = replace(side, patients=tuple(f"v{i}" for i in range(16)))
    settings = TrainSettings(head="mean", epochs=60, batch_size=16, lr=3e-2, dropout=0.0)
    for weights, expected in (("balanced", 0.5), ("none", 0.25), ((1.0, 1.0), 0.25)):
        model = train(side, other, CLASSES, replace(settings, class_weights=weights))
        assert predict(model, bags[0])[0].probabilities[1] == pytest.approx(expected, abs=0.03)


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (lambda a, b: (replace(a, labels=np.zeros(len(a), int)), b), "all of"),
        (lambda a, b: (a, replace(b, patients=a.patients[: len(b)])), "in training and validation"),
        (lambda a, b: (a, BagSet([], np.zeros(0, int), ())), "no validation slides"),
        (lambda a, b: (replace(a, labels=a.labels + 1), b), "names no class"),
    ],
)
def test_data_that_cannot_be_learned_from_are_refused_with_the_mend(sides, break_it, words):
    with pytest.raises(TrainingDataError, match=words):
        train(*break_it(*sides), CLASSES, QUICK)


def test_a_bag_set_counts_its_parts():
    with pytest.raises(TrainingDataError, match="1 labels"):
        BagSet([], np.zeros(1, int), ())
    with pytest.raises(TrainingDataError, match="one slide"):
        BagSet([Bag.from_list([np.ones((1, 2)), np.ones((1, 2))])], np.zeros(1, int), ("a",))


def test_an_empty_slide_does_not_stop_the_training(sides):
    empty = Bag.from_list([np.zeros((0, 150), np.float32)])
    side = BagSet([*sides[0].bags, empty], np.append(sides[0].labels, 0), (*sides[0].patients, "e"))
    model = train(side, sides[1], CLASSES, QUICK)
    (prediction,) = predict(model, empty)
    assert np.isfinite(prediction.logits).all()
    assert prediction.attention.shape == (0,)
