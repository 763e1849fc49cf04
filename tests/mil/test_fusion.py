"""Clinical variables beside the slide: what each fusion does with them, and without them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from _mil_cohort import cohort

from mil import HEADS, Bag, BagSet, MilError, TrainingDataError, TrainSettings, create_head, load_model, predict, train
from mil.clinical import Variables
from mil.explain import explanation
from mil.fusion import FUSIONS, attach
from mil.tasks import Cox, Regression

CLASSES = ("negative", "positive")
CELLS = ({"age": "61", "stage": "II"}, {"age": "", "stage": "IV"}, {"age": "7,5", "stage": ""}, {})


def joined(bags, variables, cells):
    rows = (torch.from_numpy(variables.encode(row))[None] for row in cells)
    return [replace(bag, clinical=row) for bag, row in zip(bags, rows, strict=True)]


def small(seed=0):
    """Eight slides with age and stage, some cells of them empty."""
    sides = cohort(8, 1, seed=seed, concept=0, tiles=(6, 12), delta=3.0)[0]
    cells = [{"age": str(40 + 5 * i) if i % 4 else "", "stage": "I" if i % 3 else "II"} for i in range(8)]
    variables = Variables.fit(["age", "stage"], cells)
    return replace(sides, bags=joined(sides.bags, variables, cells)), variables


def test_cells_become_numbers_by_the_training_rows_and_what_says_nothing_new_is_missing():
    rows = [{"age": "50", "stage": "II"}, {"age": "70", "stage": "I"}, {"age": "n/a", "stage": ""}]
    variables = Variables.fit(["age", "stage"], rows)
    assert variables.sizes == (1, 2)
    assert variables.encode({"age": "70", "stage": "I"}).tolist() == [1, 1, 0]
    assert np.array_equal(variables.encode({"age": "x", "stage": "III"}), [np.nan] * 3, equal_nan=True)
    assert np.array_equal(variables.encode(None), [np.nan] * 3, equal_nan=True)
    assert variables.encode({"age": "650"})[0] == 4  # a slip of the pen does not decide
    assert variables.encode({"age": "62,5"})[0] == pytest.approx(0.25)
    strange = variables.strange([{"age": "x", "stage": "III"}, {"age": "", "stage": "I"}])
    assert strange == [("age", "x"), ("stage", "III")]
    assert Variables.from_spec(variables.spec()) == variables
    with pytest.raises(TrainingDataError, match="`grade` says nothing"):
        Variables.fit(["grade"], rows)


@pytest.mark.parametrize("kind", sorted(FUSIONS))
@pytest.mark.parametrize("head", sorted(HEADS))
def test_every_head_takes_every_fusion_alone_as_in_a_batch(head, kind):
    """And what is missing is no NaN, what is known matters, and chunks give the whole."""
    torch.manual_seed(0)
    model = attach(create_head(head, 5, 2, dropout=0.0), kind, (1, 3)).eval()
    rng = np.random.default_rng(0)
    bags = []
    for i, n in enumerate((9, 4, 12)):
        xy = np.stack([np.arange(n) % 3, np.arange(n) // 3], axis=1) * 100
        row = torch.tensor([[0.5, 0.0, 1.0, 0.0], [float("nan")] * 4, [-1.0] + [float("nan")] * 3][i])[None]
        bags.append(replace(Bag.from_list([rng.normal(size=(n, 5)).astype(np.float32)], xy=[xy]), clinical=row))
    with torch.no_grad():
        together = model(Bag.from_list(bags)).logits
        alone = torch.cat([model(bag).logits for bag in bags])
        unknown = model(replace(bags[0], clinical=None)).logits
        assert torch.allclose(together, alone, atol=1e-5)
        assert torch.isfinite(alone).all()
        assert torch.equal(model(replace(bags[1], clinical=None)).logits[0], alone[1])
        assert not torch.allclose(unknown[0], alone[0], atol=1e-6)
        if model.contract.streams:
            assert torch.allclose(model.stream(bags[2].chunks(5)).logits[0], alone[2], atol=1e-5)


def test_early_fusion_is_the_concatenation_of_features_and_variables():
    torch.manual_seed(0)
    fused = attach(create_head("gated_abmil", 5, 2, dropout=0.0), "early", (2,)).eval()
    wide = create_head("gated_abmil", 7, 2, dropout=0.0).eval()
    state = {name: value for name, value in fused.state_dict().items() if not name.startswith("fusion")}
    state["embed.0.weight"] = torch.cat([state["embed.0.weight"], fused.fusion.columns.weight], dim=1)
    state |= {"input.mean": torch.zeros(7), "input.factor": torch.ones(7)}
    wide.load_state_dict(state)
    x, c = torch.randn(6, 5), torch.tensor([[0.3, -1.0]])
    ours = fused(replace(Bag.from_list([x]), clinical=c)).logits
    assert torch.allclose(ours, wide(Bag.from_list([torch.cat([x, c.expand(6, 2)], dim=1)])).logits, atol=1e-6)


def test_late_fusion_without_variables_is_the_slide_alone_to_the_bit():
    torch.manual_seed(0)
    fused = attach(create_head("gated_abmil", 5, 2), "late", (1, 3)).eval()
    plain = create_head("gated_abmil", 5, 2).eval()
    plain.load_state_dict({n: v for n, v in fused.state_dict().items() if not n.startswith("fusion")})
    bag = Bag.from_list([torch.randn(6, 5)])
    assert torch.equal(fused(replace(bag, clinical=torch.full((1, 4), torch.nan))).logits, plain(bag).logits)
    known = replace(bag, clinical=torch.tensor([[1.0, 0.0, 0.0, 1.0]]))
    assert torch.equal(fused(known).parts[:, 0], plain(bag).logits)


def marked(n, seed):
    """A rare disease: a tile feature that helps a little, and a marker that most of the ill and few others carry.

    Both are independent within a class, so the truth is known: log odds of the slide alone and of both.
    """
    rng = np.random.default_rng(seed)
    ill = rng.random(n) < 0.2
    level = rng.normal(size=n) + 1.2 * ill
    marker = rng.random(n) < np.where(ill, 0.9, 0.05)
    bags = [Bag.from_list([np.array([[v, -v]] * 2, np.float32)], ids=[f"{seed}-{i}"]) for i, v in enumerate(level)]
    slide = np.log(0.2 / 0.8) + 1.2 * level - 0.72
    both = slide + np.where(marker, np.log(0.9 / 0.05), np.log(0.1 / 0.95))
    cells = [{"marker": str(int(m))} for m in marker]
    return BagSet(bags, ill.astype(int), tuple(bag.ids[0] for bag in bags)), cells, slide, both


def log_loss(p, y):
    return float(-np.mean(np.log(np.where(y == 1, p, 1 - p))))


@pytest.mark.slow
def test_late_fusion_drops_what_is_missing_and_stays_calibrated_and_zero_filled_early_fusion_does_not():
    """Against the true odds, which the world was drawn from. The marker is known in training and of no test slide."""
    sides, variables, found = [], None, {}
    for n, seed in ((500, 0), (200, 1)):
        side, cells, *_ = marked(n, seed)
        variables = variables or Variables.fit(["marker"], cells)
        sides.append(replace(side, bags=joined(side.bags, variables, cells)))
    held_out, cells, slide, both = marked(600, 2)
    y = held_out.labels
    settings = TrainSettings(
        head="mean", epochs=10, lr=3e-3, batch_size=16, dropout=0.0, decorrelate=0.0, class_weights="none"
    )
    for kind in ("late", "early"):
        model = train(*sides, CLASSES, replace(settings, fusion=kind), variables=variables)
        known = Bag.from_list(joined(held_out.bags, variables, cells))
        for name, bag in (("known", known), ("missing", replace(known, clinical=None))):
            found[kind, name] = np.array([p.probabilities[1] for p in predict(model, bag)])
    best = {"known": log_loss(1 / (1 + np.exp(-both)), y), "missing": log_loss(1 / (1 + np.exp(-slide)), y)}
    excess = {key: log_loss(p, y) - best[key[1]] for key, p in found.items()}
    bias = {key: float(p.mean() - y.mean()) for key, p in found.items()}
    assert max(excess["late", "known"], excess["early", "known"]) < 0.02  # both know what to do with a marker
    assert excess["late", "missing"] < 0.005
    assert abs(bias["late", "missing"]) < 0.015
    assert excess["early", "missing"] > 0.01  # no marker looks like an average one, which is most unlike the ill:
    assert bias["early", "missing"] < -0.03  # of 0.2 that are ill it expects 0.15


def test_late_fusion_is_not_too_sure_where_the_variable_repeats_the_slide():
    """The marker is read off the slide: it adds nothing, and the true odds are those of the slide alone."""
    sides, variables = [], None
    for n, seed in ((400, 0), (200, 1), (600, 2)):
        side, _, slide, _ = marked(n, seed)
        cells = [{"marker": str(int(odds > -0.5))} for odds in slide]
        variables = variables or Variables.fit(["marker"], cells)
        sides.append(replace(side, bags=joined(side.bags, variables, cells)))
    settings = TrainSettings(
        head="mean", epochs=6, lr=1e-2, batch_size=16, dropout=0.0, decorrelate=0.0, class_weights="none", fusion="late"
    )
    model = train(*sides[:2], CLASSES, settings, variables=variables)

    def excess(share):
        model.head.fusion.share.fill_(share)
        said = np.array([p.probabilities[1] for p in predict(model, Bag.from_list(list(sides[2].bags)))])
        return log_loss(said, sides[2].labels) - log_loss(1 / (1 + np.exp(-slide)), sides[2].labels)

    chosen = float(model.head.fusion.share)
    assert chosen < 0.7
    assert excess(chosen) < 0.01 < excess(1.0) / 2


@pytest.mark.parametrize("kind", sorted(FUSIONS))
def test_a_stopped_training_goes_on_and_the_folder_gives_the_same_answers(kind, tmp_path):
    class Stop(Exception):
        pass

    (fit, variables), (stop, _) = small(), small(1)
    settings = TrainSettings(head="clam_sb", epochs=3, fusion=kind, ema=0.5, mixup=0.3, batch_size=2)
    whole = train(fit, stop, CLASSES, settings, variables=variables)
    kept = []

    def keep(data):
        kept.append(data())
        raise Stop

    with pytest.raises(Stop):
        train(fit, stop, CLASSES, settings, keep=keep, variables=variables)
    again = train(fit, stop, CLASSES, settings, resume=kept[0], variables=variables)
    assert again.to_files() == whole.to_files()
    for name, data in whole.to_files().items():
        (tmp_path / name).write_bytes(data)
    loaded = load_model(tmp_path)
    assert loaded.variables == variables
    for row in CELLS:
        bag = loaded.joined(replace(stop.bags[0], clinical=None), row)
        assert np.array_equal(predict(loaded, bag)[0].logits, predict(whole, bag)[0].logits)


@pytest.mark.parametrize("wanted", [Cox(), Regression("x")], ids=["cox", "regression"])
def test_late_fusion_of_other_tasks_trains_both_parts(wanted):
    fit, variables = small()
    times = [[i % 5 + 1, i % 2] for i in range(8)]
    fit = replace(fit, labels=np.array(times if isinstance(wanted, Cox) else range(8), float))
    stop = replace(small(1)[0], labels=fit.labels)
    settings = TrainSettings(head="mean", epochs=1, fusion="late", clinical_dropout=0.0)
    model = train(fit, stop, wanted, settings, variables=variables)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        begin = attach(create_head("mean", 150, 1, dropout=0.25), "late", variables.sizes)
    end = model.head.state_dict()
    still = [name for name, value in begin.named_parameters() if torch.equal(value, end[name])]
    assert still == ["fusion.nothing"]  # never asked for: every slide has some variable


def test_explanations_of_a_fused_head_sum_up_to_its_logit_or_are_refused():
    fit, variables = small()
    torch.manual_seed(0)
    for kind in ("early", "late"):
        head = attach(create_head("gated_abmil", 150, 2), kind, variables.sizes).eval()
        bag = fit.bags[1]
        logit = float(head(bag).logits[0, 1].detach())
        found = explanation("lrp", head, bag, 1)
        assert found.facts["logit"] == pytest.approx(logit, abs=1e-4)
        assert explanation("perturbation", head, bag, 1).facts["logit"] == pytest.approx(logit, abs=1e-5)
    with pytest.raises(MilError, match="does not support lrp"):
        explanation("lrp", attach(create_head("gated_abmil", 150, 2), "middle", (1,)), fit.bags[1], 1)


def test_a_fusion_without_variables_or_of_no_name_is_refused():
    fit, variables = small()
    with pytest.raises(TrainingDataError, match="needs clinical variables"):
        train(fit, small(1)[0], CLASSES, TrainSettings(fusion="late"))
    with pytest.raises(TrainingDataError, match="fusion='soon'"):
        TrainSettings(fusion="soon")
    with pytest.raises(MilError, match="no fusion is called"):
        attach(create_head("mean", 5, 2), "soon", variables.sizes)
