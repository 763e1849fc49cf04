"""Figures with intervals, against scikit-learn, a slow DeLong, and what must hold."""

from __future__ import annotations

import numpy as np
import pytest
import sklearn.metrics as sk

from mil.delong import compare, delong, delong_interval
from mil.evaluation import compare_models, evaluate_task
from mil.tasks import Classification, Cox, MultiLabel, MultiTask, Ordinal, Regression

NAN = float("nan")


def binary(n=80, seed=0, better=1.0):
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 2
    p = 1 / (1 + np.exp(-(rng.normal(size=n) + better * (y - 0.5))))
    return y[:, None].astype(float), np.stack([1 - p, p], 1).round(2), [f"p{i // 2 // 2 * 2 + i % 2}" for i in range(n)]


def test_delong_is_the_covariance_of_placements_with_ties():
    """Every pair of a positive and a negative, counted."""
    y, p, _ = binary()
    other = np.random.default_rng(1).integers(0, 5, len(y)).astype(float)
    aucs, covariance = delong(y[:, 0], [p[:, 1], other])
    wins = []
    for s in (p[:, 1], other):
        gap = s[y[:, 0] == 1][:, None] - s[y[:, 0] == 0]
        wins.append((gap > 0) + 0.5 * (gap == 0))
    m, n = wins[0].shape
    slow = np.cov([w.mean(1) for w in wins]) / m + np.cov([w.mean(0) for w in wins]) / n
    assert np.allclose(covariance, slow, atol=1e-15)
    assert aucs == pytest.approx([sk.roc_auc_score(y[:, 0], s) for s in (p[:, 1], other)])
    found = compare(y[:, 0], p[:, 1], other)
    assert found.z == pytest.approx((aucs[0] - aucs[1]) / np.sqrt(slow[0, 0] + slow[1, 1] - 2 * slow[0, 1]))
    assert compare(y[:, 0], other, other).p == 1
    assert np.isnan(delong_interval([0, 0, 1, 1], [0.1, 0.2, 0.8, 0.9])).all()


def test_delongs_interval_holds_the_truth_nineteen_times_of_twenty():
    """Scores of two normal distributions one standard deviation apart: the AUC is Φ(1/√2)."""
    rng, truth, inside = np.random.default_rng(0), 0.7602499, 0
    y = np.arange(120) % 2
    for _ in range(400):
        low, high = delong_interval(y, rng.normal(size=120) + y)
        inside += low <= truth <= high
    assert 0.92 <= inside / 400 <= 0.98


def test_figures_of_two_classes_are_scikit_learns():
    y, p, who = binary()
    found = evaluate_task(Classification(("n", "p")), y, p, who, threshold=0.6, resamples=50)["slides"]
    truth, said = y[:, 0], p[:, 1] >= 0.6
    for name, value in {
        "auc": sk.roc_auc_score(truth, p[:, 1]),
        "average_precision": sk.average_precision_score(truth, p[:, 1]),
        "balanced_accuracy": sk.balanced_accuracy_score(truth, said),
        "f1": sk.f1_score(truth, said),
        "sensitivity": sk.recall_score(truth, said),
        "specificity": sk.recall_score(truth, said, pos_label=0),
        "brier": sk.brier_score_loss(truth, p[:, 1]),
    }.items():
        assert found[name]["value"] == pytest.approx(value), name
        low, high = found[name]["interval"]
        assert low < value < high
    assert found["auc"]["delong_independent"] is False


def test_slides_are_cut_at_the_threshold_of_the_model_that_answered_them():
    rng = np.random.default_rng(5)
    y, p, cut = rng.integers(0, 2, 40), rng.random(40), np.repeat([0.2, 0.7], 20)
    two, who = np.column_stack([1 - p, p]), [f"p{i // 2}" for i in range(40)]
    task = Classification(("n", "p"))
    found = evaluate_task(task, y[:, None] * 1.0, two, who, threshold=cut, folds=[str(c) for c in cut], resamples=20)
    said = np.concatenate([p[:20] >= 0.2, p[20:] >= 0.7])
    assert found["slides"]["sensitivity"]["value"] == pytest.approx(sk.recall_score(y, said))
    assert found["folds"]["specificity"]["each"]["0.7"] == pytest.approx(1 - said[20:][y[20:] == 0].mean())
    against = compare_models(task, y[:, None] * 1.0, two, two, who, thresholds=(cut, 0.5), resamples=20)
    difference = sk.balanced_accuracy_score(y, said) - sk.balanced_accuracy_score(y, p >= 0.5)
    assert against["figures"]["balanced_accuracy"]["difference"] == pytest.approx(difference)


def test_figures_of_three_classes_are_scikit_learns():
    rng = np.random.default_rng(0)
    y, p = rng.integers(0, 3, 90), rng.dirichlet([1, 1, 1], 90)
    found = evaluate_task(Classification(tuple("abc")), y[:, None] * 1.0, p, list(map(str, range(90))), resamples=20)
    said = p.argmax(1)
    assert found["slides"]["auc"]["value"] == pytest.approx(sk.roc_auc_score(y, p, multi_class="ovr"))
    assert found["slides"]["macro_f1"]["value"] == pytest.approx(sk.f1_score(y, said, average="macro"))
    assert found["slides"]["balanced_accuracy"]["value"] == pytest.approx(sk.balanced_accuracy_score(y, said))


def test_patients_resampled_as_wholes_give_wider_intervals_than_slides():
    """Ten slides of each patient that all say the same: the interval is that of the patients."""
    y, p, _ = binary(40)
    many = [np.repeat(a, 10, axis=0) for a in (y, p)]
    task = Classification(("n", "p"))
    clustered = evaluate_task(task, *many, [f"p{i // 10}" for i in range(400)], resamples=300)
    naive = evaluate_task(task, *many, list(map(str, range(400))), resamples=300)
    width = [np.diff(r["slides"]["auc"]["interval"])[0] for r in (clustered, naive)]
    assert width[0] > 2 * width[1]
    one = evaluate_task(task, y, p, [f"p{i}" for i in range(40)], resamples=300)
    assert clustered["patients"]["figures"]["auc"]["value"] == pytest.approx(one["slides"]["auc"]["value"])
    assert clustered["patients"]["n"] == 40


def test_pooled_and_per_fold_figures_are_both_told_and_differ():
    """Two folds, each perfect, on different scales: the mean of the folds is 1, the pooled AUC is not."""
    y = np.array([0, 1, 0, 1] * 5)[:, None].astype(float)
    p = np.where(y[:, 0] == 1, 0.4, 0.3)
    folds = ["a"] * 10 + ["b"] * 10
    p[10:] += 0.4
    found = evaluate_task(
        Classification(("n", "p")), y, np.stack([1 - p, p], 1), list(map(str, range(20))), folds=folds, resamples=20
    )
    assert found["folds"]["auc"]["mean"] == 1
    assert found["slides"]["auc"]["value"] == pytest.approx(0.75)


def test_subgroups_are_judged_apart():
    y, p, who = binary()
    sites = ["x" if i % 4 < 2 else "y" for i in range(len(y))]
    found = evaluate_task(Classification(("n", "p")), y, p, who, groups={"site": sites}, resamples=20)
    mine = np.array(sites) == "y"
    assert found["groups"]["site"]["y"]["figures"]["auc"]["value"] == pytest.approx(
        sk.roc_auc_score(y[mine, 0], p[mine, 1])
    )
    assert found["groups"]["site"]["x"]["n"] == 40


def test_other_tasks_have_their_own_figures_and_unknown_slides_are_left_out():
    rng = np.random.default_rng(0)
    who, x = list(map(str, range(60))), rng.normal(size=60)
    target = np.column_stack([x, np.exp(-x), rng.random(60) < 0.7, x > 0, x < 0])
    target[:5] = NAN
    task = MultiTask({"age": Regression("age"), "death": Cox(), "marks": MultiLabel(("m", "k"))})
    answer = np.column_stack([x + 0.1, x, x, -x])
    found = evaluate_task(task, target, answer, who, resamples=20)
    assert {name: part["n"] for name, part in found.items()} == {"age": 55, "death": 55, "marks": 55}
    assert found["age"]["slides"]["mae"]["value"] == pytest.approx(0.1)
    assert found["death"]["slides"]["c_index"]["value"] == 1
    assert found["marks"]["slides"]["auc k"]["value"] == 1
    grades = evaluate_task(Ordinal(tuple("abc")), np.array([[0.0], [2]]), np.eye(3)[[0, 1]], ["a", "b"], resamples=5)
    assert grades["slides"]["mae_grades"]["value"] == 0.5


def test_two_models_on_the_same_slides_are_compared_in_pairs():
    y, good, who = binary(200, better=3.0)
    poor = np.roll(good, 1, axis=0)
    task = Classification(("n", "p"))
    found = compare_models(task, y, good, poor, who, resamples=100)
    assert found["figures"]["auc"]["interval"][0] > 0
    assert found["figures"]["auc"]["p_bootstrap"] <= 0.02
    assert found["delong"]["p"] < 1e-3
    same = compare_models(task, y, good, good, who, resamples=50)
    assert same["figures"]["auc"] == {"difference": 0, "interval": [0, 0], "p_bootstrap": 1}
