"""Training: it learns and localizes with few slides, always gives the same bytes, and never sees test data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import get_type_hints

import numpy as np
import pytest
import sklearn.metrics as sk
import torch
from _mil_cohort import cohort
from torch.overrides import TorchFunctionMode

from mil import Bag, BagSet, TrainingDataError, TrainSettings, predict, train
from mil.heads.base import CHUNK
from mil.input_transform import InputTransform

CLASSES = ("negative", "positive")
QUICK = TrainSettings(epochs=4, patience=4)


@pytest.fixture(scope="module")
def sides():
    return cohort(10, 1, concept=0, seed=0)[0], cohort(4, 1, concept=0, seed=1)[0]


@pytest.mark.parametrize("concept", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2))])
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


def test_two_arguments_can_bring_slides_and_no_setting_can():
    kinds = get_type_hints(train)
    assert [name for name, kind in kinds.items() if kind is BagSet] == ["train", "validation"]
    told = {"on_epoch", "keep", "resume", "watch", "variables", "return"}
    assert set(kinds) == {"train", "validation", "task", "settings"} | told
    simple = {str, int, float, Mapping[str, float], str | tuple[float, ...]}
    assert set(get_type_hints(TrainSettings).values()) <= simple


def test_validation_slides_choose_the_epoch_but_are_not_learned_from(sides):
    """Other validation slides, far away and with the labels swapped: every step of the training is the same."""
    far = [Bag.from_list([bag.features * 100 - 7]) for bag in sides[1].bags]
    other = replace(sides[1], bags=far, labels=1 - sides[1].labels)
    seen = [[], []]
    for validation, epochs in zip((sides[1], other), seen, strict=True):
        train(sides[0], validation, CLASSES, QUICK, on_epoch=epochs.append)
    assert [e.train_loss for e in seen[0]] == [e.train_loss for e in seen[1]]
    assert [e.validation_loss for e in seen[0]] != [e.validation_loss for e in seen[1]]


def test_training_that_diverges_is_an_error_and_not_the_untrained_weights(sides):
    with pytest.raises(TrainingDataError, match=r"epoch 1: the validation loss is nan.*lower than 1e\+30"):
        train(*sides, CLASSES, replace(QUICK, lr=1e30, weight_decay=0.0))


@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_features_that_are_no_numbers_are_refused_with_the_slide(sides, side, bad):
    features = sides[side].bags[1].features.clone()
    features[3, 5] = bad
    bags = list(sides[side].bags)
    bags[1] = Bag.from_list([features], ids=["spoiled"])
    spoiled = [replace(s, bags=bags) if i == side else s for i, s in enumerate(sides)]
    with pytest.raises(TrainingDataError, match=r"1 slide\(s\).*spoiled"):
        train(*spoiled, CLASSES, QUICK)


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
    bags = list(sides[0].bags)
    z = InputTransform.fit(bags, 0.0)(Bag.from_list(bags)).features.double()
    white = InputTransform.fit(bags, 0.5)(Bag.from_list(bags)).features.double()
    c = (z.T @ z / len(z)).numpy()
    got = (white.T @ white / len(white)).numpy()
    assert np.allclose(got, np.linalg.solve(0.5 * np.eye(len(c)) + 0.5 * c, c), atol=1e-4)


class _Largest(TorchFunctionMode):
    """Remembers the size of the largest tensor that torch made."""

    elements = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            self.elements = max(self.elements, out.numel())
        return out


@pytest.mark.parametrize("common", [False, True])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_the_input_transform_in_chunks_is_the_one_of_all_tiles_at_once(common, dtype):
    """Bags smaller and larger than a chunk, an empty one, a constant feature, a large mean; numpy is the oracle."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2 * CHUNK + 700, 6)) @ rng.normal(size=(6, 6)) * np.logspace(-1, 1, 6) + 40
    x[:, 2] = 3.0
    x = x.astype(dtype)
    bags = [Bag.from_list([part]) for part in np.split(x, [5, 5, 600, CHUNK + 900])]
    with _Largest() as largest:
        fitted = InputTransform.fit(bags, 0.5, common=common)
    assert largest.elements <= CHUNK * 6
    wide = x.astype(np.float64)
    spread = np.full(6, np.sqrt(wide.var(axis=0).mean())) if common else np.maximum(wide.std(axis=0), 1e-30)
    factor = np.where(wide.std(axis=0) > 1e-9, 1 / spread, 0.0)
    assert np.allclose(fitted.scale.mean, wide.mean(axis=0), rtol=1e-6)
    assert np.allclose(fitted.scale.factor, factor, rtol=1e-6)
    z = (wide - wide.mean(axis=0)) * factor
    values, vectors = np.linalg.eigh(0.5 * np.eye(6) + 0.5 * z.T @ z / len(z))
    assert np.allclose(fitted.matrix, vectors / np.sqrt(values) @ vectors.T, atol=1e-5)
    again = InputTransform.fit(bags, 0.5, common=common)
    assert torch.equal(fitted.matrix, again.matrix)


@pytest.mark.parametrize("batch_size", [1, 16])
def test_class_weights_balance_the_loss_whatever_the_batch(batch_size):
    """With 3 negatives to 1 positive and useless features, the balanced head ends at 1/2, the plain one at 1/4.

    The stored head tells nothing of that: it is the epoch that validation liked best. But with one negative slide as
    validation its loss is -log(1 - p), so each epoch gives its p away.
    """
    bags = [Bag.from_list([np.ones((3, 4), np.float32)]) for _ in range(16)]
    labels = np.arange(16) % 4 == 0
    side = BagSet(bags, labels.astype(np.int64), tuple(map(str, range(16))))
    one = BagSet(bags[:1], np.zeros(1, np.int64), ("v",))
    settings = TrainSettings(head="mean", epochs=60, patience=60, batch_size=batch_size, lr=1e-2, dropout=0.0)
    for weights, expected in (("balanced", 0.5), ("none", 0.25), ((1.0, 1.0), 0.25), ((2.0, 6.0), 0.5)):
        seen = []
        train(side, one, CLASSES, replace(settings, class_weights=weights), on_epoch=seen.append)
        ends = [1 - np.exp(-epoch.validation_loss) for epoch in seen[-20:]]
        assert np.mean(ends) == pytest.approx(expected, abs=0.04)


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


@pytest.mark.parametrize(
    ("weights", "words"), [((1.0,), "1 class weights"), ((1.0, 0.0), "over 0"), ("equal", "use 'balanced'")]
)
def test_class_weights_that_mean_nothing_are_refused(sides, weights, words):
    with pytest.raises(TrainingDataError, match=words):
        train(*sides, CLASSES, replace(QUICK, class_weights=weights))


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
