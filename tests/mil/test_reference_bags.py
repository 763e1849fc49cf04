"""The bags that `benchmarks/references` makes obey the laws that they claim."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import norm

import mil

REFERENCES = Path(__file__).resolve().parents[2] / "benchmarks/references"


@pytest.fixture(scope="module")
def made():
    sys.path.append(str(REFERENCES))
    try:
        yield importlib.import_module("_made")
    finally:
        sys.path.remove(str(REFERENCES))


@pytest.mark.parametrize("informative", [1, 3])
def test_the_ceiling_is_the_ratio_of_the_densities(made, informative):
    """The oracle multiplies densities of every start of the run, as the law says."""
    tiles, shift = np.random.default_rng(0).normal(size=(9, 4)), 1.5
    apart = norm.pdf(tiles[:, :informative]).prod(axis=1)
    shifted = norm.pdf(tiles[:, :informative], loc=shift).prod(axis=1)
    starts = [shifted[s : s + 3].prod() * apart[:s].prod() * apart[s + 3 :].prod() for s in range(7)]
    found = made.bayes_score(tiles, informative, shift)
    assert found == pytest.approx(np.log(np.mean(starts) / apart.prod()), abs=1e-9)


@pytest.mark.parametrize(
    ("informative", "shift", "bayes", "single"),
    [(1, 1.0, 0.715, 0.633), (1, 2.0, 0.948, 0.860), (8, 1.0, 0.997, 0.971)],
)
def test_ceiling_and_single_tile_are_those_measured_elsewhere(made, informative, shift, bayes, single):
    bags = made.correlated(800, informative=informative, shift=shift, seed=3)
    tiles = [one.features.double().numpy() for one in bags.bags]
    ceiling = mil.auc(bags.labels, [made.bayes_score(x, informative, shift) for x in tiles])
    alone = mil.auc(bags.labels, [made.evidence(x, informative, shift).max() for x in tiles])
    assert (ceiling, alone) == (pytest.approx(bayes, abs=0.05), pytest.approx(single, abs=0.05))
    assert ceiling > alone


@pytest.mark.parametrize("test", [False, True])
def test_the_poison_changes_sides_and_the_concept_does_not(made, test):
    bags = made.single_concept(200, test=test, seed=1)
    poisoned = np.array([bool((one.features < -8).all(dim=1).any()) for one in bags.bags])
    np.testing.assert_array_equal(poisoned, (bags.labels == 1) == test)
    clean = [one.features[(one.features > -8).any(dim=1)].double().numpy() for one in bags.bags]
    strongest = [max((x**2).sum(axis=1).max(), 10 * x.mean(axis=1).max()) for x in clean]
    assert mil.auc(bags.labels, strongest) > 0.8


def test_digit_bags_say_where_the_nines_are(made):
    images, labels = np.arange(400.0).reshape(200, 2), np.arange(200) % 10
    bags, nines = made.digit_bags(images, labels, 40, seed=0)
    for one, label, where in zip(bags.bags, bags.labels, nines, strict=True):
        np.testing.assert_array_equal(where, (one.features[:, 0].numpy() / 2) % 10 == 9)
        assert where.any() == label
        assert len(where) >= 3
