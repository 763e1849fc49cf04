"""Metrics against scikit-learn and against counting by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest
import sklearn.metrics as sk
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from mil import MilError, auc, bootstrap_interval, evaluate
from mil.metrics import average_precision, choose_threshold, interval_of_agreement, roc_curve

# Few distinct scores, so that ties are common.
scored = st.lists(st.tuples(st.booleans(), st.integers(0, 6)), min_size=2, max_size=40).filter(
    lambda rows: 0 < sum(label for label, _ in rows) < len(rows)
)


def columns(rows):
    return np.array([label for label, _ in rows]), np.array([score for _, score in rows]) / 7


@given(scored)
def test_auc_is_the_share_of_pairs_in_order_with_ties_half(rows):
    y, s = columns(rows)
    pairs = [(p > n) + 0.5 * (p == n) for p in s[y] for n in s[~y]]
    assert auc(y, s) == pytest.approx(np.mean(pairs), abs=1e-12)


@given(scored)
def test_auc_average_precision_and_roc_are_those_of_scikit_learn(rows):
    y, s = columns(rows)
    assert auc(y, s) == pytest.approx(sk.roc_auc_score(y, s), abs=1e-12)
    assert average_precision(y, s) == pytest.approx(sk.average_precision_score(y, s), abs=1e-12)
    for ours, theirs in zip(roc_curve(y, s), sk.roc_curve(y, s, drop_intermediate=False), strict=True):
        assert np.allclose(ours, theirs)


@settings(max_examples=25, deadline=None)
@given(scored, st.floats(0.05, 0.95))
def test_evaluate_agrees_with_scikit_learn(rows, threshold):
    y, s = columns(rows)
    result = evaluate(
        y, np.stack([1 - s, s], axis=1), [str(i) for i in range(y.size)], ("n", "p"), threshold, resamples=5
    )
    predicted = s >= threshold
    assert result["accuracy"] == pytest.approx(sk.accuracy_score(y, predicted))
    assert result["balanced_accuracy"] == pytest.approx(sk.balanced_accuracy_score(y, predicted))
    assert result["sensitivity"] == pytest.approx(sk.recall_score(y, predicted))
    assert result["specificity"] == pytest.approx(sk.recall_score(~y, ~predicted))
    assert result["confusion"] == sk.confusion_matrix(y, predicted, labels=[False, True]).tolist()
    assert result["brier"] == pytest.approx(sk.brier_score_loss(y, s))
    json.dumps(result, allow_nan=False)


def test_three_classes_are_scored_one_against_the_rest():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 60)
    p = rng.dirichlet([1, 1, 1], 60) + np.eye(3)[y]
    p /= p.sum(axis=1, keepdims=True)
    result = evaluate(y, p, [str(i) for i in range(60)], ("a", "b", "c"), resamples=20)
    assert result["auc"] == pytest.approx(sk.roc_auc_score(y, p, multi_class="ovr"))
    assert result["balanced_accuracy"] == pytest.approx(sk.balanced_accuracy_score(y, p.argmax(axis=1)))
    assert result["threshold"] is None
    assert "positive_class" not in result
    assert set(result["roc"]) == {"0", "1", "2"}


def test_one_class_only_gives_none_and_not_a_number_that_json_refuses():
    result = evaluate([1, 1], [[0.2, 0.8], [0.6, 0.4]], ["a", "b"], ("n", "p"), resamples=10)
    assert result["auc"] is None
    assert result["auc_interval"] == [None, None]
    assert "no resample" in result["auc_interval_method"]
    assert result["specificity"] is None
    assert result["sensitivity"] == 0.5
    json.dumps(result, allow_nan=False)


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(MilError, match="do not fit"):
        evaluate([0, 1], [[0.5, 0.5]], ["a", "b"], ("n", "p"))
    with pytest.raises(MilError, match="0 or 1"):
        auc([0, 2], [0.1, 0.2])


def test_bootstrap_of_a_mean_has_the_width_of_the_normal_interval():
    """One slide per patient: the percentile interval of a mean is about mean ± 1.96 sd / √n."""
    x = np.random.default_rng(0).normal(size=400)
    found = bootstrap_interval(x, x, [str(i) for i in range(400)], lambda y, _: float(y.mean()), n=4000)
    half = 1.96 * x.std() / 20
    assert found.low == pytest.approx(x.mean() - half, abs=0.012)
    assert found.high == pytest.approx(x.mean() + half, abs=0.012)


def test_copies_of_a_slide_do_not_narrow_the_interval_but_would_if_patients_were_ignored():
    rng = np.random.default_rng(1)
    y, s = np.repeat(np.arange(40) % 2, 1), rng.normal(size=40) + np.arange(40) % 2
    patients = [str(i) for i in range(40)]
    once = bootstrap_interval(y, s, patients)
    copies = bootstrap_interval(np.repeat(y, 5), np.repeat(s, 5), np.repeat(patients, 5))
    ignored = bootstrap_interval(np.repeat(y, 5), np.repeat(s, 5), [str(i) for i in range(200)])
    assert (copies.low, copies.high) == pytest.approx((once.low, once.high))
    assert ignored.high - ignored.low < 0.6 * (once.high - once.low)


def test_clustered_interval_covers_the_truth_about_as_often_as_it_says():
    """Two correlated slides a patient, true AUC Φ(1/√2·δ/σ) known; 95 % intervals, 120 cohorts."""
    truth, hits = 0.7602499, 0  # Φ(1/√2) for unit shift and unit total variance
    for seed in range(120):
        rng = np.random.default_rng(seed)
        y = np.repeat(np.arange(60) % 2, 2)
        s = y + np.sqrt(0.7) * np.repeat(rng.normal(size=60), 2) + np.sqrt(0.3) * rng.normal(size=120)
        found = bootstrap_interval(y, s, np.repeat(np.arange(60), 2).astype(str), n=200, seed=seed)
        hits += found.low <= truth <= found.high
    assert 0.87 <= hits / 120 <= 1.0


def test_resamples_of_one_class_are_dropped_and_counted():
    found = bootstrap_interval([0, 1, 1], [0.1, 0.8, 0.9], ["a", "b", "c"], n=500)
    assert found.dropped > 0
    assert found.resamples + found.dropped == 500


def test_a_resample_without_a_class_of_the_sample_is_dropped():
    """42 patients, 2 of class c: (40/42)^42, 13 % of the resamples, have none; scikit-learn scores the others."""
    rng = np.random.default_rng(3)
    y = np.repeat([0, 1, 2], [20, 20, 2])
    p = rng.dirichlet([1, 1, 1], 42) + 0.5 * np.eye(3)[y]
    p /= p.sum(axis=1, keepdims=True)
    patients = [f"{i:02}" for i in range(42)]
    result = evaluate(y, p, patients, ("a", "b", "c"), resamples=400, seed=5)
    draw, whole = np.random.default_rng(5), []
    for _ in range(400):
        rows = draw.integers(42, size=42)
        if set(y[rows]) == {0, 1, 2}:
            whole.append(sk.roc_auc_score(y[rows], p[rows], multi_class="ovr"))
    assert 20 < 400 - len(whole) < 90
    assert f"{len(whole)} resamples, {400 - len(whole)} dropped" in result["auc_interval_method"]
    assert result["auc_interval"] == pytest.approx(list(np.quantile(whole, [0.025, 0.975])))


def test_a_class_that_no_slide_has_drops_nothing():
    """Of three classes the slides have two: these are scored, and resamples are held to these."""
    rng = np.random.default_rng(4)
    y, p = np.arange(30) % 2, rng.dirichlet([1, 1, 1], 30)
    result = evaluate(y, p, [str(i) for i in range(30)], ("a", "b", "c"), resamples=50)
    assert result["auc"] == pytest.approx(np.mean([sk.roc_auc_score(y == c, p[:, c]) for c in (0, 1)]))
    assert "50 resamples" in result["auc_interval_method"]


def test_evaluate_resamples_patients_and_not_slides():
    """Six copies of every slide bring no certainty, unless they are said to be of six patients."""
    rng = np.random.default_rng(2)
    y = np.arange(24) % 2
    s = np.clip(0.5 + 0.15 * (2 * y - 1) + 0.25 * rng.normal(size=24), 0.01, 0.99)
    p, patients = np.stack([1 - s, s], axis=1), [f"{i:02}" for i in range(24)]
    many = np.repeat(y, 6), np.repeat(p, 6, axis=0)
    once = evaluate(y, p, patients, ("n", "p"))
    copies = evaluate(*many, np.repeat(patients, 6).tolist(), ("n", "p"))
    ignored = evaluate(*many, [str(i) for i in range(144)], ("n", "p"))
    assert (copies["n"], copies["n_patients"]) == (144, 24)
    for key in ("auc_interval", "accuracy_interval"):
        assert copies[key] == pytest.approx(once[key])
        assert np.diff(ignored[key]) < 0.6 * np.diff(once[key])


@pytest.mark.parametrize(("right", "ends"), [(True, [0.025**0.25, 1.0]), (False, [0.0, 1 - 0.025**0.25])])
def test_a_perfect_or_a_hopeless_ranking_does_not_claim_certainty(right, ends):
    """8 patients, 4 of each class: 0.025^(1/4). All 8 are predicted right, or wrong: 0.025^(1/8)."""
    y = np.repeat([0, 0, 0, 0, 1, 1, 1, 1], 2)
    s = y if right else 1 - y
    result = evaluate(y, np.stack([1 - s, s], axis=1), np.repeat(list("abcdefgh"), 2).tolist(), ("n", "p"))
    assert result["auc"] == result["accuracy"] == float(right)
    assert result["auc_interval"] == pytest.approx(ends)
    assert result["accuracy_interval"] == pytest.approx([0.025**0.125, 1.0] if right else [0.0, 1 - 0.025**0.125])
    assert "exact" in result["auc_interval_method"]
    assert "4 pair" in result["auc_interval_method"]
    assert "exact" in result["accuracy_interval_method"]
    assert "8 patient" in result["accuracy_interval_method"]
    assert result["positive_class"] == "p"


def test_patients_who_are_all_half_right_do_not_claim_certainty():
    """Every resample says 1/2, for the accuracy and, the scores being equal, for the AUC."""
    y = np.tile([0, 1], 10)
    result = evaluate(y, np.full((20, 2), 0.5), np.repeat(list("abcdefghij"), 2).tolist(), ("n", "p"))
    assert result["accuracy_interval"] == pytest.approx([0.2366, 0.7634], abs=1e-4)  # Wilson, 5 of 10
    assert result["auc_interval"] == pytest.approx([0.2366, 0.7634], abs=1e-4)
    assert "Wilson" in result["accuracy_interval_method"]


@pytest.mark.parametrize("k", [1, 3, 14, 100])
@pytest.mark.parametrize("value", [0.0, 0.25, 0.5, 1.0])
def test_the_interval_of_agreement_is_that_of_scipy(k, value):
    if value * k == round(value * k):
        method = "exact" if value in (0.0, 1.0) else "wilson"
        theirs = stats.binomtest(round(value * k), k).proportion_ci(0.9, method=method)
        assert interval_of_agreement(value, k, level=0.9) == pytest.approx((theirs.low, theirs.high))
    low, high = interval_of_agreement(value, k)
    assert 0 <= low <= value <= high <= 1
    assert low < high


def test_a_figure_with_doubt_says_that_it_was_resampled():
    y = np.array([0, 0, 0, 1, 1, 1, 0, 1])
    s = np.array([0.1, 0.2, 0.6, 0.4, 0.8, 0.9, 0.3, 0.7])
    result = evaluate(y, np.stack([1 - s, s], axis=1), list("abcdefgh"), ("n", "p"))
    assert result["accuracy_interval_method"] == "percentile bootstrap over patients, 2000 resamples"
    assert result["auc_interval_method"].startswith("percentile bootstrap over patients, ")


@given(scored)
def test_no_cut_has_a_higher_balanced_accuracy_than_the_chosen_one(rows):
    y, s = columns(rows)
    best = max(sk.balanced_accuracy_score(y, s >= t) for t in [*(np.unique(s) - 1e-9), 2])
    assert sk.balanced_accuracy_score(y, s >= choose_threshold(y, s)) == pytest.approx(best)


def test_the_threshold_lies_in_the_gap_and_is_one_half_where_that_is_as_good():
    assert choose_threshold([0, 0, 1], [0.1, 0.2, 0.4]) == pytest.approx(0.3)
    assert choose_threshold([0, 0, 1], [0.1, 0.2, 0.9]) == 0.5
    assert choose_threshold([1, 1], [0.1, 0.2]) == 0.5
