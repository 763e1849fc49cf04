"""What can be set of the training: each does what it says, and stopping in the middle changes nothing."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from _mil_cohort import cohort

from mil import HEADS, Bag, BagSet, ModelError, SealedLabels, TrainingDataError, TrainSettings, predict, train
from mil.bag_set import join
from mil.epoch import lr_share
from mil.mixing import mix
from mil.prepared import PreparedBags

CLASSES = ("negative", "positive")
SMALL = {"concept": 0, "tiles": (10, 20), "delta": 3.0}


@pytest.fixture(scope="module")
def sides():
    return cohort(8, 1, seed=0, **SMALL)[0], cohort(4, 1, seed=1, **SMALL)[0]


ALL_AT_ONCE = TrainSettings(
    epochs=6,
    patience=6,
    batch_size=3,
    schedule="cosine",
    clip=1.0,
    ema=0.9,
    feature_dropout=0.1,
    mixup=0.4,
    precision="bfloat16",
)


@pytest.mark.parametrize("settings", [TrainSettings(epochs=6, patience=6), ALL_AT_ONCE], ids=["plain", "all at once"])
@pytest.mark.parametrize("stop", [1, 4])
def test_a_training_that_was_stopped_goes_on_to_the_same_bytes(sides, settings, stop):
    class Stop(Exception):
        pass

    kept, whole = [], train(*sides, CLASSES, settings).to_files()

    def keep(data):
        kept.append(data())
        if len(kept) == stop:
            raise Stop

    with pytest.raises(Stop):
        train(*sides, CLASSES, settings, keep=keep)
    epochs = []
    again = train(*sides, CLASSES, settings, resume=kept[-1], on_epoch=epochs.append)
    assert again.to_files() == whole
    assert [epoch.number for epoch in epochs] == list(range(stop + 1, 7))


def test_a_checkpoint_of_another_training_is_refused(sides):
    kept = []
    settings = TrainSettings(epochs=1)
    train(*sides, CLASSES, settings, keep=lambda data: kept.append(data()))
    with pytest.raises(TrainingDataError, match="other settings"):
        train(*sides, CLASSES, replace(settings, lr=1e-2), resume=kept[0])
    with pytest.raises(ModelError, match="cannot be read"):
        train(*sides, CLASSES, settings, resume=b"nothing")
    with pytest.raises(ModelError, match="cannot be read"):
        train(*sides, CLASSES, settings, resume=kept[0][:300])


class OnDisk(list):
    """Bags that are there when they are asked for, and counted."""

    def __init__(self, bags):
        super().__init__(range(len(bags)))
        self.bags, self.asked = bags, 0

    def __getitem__(self, i):
        self.asked += 1
        return self.bags[i]

    def __iter__(self):
        return (self[i] for i in range(len(self)))


def test_a_cohort_larger_than_memory_is_streamed_and_gives_the_same_model(sides):
    settings = TrainSettings(epochs=3)
    held = train(*sides, CLASSES, settings).to_files()["model.safetensors"]
    counts = []
    for budget in (0.0, 4.0):
        lazy = [replace(side, bags=OnDisk(side.bags)) for side in sides]
        streamed = train(*lazy, CLASSES, replace(settings, memory_gb=budget)).to_files()
        assert streamed["model.safetensors"] == held
        counts.append(lazy[0].bags.asked)
    assert counts[0] - counts[1] == 2 * len(sides[0])  # without memory every epoch after the first asks again


def test_prepared_bags_stay_in_their_budget():
    bags = [Bag.from_list([torch.ones(100, 8)]) for _ in range(5)]
    prepared = PreparedBags(bags, lambda bag: bag, torch.float32, 2.5 * 3200, "cpu")
    first = [prepared[i] for i in range(5)]
    assert [prepared[i] is bag for i, bag in enumerate(first)] == [True, True, False, False, False]


@pytest.mark.parametrize("head", sorted(HEADS))
def test_every_head_trains_in_bfloat16(head, sides):
    """And the stored model is single precision, whose answers a training in single precision comes close to."""
    settings = TrainSettings(head=head, epochs=3, precision="bfloat16", dropout=0.0, decorrelate=0.0)
    half = train(*sides, CLASSES, settings)
    single = train(*sides, CLASSES, replace(settings, precision="float32"))
    assert all(value.dtype != torch.bfloat16 for value in half.head.state_dict().values())
    bag = Bag.from_list(list(sides[1].bags))
    a, b = ([p.probabilities[1] for p in predict(model, bag)] for model in (half, single))
    assert np.allclose(a, b, atol=0.1)


def test_wide_features_train_in_bfloat16_and_narrow_ones_do_not(sides, monkeypatch):
    from mil.train import _dtype

    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    assert _dtype(TrainSettings(), 512) == torch.bfloat16
    assert _dtype(TrainSettings(), 150) == torch.float32
    assert _dtype(TrainSettings(precision="float32"), 512) == torch.float32
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    assert _dtype(TrainSettings(), 512) == torch.float32


def test_the_learning_rate_rises_and_falls_along_a_cosine(sides):
    settings = TrainSettings(epochs=10, schedule="cosine", warmup=0.1)
    shares = [lr_share(step, 8, settings) for step in range(80)]
    assert shares[:8] == pytest.approx([i / 8 for i in range(1, 9)])
    assert shares[44] == pytest.approx(0.5 * (1 + math.cos(math.pi * 36 / 72)))
    assert 0 < shares[-1] < 0.001
    epochs, short = [], replace(settings, epochs=2, warmup=0.0)
    train(*sides, CLASSES, short, on_epoch=epochs.append)
    assert [epoch.lr for epoch in epochs] == pytest.approx([5e-4 * lr_share(step, 8, short) for step in (7, 15)])


def test_clipping_bounds_the_step(sides):
    """With plain steps of size lr · |g|: AdamW hides the size, so the first moment tells."""
    kept = []
    from mil.checkpoint import Checkpoint

    for clip in (0.0, 1e-3):
        train(*sides, CLASSES, TrainSettings(epochs=1, clip=clip), keep=lambda data: kept.append(data()))
    sizes = []
    for data in kept:
        moments = [v for k, v in Checkpoint.from_bytes(data).tensors.items() if k.endswith("exp_avg")]
        sizes.append(float(torch.cat([m.flatten() for m in moments]).norm()))
    assert sizes[1] <= 1e-3 < sizes[0]


def test_averaged_weights_are_stored_and_lie_between_what_was_seen(sides):
    """One epoch of 8 steps from known weights: the average is what the recursion says."""
    from mil.checkpoint import Checkpoint

    kept = []
    settings = TrainSettings(epochs=3, batch_size=8, ema=0.99, dropout=0.0)
    train(*sides, CLASSES, settings, keep=lambda data: kept.append(Checkpoint.from_bytes(data())))
    live = [k.group("head")["classifier.weight"] for k in kept]  # one step an epoch
    mean = [k.group("average")["classifier.weight"] for k in kept]
    for step in (1, 2):
        share = (2 + step) / (11 + step)
        assert torch.allclose(mean[step], share * mean[step - 1] + (1 - share) * live[step], atol=1e-7)


def test_a_mixed_bag_holds_its_shares_of_both_and_keeps_their_order():
    torch.manual_seed(0)
    a, b = (
        Bag.from_list([torch.arange(n).float()[:, None] + start], xy=[torch.arange(2 * n).view(n, 2) * 7])
        for n, start in ((40, 0), (10, 100))
    )
    mixed = mix(a, b, 0.7)
    rows = mixed.features[:, 0]
    assert len(rows) == 28 + 3
    assert (rows[:28].diff() > 0).all()
    assert (rows[:28] < 40).all()
    assert (rows[28:] >= 100).all()
    assert mixed.xy[28:, 0].min() > mixed.xy[:28, 0].max()


def test_slides_of_a_patient_become_one_bag_with_one_label():
    bags = [
        Bag.from_list([torch.full((n, 3), float(n))], xy=[torch.tensor([[448 * i, 0] for i in range(n)])])
        for n in (2, 3, 4)
    ]
    side = BagSet(bags, np.array([1, 0, 1]), ("a", "b", "a")).by_patient()
    assert (len(side), side.patients, side.labels.tolist()) == (2, ("a", "b"), [1, 0])
    assert side.bags[0].features[:, 0].tolist() == [2, 2, 4, 4, 4, 4]
    x = side.bags[0].xy[:, 0].tolist()
    assert x[:2] == [0, 448]
    assert x[2] - x[1] >= 200 * 448
    assert np.diff(x[2:]).tolist() == [448] * 3
    with pytest.raises(TrainingDataError, match=r"different labels, e\.g\. a"):
        BagSet(bags, np.array([1, 0, 0]), ("a", "b", "a")).by_patient()
    assert torch.equal(join([bags[0]], "x").xy, bags[0].xy)


def test_sealed_labels_cannot_be_trained_on():
    sealed = SealedLabels.seal(np.array([0, 1]))
    bags = [Bag.from_list([np.ones((1, 2), np.float32)])] * 2
    with pytest.raises(TrainingDataError, match="test slides"):
        BagSet(bags, sealed, ("a", "b"))
    with pytest.raises(TrainingDataError, match="sealed"):
        np.asarray(sealed)
    assert sealed.unseal().tolist() == [0, 1]
    assert "0" not in repr(sealed).replace("n=2", "")


@pytest.mark.parametrize("wrong", [{"precision": "half"}, {"schedule": "linear"}, {"ema": 1.0}, {"epochs": 0}])
def test_settings_that_mean_nothing_are_refused(wrong):
    with pytest.raises(TrainingDataError, match=next(iter(wrong))):
        TrainSettings(**wrong)
