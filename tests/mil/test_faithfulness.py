"""Curves, sanity and concepts on models whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mil import Bag, MilError, create_head, explain
from mil.explain.faithfulness import Curve, deletion, faithfulness, insertion
from mil.explain.sanity import agreement, randomized_head, stability
from mil.explain.tcav import holm, tcav, tcav_of_several

D = 6


def linear_head():
    """Mean pooling whose logit 1 is four times the mean of feature 0, where that is positive."""
    head = create_head("mean", D, 2, hidden=D, dropout=0.0).eval()
    with torch.no_grad():
        head.first_linear.weight.copy_(torch.eye(D))
        head.first_linear.bias.zero_()
        head.classifier.weight.zero_()
        head.classifier.bias.zero_()
        head.classifier.weight[1, 0] = 4.0
    return head


def bag_of(column):
    rows = np.zeros((len(column), D), np.float32)
    rows[:, 0] = column
    return Bag.from_list([rows])


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def test_deletion_and_insertion_are_what_the_model_says_of_what_is_left():
    head, column = linear_head(), np.array([1.0, 4.0, 2.0, 3.0])
    order = np.array([1, 3, 2, 0])
    curve = deletion(head, bag_of(column), 1, order)
    assert np.allclose(curve.shares, [0, 0.25, 0.5, 0.75])
    assert np.allclose(curve.probabilities, sigmoid(4 * np.array([2.5, 2.0, 1.5, 1.0])), atol=1e-6)
    curve = insertion(head, bag_of(column), 1, order)
    assert np.allclose(curve.probabilities, sigmoid(4 * np.array([4, 3.5, 3, 2.5])), atol=1e-6)


def test_area_and_drop_are_those_of_the_trapezoids():
    curve = Curve(np.array([0, 0.5, 0.75]), np.array([1.0, 0.5, 0.0]))
    assert curve.area == pytest.approx((0.75 * 0.5 + 0.25 * 0.25) / 0.75)
    assert curve.drop == pytest.approx(1 - curve.area)


def test_the_true_order_beats_random_and_random_beats_the_reverse():
    head = linear_head()
    column = np.zeros(60)
    column[[3, 17, 44]] = 30
    bag, noise = bag_of(column), np.random.default_rng(0).normal(size=60) * 1e-6
    good = faithfulness(head, bag, 1, column + noise)
    bad = faithfulness(head, bag, 1, -column + noise)
    assert good.deletion > 2 * good.deletion_random > 0
    assert bad.deletion < bad.deletion_random
    assert good.insertion > good.insertion_random > bad.insertion
    assert faithfulness(head, bag, 1, column + noise) == good


def test_a_bag_of_one_tile_has_a_curve():
    head = linear_head()
    found = faithfulness(head, bag_of([2.0]), 1, [1.0])
    assert (found.deletion, found.deletion_random) == (0.0, 0.0)


def test_agreement_is_spearman_and_a_flat_map_agrees_with_nothing():
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=50), rng.integers(0, 5, 50)
    from scipy.stats import spearmanr

    assert agreement(one, other) == pytest.approx(spearmanr(one, other).statistic, abs=1e-12)
    assert agreement(one, np.zeros(50)) == 0.0
    assert stability([one, one, -one]) == pytest.approx(-1 / 3)
    assert stability([one]) is None


def test_a_randomized_head_has_other_weights_same_input_and_leaves_the_random_state_alone():
    torch.manual_seed(0)
    head = create_head("gated_abmil", D, 2, hidden=8).eval()
    head.fit_input(torch.randn(50, D) * 3 + 1)
    state = torch.get_rng_state()
    fresh = randomized_head(head, 1)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(fresh.input.mean, head.input.mean)
    assert not torch.equal(fresh.classifier.weight, head.classifier.weight)
    assert torch.equal(randomized_head(head, 1).classifier.weight, fresh.classifier.weight)
    bag = Bag.from_list([np.random.default_rng(0).normal(size=(80, D)).astype(np.float32)])
    assert abs(agreement(explain("lrp", head, bag, 1), explain("lrp", fresh, bag, 1))) < 0.95


def concept(rng, direction, n=30):
    return rng.normal(size=(n, D)) * 0.3 + direction


def test_tcav_finds_a_concept_that_is_a_weight_and_no_other():
    """Feature 0 drives the class, feature 3 does nothing, minus feature 0 speaks against it."""
    head, rng = linear_head(), np.random.default_rng(0)
    with torch.no_grad():  # no ReLU corner: all tiles lie where it is linear
        head.first_linear.bias.fill_(10.0)
    bags = [Bag.from_list([rng.normal(size=(20, D)).astype(np.float32)]) for _ in range(8)]
    along = np.eye(D) * 2
    counters = [concept(rng, 0 * along[0]) for _ in range(20)]
    concepts = {"for": concept(rng, along[0]), "idle": concept(rng, along[3]), "against": concept(rng, -along[0])}
    found = {one.concept: one for one in tcav(head, bags, 1, concepts, counters)}
    assert found["for"].score == 1.0
    assert found["against"].score == 0.0
    assert found["for"].p < 0.01
    assert found["against"].p < 0.01
    assert found["idle"].p > 0.05
    assert 0.2 < found["idle"].random < 0.8
    assert found["for"].accuracy > 0.95


def test_an_ensemble_scores_a_concept_by_the_mean_of_its_members():
    """One member takes feature 0 the other way round; and the same member twice is no more proof."""
    one, other, rng = linear_head(), linear_head(), np.random.default_rng(2)
    with torch.no_grad():
        for head, weight in ((one, 4.0), (other, -1.0)):
            head.first_linear.bias.fill_(10.0)
            head.classifier.weight[1, 0] = weight
    bags = [Bag.from_list([rng.normal(size=(9, D)).astype(np.float32)]) for _ in range(4)]
    counters = [concept(rng, 0.0) for _ in range(10)]
    concepts = {"for": concept(rng, 2 * np.eye(D)[0])}
    alone = [tcav(head, bags, 1, concepts, counters) for head in (one, other)]
    both = tcav_of_several([(one, bags), (other, bags)], 1, concepts, counters)
    for mean, *each in zip(both, *alone, strict=True):
        assert mean.score == pytest.approx(np.mean([member.score for member in each]))
        assert mean.apart == pytest.approx(np.std([member.score for member in each]))
        assert mean.accuracy == pytest.approx(np.mean([member.accuracy for member in each]))
    assert (both[0].score, both[0].apart) == (0.5, 0.5)
    assert both[0].p > 0.05  # the members cancel out: in the mean the concept does nothing
    assert tcav_of_several([(one, bags), (one, bags)], 1, concepts, counters) == alone[0]
    with pytest.raises(MilError, match="no slide"):
        tcav_of_several([], 1, concepts, counters)


def test_random_concepts_are_significant_no_more_often_than_chance_says():
    head, rng = linear_head(), np.random.default_rng(1)
    with torch.no_grad():
        head.first_linear.bias.fill_(10.0)
    bags = [Bag.from_list([rng.normal(size=(10, D)).astype(np.float32)]) for _ in range(5)]
    counters = [concept(rng, 0.0) for _ in range(12)]
    chances = [tcav(head, bags, 1, {"x": concept(rng, 0.0)}, counters)[0].p for _ in range(8)]
    assert np.mean(np.array(chances) < 0.01) <= 0.25  # one concept's vectors share its examples: not independent


def test_holm_is_that_of_the_book():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []


def test_too_little_is_said():
    head, rows = linear_head(), np.zeros((10, D))
    bag = Bag.from_list([rows.astype(np.float32)])
    for bags, concepts, counters, word in [
        ([], {"a": rows}, [rows] * 10, "no slide"),
        ([bag], {}, [rows] * 10, "no concept"),
        ([bag], {"a": rows}, [rows] * 3, "3 random"),
        ([bag], {"a": rows[:2]}, [rows] * 10, "a: 2 example"),
    ]:
        with pytest.raises(MilError, match=word):
            tcav(head, bags, 1, concepts, counters)
