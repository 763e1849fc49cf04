"""Every method on every head that declares it: closed forms, captum, sums, and memory that stays flat."""

from __future__ import annotations

import gc

import numpy as np
import pytest
import torch
from captum.attr import InputXGradient, IntegratedGradients
from scipy.stats import spearmanr

from mil import HEADS, Bag, MilError, create_head, explain
from mil.explain import METHODS, explanation, methods_of
from mil.explain.gradients import class_logit, feature_gradient
from mil.explain.rollout import rollout
from mil.explain.scale import log_ratio, rank, ranks

D, C, N = 9, 3, 40
QUICK = {"most_steps": 64, "samples": 3}
SUMS = sorted(name for name, head in HEADS.items() if head.contract.contributions)
FEATURES_ONLY = [name for name, method in METHODS.items() if not method.pixels]


def make(name, dtype=torch.float32):
    torch.manual_seed(5)
    head = create_head(name, D, C, hidden=16, dropout=0.3).eval()
    head.fit_input(torch.randn(300, D) * torch.logspace(-2, 2, D) + 3)
    return head.to(dtype)


def make_bag(n=N, seed=0, dtype=np.float32):
    rng = np.random.default_rng(seed)
    rows = (rng.normal(size=(n, D)) * np.logspace(-2, 2, D) + 3).astype(dtype)
    cells = np.sort(rng.choice(100, n, replace=False))
    return Bag.from_list([rows], xy=[np.stack([cells % 10, cells // 10], axis=1) * 224])


def whole(head, bag):
    """The function that captum sees: features (1, N, D) → logits (1, C)."""
    return lambda rows: torch.cat([head(Bag(one, bag.offsets, bag.xy)).logits for one in rows])


@pytest.mark.parametrize("name", sorted(HEADS))
@pytest.mark.parametrize("method", FEATURES_ONLY)
def test_heads_do_what_they_declare_and_refuse_the_rest(name, method):
    head, bag = make(name), make_bag()
    if method not in methods_of(head):
        with pytest.raises(MilError, match=name):
            explain(method, head, bag, 1)
        return
    values = explain(method, head, bag, 1, **QUICK)
    assert (values.shape, values.dtype) == ((N,), np.float32)
    assert np.isfinite(values).all()
    assert all(p.grad is None for p in head.parameters())


@pytest.mark.parametrize("name", SUMS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
def test_contributions_and_bias_sum_to_the_logit(name, dtype, tolerance):
    head, bag = make(name, dtype), make_bag(dtype=np.float64 if dtype == torch.float64 else np.float32)
    for target in range(C):
        with torch.inference_mode():
            logit = float(head(bag).logits[0, target])
            values, bias = head.contributions(bag, target)
            total = float(values.sum(dtype=torch.float64)) + float(bias)
        assert total == pytest.approx(logit, abs=tolerance)


@pytest.mark.parametrize("name", ["abmil", "gated_abmil", "clam_sb"])
def test_contributions_are_gradient_times_embedding_with_attention_detached(name):
    head, bag = make(name), make_bag()
    tiles = head.tiles(bag)
    h = tiles.values.detach().requires_grad_()
    weights = torch.softmax(tiles.scores.detach(), dim=0)
    (gradient,) = torch.autograd.grad(head.classifier((weights * h).sum(dim=0))[1], h)
    assert np.allclose(explain("lrp", head, bag, 1), (gradient * h).sum(dim=1).detach(), atol=1e-6)


@pytest.mark.parametrize("name", ["gated_abmil", "dsmil", "transmil", "graph", "ilra"])
def test_the_gradient_is_that_of_finite_differences(name):
    head, bag = make(name, torch.float64), make_bag(dtype=np.float64)
    gradient, _ = feature_gradient(head, bag, 2)
    rng = np.random.default_rng(1)
    for _ in range(12):
        tile, feature = int(rng.integers(N)), int(rng.integers(D))
        step = 1e-6 * float(head.input.factor[feature]) ** -1
        logits = []
        for sign in (1, -1):
            rows = bag.features.clone()
            rows[tile, feature] += sign * step
            with torch.no_grad():
                logits.append(float(head(Bag(rows, bag.offsets, bag.xy)).logits[0, 2]))
        scale = float(gradient[:, feature].abs().max())
        assert (logits[0] - logits[1]) / (2 * step) == pytest.approx(
            float(gradient[tile, feature]), rel=1e-4, abs=1e-4 * scale
        )


@pytest.mark.parametrize("name", ["gated_abmil", "vit", "additive"])
def test_gradient_times_input_is_captums_on_the_standardized_bag(name):
    head, bag = make(name), make_bag()
    z = head.input(bag.features)
    head.input = torch.nn.Identity()
    expected = InputXGradient(whole(head, bag)).attribute(z[None].requires_grad_(), target=1)[0].sum(dim=1)
    assert np.allclose(explain("gradient_input", make(name), bag, 1), expected.detach(), atol=1e-5)


@pytest.mark.parametrize("name", ["gated_abmil", "clam_mb", "vit"])
def test_integrated_gradients_are_captums_and_complete(name):
    head, bag = make(name), make_bag()
    white = np.random.default_rng(3).normal(size=D).astype(np.float32) + 3
    full = explanation("integrated_gradients", head, bag, 1, baseline=white)
    start = torch.from_numpy(np.tile(white, (1, N, 1)))
    captum = IntegratedGradients(whole(head, bag))
    expected = captum.attribute(bag.features[None], start, target=1, n_steps=400, internal_batch_size=1)
    expected = expected[0].sum(dim=1).detach().numpy()
    assert np.allclose(full.values, expected, atol=0.03 * np.abs(expected).max())  # captum cuts evenly
    assert full.facts["completeness_error"] <= 2e-4
    with torch.no_grad():
        ends = [float(whole(head, bag)(rows)[0, 1]) for rows in (bag.features[None], start)]
    assert float(full.values.sum(dtype=np.float64)) == pytest.approx(ends[0] - ends[1], abs=3e-4)


def test_integrated_gradients_state_their_baseline():
    class Encoder:
        input_size = 8

        def __call__(self, pixels):
            assert (pixels == 255).all()
            return np.full((1, D), 2.5, np.float32)

    head, bag = make("gated_abmil"), make_bag()
    assert "white" in explanation("integrated_gradients", head, bag, 1, encoder=Encoder()).facts["baseline"]
    assert "average training tile" in explanation("integrated_gradients", head, bag, 1).facts["baseline"]


def test_smoothgrad_without_noise_is_the_gradient_and_with_noise_comes_again():
    head, bag = make("gated_abmil"), make_bag()
    plain = explain("gradient_input", head, bag, 1)
    assert np.array_equal(explain("smoothgrad", head, bag, 1, noise=0), plain)
    noisy = explain("smoothgrad", head, bag, 1)
    assert np.array_equal(explain("smoothgrad", head, bag, 1), noisy)
    assert not np.allclose(noisy, plain)
    assert spearmanr(noisy, plain).statistic > 0.5


@pytest.mark.parametrize("name", ["abmil", "instance_max", "transmil"])
def test_perturbation_is_the_logit_of_each_tile_alone(name):
    head, bag = make(name), make_bag(12)
    values = explain("perturbation", head, bag, 1)
    for k in range(12):
        with torch.no_grad():
            alone = head(Bag.from_list([bag.features[k : k + 1]], xy=[bag.xy[k : k + 1]]))
        assert values[k] == pytest.approx(float(alone.logits[0, 1]), abs=1e-6)


def test_rollout_of_one_layer_is_half_attention_half_shortcut_and_rows_sum_to_one():
    matrices = [torch.softmax(torch.randn(2, 7, 7, generator=torch.Generator().manual_seed(k)), dim=-1) for k in (1, 2)]
    assert torch.allclose(rollout(matrices[:1]), (matrices[0] + torch.eye(7)) / 2, atol=1e-6)
    both = rollout(matrices)
    assert torch.allclose(both.sum(dim=-1), torch.ones(2, 7), atol=1e-6)
    by_hand = (matrices[1] + torch.eye(7)) / 2 @ ((matrices[0] + torch.eye(7)) / 2)
    assert torch.allclose(both, by_hand, atol=1e-6)


def test_rollout_of_the_head_is_the_product_of_its_whole_matrices():
    torch.manual_seed(2)
    head, bag = create_head("vit", D, C, hidden=16, layers=3).eval(), make_bag()
    with torch.no_grad():
        x = torch.cat([head.token, head._placed(bag)])
        matrices = []
        for layer in [*head.layers, head.last]:
            q, k = layer.queries_and_keys(x)
            matrices.append(torch.softmax(q @ k.mT / 2, dim=-1).mean(dim=0))  # four heads of width 4
            x = layer(x, x)
    expected = rollout(matrices)[0]
    found = explanation("rollout", head, bag, 0)
    assert np.allclose(found.values, expected[1:], atol=1e-6)
    assert found.values.sum() + found.facts["share_of_the_token"] == pytest.approx(1, abs=1e-5)


def test_attention_in_other_units():
    weights = np.array([0.5, 0.25, 0.125, 0.125])
    assert np.allclose(log_ratio(weights), [1, 0, -1, -1])
    assert np.allclose(rank(weights), [1, 2 / 3, 1 / 6, 1 / 6])
    assert rank([3.0]).tolist() == [0.5]
    head, bag = make("gated_abmil"), make_bag()
    raw = explain("attention_raw", head, bag, 1)
    assert np.allclose(np.exp(raw) / np.exp(raw).sum(), explain("attention", head, bag, 1), atol=1e-6)


@pytest.mark.parametrize("method", FEATURES_ONLY)
def test_several_bags_are_explained_one_by_one_and_an_empty_one_is_nothing(method):
    head = make("vit") if method == "rollout" else make("gated_abmil")
    one, two = make_bag(7), make_bag(11, 1)
    empty = Bag.from_list([one.features[:0]], xy=[one.xy[:0]])
    values = explain(method, head, Bag.from_list([one, empty, two]), 1, **QUICK)
    assert np.array_equal(values, np.concatenate([explain(method, head, bag, 1, **QUICK) for bag in (one, two)]))


def test_float16_features_and_a_head_in_training_are_taken_as_at_prediction():
    head, bag = make("gated_abmil"), make_bag(dtype=np.float16)
    wide = make_bag(dtype=np.float16)
    wide = Bag(wide.features.float(), wide.offsets, wide.xy)
    for method in methods_of(head):
        if not METHODS[method].pixels:
            assert np.array_equal(
                explain(method, head.train(), bag, 1, **QUICK), explain(method, head, wide, 1, **QUICK)
            ), method


def test_the_class_logit_of_a_map_is_its_mean_over_the_places():
    logits = torch.arange(24.0).reshape(2, 3, 2, 2)
    assert class_logit(logits, 1) == logits[:, 1].mean(dim=(1, 2)).sum()
    assert class_logit(logits[:, :, 0, 0], 2) == logits[:, 2, 0, 0].sum()


def test_wrong_method_and_class_are_named():
    head, bag = make("gated_abmil"), make_bag()
    with pytest.raises(MilError, match="integrated_gradients"):
        explain("integrated_gradient", head, bag, 1)
    with pytest.raises(MilError, match="class 3"):
        explain("lrp", head, bag, 3)
    with pytest.raises(MilError, match="rollout"):
        explain("rollout", head, bag, 1)


@pytest.mark.parametrize("method", FEATURES_ONLY)
def test_a_hundred_calls_leave_memory_flat(method):
    head, bag = (make("vit") if method == "rollout" else make("gated_abmil")), make_bag()
    options = {"samples": 2, "most_steps": 0}

    def tensors():
        gc.collect()
        return sum(1 for thing in gc.get_objects() if type(thing) is torch.Tensor)

    explain(method, head, bag, 1, **options)
    before = tensors()
    for _ in range(100):
        explain(method, head, bag, 1, **options)
    assert tensors() == before


@pytest.mark.parametrize("n", [0, 1, 2, 7, 500])
def test_ranks_are_those_of_scipy(n):
    from scipy.stats import rankdata

    rng = np.random.default_rng(n)
    for values in (rng.normal(size=n), rng.integers(0, 5, n), np.zeros(n), -np.arange(n), np.full(n, np.inf)):
        np.testing.assert_array_equal(ranks(values), rankdata(np.asarray(values, np.float64)))
    if n:
        assert np.isnan(ranks([*range(n), np.nan])).all()
