"""Tasks: losses against closed forms and other libraries' printed numbers; missing labels cost nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import sklearn.metrics as sk
import torch
from _mil_cohort import cohort

from mil import Bag, TrainingDataError, TrainSettings, load_model, predict, train
from mil.ensemble import distill, predict_together
from mil.survival import auc_at, concordance
from mil.task_balance import UncertaintyWeights, conflict, pcgrad
from mil.tasks import Classification, Cox, DiscreteHazard, MultiLabel, MultiTask, Ordinal, Regression, task_from
from mil.tasks.distillation import distillation_loss, softened
from mil.tasks.ordinal import quadratic_kappa
from mil.tasks.survival import cox_loss

NAN = float("nan")


def slow_cox(risk, time, event, ties):
    """The partial likelihood, one event at a time, in words of the papers."""
    total, events = 0.0, 0
    for t in sorted({t for t, e in zip(time, event, strict=True) if e}):
        at_risk = sum(np.exp(r) for r, s in zip(risk, time, strict=True) if s >= t)
        tied = [r for r, s, e in zip(risk, time, event, strict=True) if s == t and e]
        for place, r in enumerate(tied):
            share = place / len(tied) * sum(np.exp(tied)) if ties == "efron" else 0.0
            total += np.log(at_risk - share) - r
            events += 1
    return total / events


@pytest.mark.parametrize("ties", ["efron", "breslow"])
def test_the_cox_loss_is_the_partial_likelihood_of_the_papers(ties):
    rng = np.random.default_rng(0)
    risk, event = rng.normal(size=60), rng.random(60) < 0.6
    time = rng.integers(1, 15, 60).astype(float)  # many ties
    found = cox_loss(torch.tensor(risk), torch.tensor(time), torch.tensor(event).double(), ties=ties)
    assert float(found) == pytest.approx(slow_cox(risk, time, event, ties), abs=1e-12)
    untied = torch.arange(60).double()
    both = [cox_loss(torch.tensor(risk), untied, torch.tensor(event).double(), ties=t) for t in ("efron", "breslow")]
    assert both[0] == pytest.approx(float(both[1]), abs=1e-12)
    assert float(cox_loss(torch.tensor(risk), untied, torch.zeros(60).double())) == 0
    large = cox_loss(torch.tensor(risk) + 800, torch.tensor(time), torch.tensor(event).double(), ties=ties)
    assert float(large) == pytest.approx(float(found), abs=1e-9)


def test_batches_with_a_bank_follow_the_gradient_of_the_full_likelihood():
    """The sum of the batches' slopes, at unchanged weights, is n / B times the one of all slides at once."""
    torch.manual_seed(0)
    risk = torch.randn(12, 1, dtype=torch.float64, requires_grad=True)
    target = torch.stack([torch.randint(1, 6, (12,)), torch.randint(0, 2, (12,))], dim=1).double()
    task = Cox()
    (whole,) = torch.autograd.grad(cox_loss(risk[:, 0], *target.unbind(dim=1)), risk)
    parts = torch.zeros_like(risk)
    for rows in torch.arange(12).split(4):
        loss = task.loss_in_bank(risk[rows], rows, risk[:, 0], target)
        assert float(loss[0].detach()) == pytest.approx(float(cox_loss(risk[:, 0].detach(), *target.unbind(dim=1))))
        parts += torch.autograd.grad(loss.mean(), risk)[0]
    assert torch.allclose(parts, whole * 3, atol=1e-12)


def test_the_discrete_hazard_is_the_chance_of_what_was_seen():
    task = DiscreteHazard(bins=3, cuts=(10.0, 20.0))
    logits = torch.tensor([[0.3, -1.0, 0.7]]).double()
    h = torch.sigmoid(logits[0])
    for time, event, chance in [
        (5, 1, h[0]),
        (10, 1, h[0]),
        (15, 1, (1 - h[0]) * h[1]),
        (25, 1, (1 - h[0]) * (1 - h[1]) * h[2]),
        (15, 0, 1 - h[0]),
        (5, 0, torch.tensor(1.0)),
        (99, 0, (1 - h[0]) * (1 - h[1])),
    ]:
        loss = task.loss(logits, torch.tensor([[time, event]]).double())
        assert float(loss) == pytest.approx(-float(torch.log(chance)), abs=1e-12)
    answer = task.answer(logits.numpy())[0]
    alive = np.cumprod(1 - h.numpy())
    assert answer == pytest.approx([3 - alive.sum(), alive[0], alive[1]])
    target = np.array([[t, 1] for t in range(1, 13)], float)
    assert DiscreteHazard(bins=4).fitted(target).cuts == pytest.approx((3.75, 6.5, 9.25))


def test_ordinal_chances_are_products_and_sum_to_one():
    task = Ordinal(("a", "b", "c", "d"))
    logits = np.random.default_rng(0).normal(size=(50, 3)) * 3
    p, s = task.answer(logits), 1 / (1 + np.exp(-logits))
    assert p.sum(axis=1) == pytest.approx(np.ones(50))
    assert (p >= 0).all()
    assert p[:, 2] == pytest.approx(s[:, 0] * s[:, 1] * (1 - s[:, 2]))
    # the loss is -log of the chance of the class, over the number of steps
    y = np.random.default_rng(1).integers(0, 4, 50)
    loss = task.loss(torch.tensor(logits), torch.tensor(y[:, None]).double())
    assert loss.numpy() == pytest.approx(-np.log(p[np.arange(50), y]) / 3)
    a, b = np.random.default_rng(2).integers(0, 4, (2, 200))
    assert quadratic_kappa(a, b, 4) == pytest.approx(sk.cohen_kappa_score(a, b, weights="quadratic"))


@pytest.mark.parametrize(
    ("task", "target", "row"),
    [
        (Classification(("a", "b", "c")), [[0.0], [1], [2], [NAN]], 3),
        (MultiLabel(("a", "b")), [[0.0, 1], [1, 0], [1, NAN], [NAN, NAN]], 3),
        (Ordinal(("a", "b", "c")), [[0.0], [1], [2], [NAN]], 3),
        (Regression("age"), [[50.0], [60], [75], [NAN]], 3),
        (DiscreteHazard(2), [[5.0, 1], [9, 1], [7, 0], [NAN, 1]], 3),
    ],
)
def test_what_is_not_known_costs_nothing_and_moves_nothing(task, target, row):
    task = task.fitted(np.array(target))
    logits = torch.randn(4, task.outputs, dtype=torch.float64, requires_grad=True)
    loss = task.loss(logits, torch.tensor(target).double())
    assert float(loss[row].detach()) == 0
    (slope,) = torch.autograd.grad(loss.sum(), logits)
    assert slope[row].abs().max() == 0
    assert slope.isfinite().all()
    assert (slope[:2].abs().sum(dim=1) > 0).all()
    assert task.known(np.array(target)).tolist() == [True, True, True, False]
    again = task_from(task.spec())
    assert again == task
    assert np.isfinite(task.full_loss(logits.detach(), torch.tensor(target).double()))


def test_a_label_that_is_missing_leaves_the_others_of_its_slide():
    task = MultiLabel(("a", "b"), balanced=False)
    logits = torch.tensor([[0.7, 99.0]]).double()
    loss = task.loss(logits, torch.tensor([[1.0, NAN]]).double())
    assert float(loss) == pytest.approx(np.log(1 + np.exp(-0.7)))


def test_harrells_c_is_the_one_of_a_loop_over_all_pairs():
    rng = np.random.default_rng(0)
    time, event, risk = rng.integers(1, 20, 80), rng.random(80) < 0.5, rng.integers(0, 9, 80)
    right = pairs = 0.0
    for i in range(80):
        for j in range(80):
            earlier = time[i] < time[j] or (time[i] == time[j] and not event[j])
            if event[i] and earlier and i != j:
                pairs += 1
                right += 1.0 if risk[i] > risk[j] else 0.5 if risk[i] == risk[j] else 0.0
    assert concordance(time, event, risk) == pytest.approx(right / pairs)


def test_auc_at_a_time_without_censoring_is_the_plain_auc():
    rng = np.random.default_rng(0)
    time, risk = rng.exponential(size=100), rng.normal(size=100)
    found = auc_at(time, np.ones(100, bool), risk, 0.8)
    assert found == pytest.approx(sk.roc_auc_score(time <= 0.8, risk))


def test_pcgrad_of_two_tasks_is_the_closed_form():
    """[1, 0] and [-1, 1]: torchjd's PCGrad gives the mean (0.5, 1.5) / 1."""
    a, b = torch.tensor([1.0, 0.0]), torch.tensor([-1.0, 1.0])
    assert torch.allclose(pcgrad([a, b], [[0, 1], [1, 0]]), 2 * torch.tensor([0.25, 0.75]))
    assert torch.allclose(pcgrad([a, -b], [[1, 0], [0, 1]]), a - b)  # no conflict: the sum
    assert conflict([a, b]) == (pytest.approx(-(0.5**0.5)), 1.0)


def test_the_learned_weight_of_a_task_is_the_inverse_of_its_loss():
    """Its slope is 0 at s = log L, and s = 0 leaves the losses as they are."""
    weights, losses = UncertaintyWeights(2), [torch.tensor(0.2), torch.tensor(5.0)]
    assert [float(x.detach()) for x in weights(losses)] == pytest.approx([0.2, 5.0])
    with torch.no_grad():
        weights.s.copy_(torch.log(torch.stack(losses)))
    sum(weights(losses)).backward()
    assert weights.s.grad.abs().max() < 1e-6


def test_distillation_is_zero_for_the_teacher_itself_and_matches_logits_at_high_temperature():
    torch.manual_seed(0)
    x, y = torch.randn(2, 5, 3, dtype=torch.float64)
    for t in (1.0, 4.0):
        assert distillation_loss(x, torch.softmax(x / t, 1), t).abs().max() < 1e-12
    hot = distillation_loss(x, torch.softmax(y / 1e4, 1), 1e4)
    centered = (x - x.mean(1, keepdim=True)) - (y - y.mean(1, keepdim=True))
    assert torch.allclose(hot, centered.square().sum(dim=1) / (2 * 3), rtol=1e-3)
    assert softened(np.stack([x.numpy()] * 2), 2.0) == pytest.approx(torch.softmax(x / 2, 1).numpy())


SMALL = {"concept": 0, "tiles": (15, 30), "delta": 3.0, "positive": (3, 8)}
QUICK = TrainSettings(epochs=12, patience=12, batch_size=4, lr=1e-3)


@pytest.fixture(scope="module")
def sides():
    return cohort(24, 1, seed=0, **SMALL)[0], cohort(12, 1, seed=1, **SMALL)[0], cohort(20, 1, seed=2, **SMALL)[0]


def asked(side, kind):
    """Labels of a kind, all made from the same hidden class; some are missing."""
    rng, y = np.random.default_rng(len(side)), side.labels.astype(float)
    times = np.where(y == 1, 2.0, 9.0) * rng.uniform(0.7, 1.3, len(y))
    events = (rng.random(len(y)) < 0.8).astype(float)
    number = 10 + 5 * y + rng.normal(size=len(y)) * 0.5
    made = {
        "multilabel": np.stack([y, 1 - y], 1),
        "ordinal": np.where(y == 1, 2, np.arange(len(y)) // 2 % 2).astype(float),
        "regression": number,
        "cox": np.stack([times, events], 1),
        "hazard": np.stack([times, events], 1),
        "multi": np.column_stack([y, number, times, events]),
    }[kind]
    made[1] = NAN
    return replace(side, labels=made)


TASKS = {
    "multilabel": MultiLabel(("hot", "cold")),
    "ordinal": Ordinal(("low", "mid", "high")),
    "regression": Regression("age"),
    "cox": Cox(),
    "hazard": DiscreteHazard(3),
    "multi": MultiTask({"class": Classification(("n", "p")), "age": Regression(), "death": Cox()}),
}


@pytest.mark.parametrize("kind", sorted(TASKS))
def test_every_task_learns_is_stored_and_answers(kind, sides, tmp_path):
    """Held-out patients; 0.5 would be chance for AUC and C, 0 for the others."""
    settings = QUICK if kind != "multi" else replace(QUICK, surgery="pcgrad", task_weights="uncertainty")
    seen = []
    fit, stop, test = (asked(side, kind) for side in sides)
    model = train(fit, stop, TASKS[kind], settings, on_epoch=seen.append)
    for name, data in model.to_files().items():
        (tmp_path / name).write_bytes(data)
    again = load_model(tmp_path)
    assert again.task == model.task
    bag = Bag.from_list([test.bags[i] for i in range(len(test))])
    answers = np.stack([p.answer for p in predict(again, bag)])
    score = model.task.score(model.task.encode(test.labels), answers)
    assert score > {"regression": 0.3, "ordinal": 0.4, "multi": 0.5}.get(kind, 0.75)
    assert answers.shape[1] == len(model.task.columns)
    assert len(set(model.task.output_names)) == len(model.task.output_names) == again.head.classes
    assert all((e.conflict is None) == (kind != "multi") for e in seen)
    assert predict(again, bag)[0].pred


def test_survival_beside_another_task_has_full_risk_sets_too(sides):
    """In a batch of one slide nobody else is at risk: alone, the batch would teach nothing."""
    fit, stop = (asked(side, "cox") for side in sides[:2])
    settings = replace(QUICK, epochs=4, batch_size=1)
    alone = train(fit, stop, Cox(), settings).head.state_dict()
    same = train(fit, stop, MultiTask({"death": Cox()}), settings).head.state_dict()
    assert all(torch.allclose(alone[name], same[name], atol=1e-5) for name in alone)
    few = [np.where(np.arange(len(side)) < 2, np.arange(len(side)), NAN) for side in (fit, stop)]
    beside = [replace(s, labels=np.column_stack([y, s.labels])) for s, y in zip((fit, stop), few, strict=True)]
    model = train(*beside, MultiTask({"n": Regression(), "death": Cox()}), replace(settings, epochs=10))
    found = predict(model, Bag.from_list(list(stop.bags)))
    assert sk.roc_auc_score(sides[1].labels, [p.answer[1] for p in found]) > 0.9  # those who die soon


def test_an_ensemble_averages_and_teaches_a_small_head(sides):
    fit, stop, test = sides
    members = [train(fit, stop, ("n", "p"), replace(QUICK, seed=s)) for s in range(3)]
    bag = Bag.from_list(list(test.bags))
    together = predict_together(members, bag)
    each = np.stack([[p.answer for p in predict(m, bag)] for m in members])
    assert np.stack([t.answer for t in together]) == pytest.approx(each.mean(axis=0))
    assert np.stack([t.spread for t in together]) == pytest.approx(each.std(axis=0))
    unlabeled = replace(fit, labels=np.where(np.arange(len(fit)) < 4, fit.labels, NAN))
    student = distill(members, unlabeled, stop, replace(QUICK, head="mean", head_options={"hidden": 16}, epochs=30))
    assert sum(p.numel() for p in student.head.parameters()) < sum(p.numel() for p in members[0].head.parameters()) / 2
    said = [p.probabilities[1] for p in predict(student, bag)]
    assert sk.roc_auc_score(test.labels, said) > 0.8
    assert student.config["taught_by"]["members"] == 3
    assert task_from(student.config["task_spec"]) == student.task


@pytest.mark.parametrize(
    ("task", "labels", "words"),
    [
        (Cox(), [[0.0, 1], [1, 1]], "time over 0"),
        (Cox(), [[1.0, 0], [1, 0]], "no training slide has an event"),
        (Regression("age"), [5.0, 5.0], "the same age"),
        (Ordinal(("a", "b", "c")), [0.0, 1.0], "all needed"),
        (MultiLabel(("a",)), [[1.0], [1.0]], "answers otherwise for a"),
    ],
)
def test_targets_from_which_nothing_can_be_learned_are_refused(task, labels, words):
    with pytest.raises(TrainingDataError, match=words):
        task.fitted(task.encode(np.array(labels)))
