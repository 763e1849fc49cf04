"""Confounders kept out in training: the penalties against their formulas, and what is left for a fresh probe."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.covariance import ledoit_wolf_shrinkage
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score

from mil import Bag, BagSet, TrainingDataError, TrainSettings, predict, train
from mil.adaptation import ADAPTATIONS, coded, coral, reversal
from mil.adaptation.coral import covariance, distance, shrinkage
from mil.predict import infer

CLASSES = ("negative", "positive")


@pytest.mark.parametrize(("n", "width"), [(8, 20), (60, 5)])
def test_the_shrinkage_is_that_of_scikit_learn(n, width):
    x = np.random.default_rng(n).normal(size=(n, width)) * np.linspace(0.2, 3, width)
    assert shrinkage(torch.tensor(x)) == pytest.approx(ledoit_wolf_shrinkage(x), abs=1e-12)


def test_a_shrunk_covariance_of_few_rows_can_be_inverted_and_keeps_its_trace():
    x = torch.randn(4, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = covariance(x)
    assert torch.linalg.cond(found) < 100
    assert float(torch.trace(found)) == pytest.approx(float(np.trace(np.cov(x.numpy().T))))


def test_coral_is_the_formula_of_the_paper_and_the_distance_of_the_means(monkeypatch):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(50, 4)), rng.normal(1, 2, size=(40, 4))
    monkeypatch.setattr(coral, "shrinkage", lambda x: 0.0)
    means = ((a.mean(0) - b.mean(0)) ** 2).sum() / 4
    wanted = ((np.cov(a.T) - np.cov(b.T)) ** 2).sum() / (4 * 4**2) + means
    assert float(distance(torch.tensor(a), torch.tensor(b))) == pytest.approx(wanted, rel=1e-10)


def made(kind, codes, strata, width=3):
    torch.manual_seed(0)
    return ADAPTATIONS[kind](torch.as_tensor(codes)[:, None], torch.as_tensor(strata), width).double()


def test_the_covariance_penalty_is_the_sum_of_squared_correlations_within_the_classes():
    rng = np.random.default_rng(1)
    y, site = rng.integers(0, 2, 60), rng.integers(0, 2, 60)
    z = rng.normal(size=(60, 3)) + site[:, None] * [0, 1, 0] + y[:, None]
    unit = (z - z.mean(0)) / np.sqrt(z.var(0) + 1e-6)
    for values in (unit, indicator := np.eye(2)[site]):
        for c in (0, 1):
            values[y == c] -= values[y == c].mean(0)
    wanted = np.mean([np.sum((unit.T @ i / 60) ** 2) / np.mean(i**2) for i in indicator.T])
    assert float(made("covariance", site, y).penalty(torch.tensor(z))) == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("kind", ["coral", "covariance"])
def test_what_the_class_alone_gives_away_costs_nothing_and_shrinking_gains_nothing(kind):
    rng = np.random.default_rng(2)
    z, site = torch.tensor(rng.normal(size=(40, 3))), rng.integers(0, 2, 40)
    told = made(kind, site, np.zeros(40, int))
    shifted = z + 3.0 * torch.tensor(site)[:, None]
    assert float(told.penalty(shifted)) > 5 * float(told.penalty(z))
    assert float(told.penalty(1e-2 * shifted)) == pytest.approx(float(told.penalty(shifted)), rel=0.01)
    as_class = made(kind, site, site)  # the site is the class: nothing can be held against it
    assert float(as_class.penalty(shifted)) == pytest.approx(float(as_class.penalty(z)), abs=0.1)


def test_reversal_teaches_the_adversary_one_way_and_the_embedding_the_other(monkeypatch):
    monkeypatch.setattr(reversal, "NOISE", 0.0)
    rng = np.random.default_rng(3)
    site = rng.integers(0, 2, 30)
    z = torch.tensor(rng.normal(size=(30, 3)) + site[:, None], requires_grad=True)
    against = made("reversal", site, np.zeros(30, int))
    against.progress = 0.2
    against.penalty(z).backward()
    with torch.no_grad():
        before = float(against.penalty(z))
        uphill = float(against.penalty(z - 0.05 * z.grad / z.grad.abs().max()))
        for p in against.parameters():
            p -= 0.05 * p.grad
        downhill = float(against.penalty(z))
    assert downhill < before < uphill
    # the strength of the paper
    first = z.grad.clone()
    z.grad = None
    fresh = made("reversal", site, np.zeros(30, int))
    fresh.progress = 1.0
    fresh.penalty(z).backward()
    ratio = (2 / (1 + np.exp(-10)) - 1) / (2 / (1 + np.exp(-2)) - 1)
    assert torch.allclose(z.grad, ratio * first)


def test_unknown_levels_are_no_level():
    codes, levels = coded([("a", "x"), ("", "x"), ("b", "")])
    assert codes.tolist() == [[0, 0], [-1, 0], [1, -1]]
    assert levels == [["a", "b"], ["x"]]


def stained(n, seed):
    """Slides of two scanners: a shift of some features by the scanner, which the class goes along with."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 2
    scanner = np.where(rng.random(n) < 0.7, y, 1 - y)
    x = rng.normal(size=(n, 6, 10)).astype(np.float32)
    x[:, :, 0] += 1.6 * y[:, None] + rng.normal(size=(n, 1)) * 0.5
    x[:, :, 4:7] += 2.0 * scanner[:, None, None]
    bags = [Bag.from_list([rows], ids=[f"{seed}-{i}"]) for i, rows in enumerate(x)]
    return BagSet(bags, y, tuple(bag.ids[0] for bag in bags), tuple((f"scanner{s}",) for s in scanner))


SETTINGS = TrainSettings(head="mean", epochs=15, lr=3e-3, batch_size=4, dropout=0.0, patience=15)


def told_by_a_probe(model, side):
    """Balanced accuracy of a fresh probe for the scanner, from the embeddings freed of the class means."""
    z = np.concatenate([infer(model.head, bag).embedding.detach().numpy() for bag in side.bags])
    for c in (0, 1):
        z[side.labels == c] -= z[side.labels == c].mean(0)
    scanner = [row[0] for row in side.confounders]
    return cross_val_score(LogisticRegression(C=0.1), z, scanner, cv=5, scoring="balanced_accuracy").mean()


@pytest.fixture(scope="module")
def world():
    sides = stained(120, 0), stained(40, 1)
    return sides, stained(200, 2), train(*sides, CLASSES, SETTINGS)


@pytest.mark.parametrize("kind", sorted(ADAPTATIONS))
def test_a_fresh_probe_finds_less_of_the_scanner_and_the_class_is_kept(kind, world):
    sides, held_out, plain = world
    adapted = train(*sides, CLASSES, replace(SETTINGS, adapt=kind))
    before, after = told_by_a_probe(plain, held_out), told_by_a_probe(adapted, held_out)
    p = np.array([one.probabilities[1] for one in predict(adapted, Bag.from_list(list(held_out.bags)))])
    assert before > 0.9
    assert after < before - 0.15, (before, after)
    assert np.mean((p > 0.5) == held_out.labels) > 0.8
    leaks = [epoch["leak"] for epoch in adapted.config["training"]["history"]]
    assert leaks[-1] < leaks[0]


@pytest.mark.parametrize("kind", sorted(ADAPTATIONS))
def test_a_stopped_training_goes_on_to_the_same_bytes(kind):
    class Stop(Exception):
        pass

    sides = stained(16, 0), stained(8, 1)
    settings = replace(SETTINGS, epochs=3, adapt=kind, ema=0.5)
    whole, kept = train(*sides, CLASSES, settings), []

    def keep(data):
        kept.append(data())
        raise Stop

    with pytest.raises(Stop):
        train(*sides, CLASSES, settings, keep=keep)
    assert train(*sides, CLASSES, settings, resume=kept[0]).to_files() == whole.to_files()


def test_one_site_or_mixed_slides_cannot_be_adapted():
    sides = stained(16, 0), stained(8, 1)
    one = replace(sides[0], confounders=(("a",),) * 16)
    with pytest.raises(TrainingDataError, match="all of one site"):
        train(one, sides[1], CLASSES, replace(SETTINGS, adapt="coral"))
    with pytest.raises(TrainingDataError, match="mixup with adapt"):
        replace(SETTINGS, adapt="coral", mixup=0.2)
