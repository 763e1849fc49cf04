"""Whether the site can be told: honest p-values under chance, found where it is planted, by patient."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler

import stain
from stain.batch_effect import difference_p, predictor, probe


def cohort(seed, patients=20, each=2, width=12, shift=0.0):
    """Two sites, patients with an effect of their own; `shift` is what the site adds."""
    rng = np.random.default_rng(seed)
    case = np.repeat(np.arange(patients), each)
    site = (case % 2).astype(int)
    features = rng.normal(size=(patients, width))[case] + 0.5 * rng.normal(size=(len(case), width))
    features[:, :3] += shift * site[:, None]
    return features, [f"site {s}" for s in site], [f"patient {c}" for c in case]


def test_what_is_planted_is_found():
    found = probe(*cohort(0, shift=4.0))
    assert found.accuracy > 0.95
    assert found.p == 1 / 1000
    assert found.interval[0] > 0.8
    assert found.chance == pytest.approx(0.5, abs=0.05)
    assert set(found.recall) == {"site 0", "site 1"}


def test_under_chance_p_values_are_even():
    """Each patient has its own effect and several slides: a test that permutes slides would find sites everywhere."""
    p = [probe(*cohort(seed, each=4), permutations=99, seed=seed).p for seed in range(60)]
    assert stats.kstest(p, "uniform").pvalue > 0.01
    assert np.mean(np.array(p) <= 0.05) < 0.15


def test_its_predictions_are_those_of_scikit_learn():
    """Standardized on the training folds, ridge on indicators, intercept: the same numbers, fold by fold."""
    features, sites, _ = cohort(1, shift=1.0)
    indicator = np.eye(2)[[int(site[-1]) for site in sites]]
    folds = np.arange(len(features)) % 5
    matrix = predictor(features, folds)
    for fold in range(5):
        train, test = folds != fold, folds == fold
        scaler = StandardScaler().fit(features[train])
        x, z = (scaler.transform(features[rows]) / np.sqrt(features.shape[1]) for rows in (train, test))
        expected = Ridge(alpha=train.sum() / 100).fit(x, indicator[train]).predict(z)
        np.testing.assert_allclose(matrix[test] @ indicator, expected, atol=1e-9)
        assert (matrix[np.ix_(test, test)] == 0).all()


def test_a_patient_is_never_on_both_sides():
    """Slides that are copies of their patient's others would be told perfectly otherwise."""
    rng = np.random.default_rng(0)
    case = np.repeat(np.arange(12), 5)
    features = rng.normal(size=(12, 30))[case]
    found = probe(features, [f"s{c % 2}" for c in case], [f"p{c}" for c in case])
    assert found.accuracy < 0.8
    assert found.p > 0.02


def test_what_the_diagnosis_gives_away_counts_as_chance_within_it():
    """Sites differ in their share of disease, and only the disease shows in the features."""
    rng = np.random.default_rng(2)
    site = np.repeat([0, 1], 60)
    disease = (rng.random(120) < np.where(site, 0.85, 0.15)).astype(int)
    features = rng.normal(size=(120, 8)) + 3 * disease[:, None]
    asked = (features, [f"s{s}" for s in site], [f"p{i}" for i in range(120)])
    assert probe(*asked).p < 0.01
    assert probe(*asked, strata=[f"d{d}" for d in disease]).p > 0.05


def test_a_difference_is_found_and_none_is_not():
    before, after = (cohort(3, patients=40, shift=shift) for shift in (5.0, 0.0))
    first, second = probe(*before), probe(*after)
    assert difference_p(first, second, before[2]) < 0.01
    assert difference_p(first, first, before[2]) == 1.0


def test_the_same_seed_gives_the_same_answer_and_three_sites_work():
    features, _, cases = cohort(4, patients=30)
    sites = [f"s{int(case.split()[1]) % 3}" for case in cases]
    first, second = probe(features, sites, cases), probe(features, sites, cases)
    assert first.to_json() == second.to_json()
    assert first.chance == pytest.approx(1 / 3, abs=0.05)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda f, s, c: (f, ["x"] * len(s), c), "one site"),
        (lambda f, s, c: (f, ["rare", *s[1:]], c), "two are needed"),
        (lambda f, s, c: (f[:-1], s, c), "a finite row"),
        (lambda f, s, c: (f * np.nan, s, c), "a finite row"),
    ],
)
def test_what_cannot_be_asked_is_said(change, told):
    with pytest.raises(stain.StainError, match=told):
        probe(*change(*cohort(0)))
