"""One contract test over the registry: every head keeps what it declares."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mil import HEADS, Bag, BagError, MilError, MILOutput, UnknownHeadError, create_head

D, C = 11, 3
FIELDS = ("logits", "embedding", "scores", "weights", "instance_logits")


@pytest.fixture(params=sorted(HEADS))
def head(request):
    torch.manual_seed(3)
    head = create_head(request.param, D, C, hidden=16, dropout=0.4).eval()
    head.fit_input(torch.randn(200, D) * torch.logspace(-3, 3, D) + 5)
    return head


def features(n, seed=0, scale=1.0):
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(n, D)) * scale * np.logspace(-3, 3, D) + 5).astype(np.float32)


def outputs(head, items):
    with torch.no_grad():
        return head(Bag.from_list(items))


def test_output_has_the_agreed_shapes_and_weights_sum_to_one(head):
    out = outputs(head, [features(5), features(9, 1)])
    assert isinstance(out, MILOutput)
    assert out.logits.shape == (2, C)
    assert out.embedding.shape[0] == 2
    assert out.scores.shape == out.weights.shape
    assert out.weights.shape[0] == 14
    assert (out.instance_logits is not None) == head.contract.instance_logits
    for rows in (out.weights[:5], out.weights[5:]):
        assert torch.allclose(rows.sum(dim=0), torch.ones(rows.shape[1]), atol=1e-6)
        assert (rows >= 0).all()


def test_order_of_tiles_does_not_matter(head):
    assert head.contract.permutation_invariant
    x, order = features(40), np.random.default_rng(1).permutation(40)
    straight, shuffled = outputs(head, [x]), outputs(head, [x[order]])
    assert torch.allclose(straight.logits, shuffled.logits, atol=1e-6)
    assert torch.allclose(straight.weights[order], shuffled.weights, atol=1e-6)


def test_a_bag_alone_equals_the_bag_between_others_of_large_random_values(head):
    x, loud = features(7), [features(n, n, scale=1e4) for n in (1, 30)]
    alone, packed = outputs(head, [x]), outputs(head, [loud[0], x, loud[1]])
    assert torch.allclose(alone.logits[0], packed.logits[1], atol=1e-6)
    assert torch.allclose(alone.embedding[0], packed.embedding[1], atol=1e-6)
    assert torch.allclose(alone.weights, packed.weights[1:8], atol=1e-6)


def test_every_tile_twice_changes_nothing_where_declared(head):
    if not head.contract.duplicate_invariant:
        pytest.skip("this head does not declare it")
    x = features(12)
    assert torch.allclose(outputs(head, [x]).logits, outputs(head, [np.concatenate([x, x])]).logits, atol=1e-6)


def test_a_single_tile_has_all_the_weight(head):
    out = outputs(head, [features(1)])
    assert (out.weights == 1).all()
    assert out.logits.isfinite().all()


def test_an_empty_bag_has_a_defined_answer_and_disturbs_nobody(head):
    empty = features(0)
    if head.contract.min_instances > 0:
        with pytest.raises(BagError, match="needs"):
            outputs(head, [empty])
        return
    out = outputs(head, [features(4), empty])
    assert out.logits.isfinite().all()
    assert torch.allclose(out.logits[0], outputs(head, [features(4)]).logits[0], atol=1e-6)
    assert torch.allclose(out.logits[1], outputs(head, [empty]).logits[0])


def test_gradients_are_finite_with_an_empty_bag_among_the_others(head):
    head.train()
    head(Bag.from_list([features(4), features(0), features(1)])).logits.square().sum().backward()
    grads = [p.grad for p in head.parameters() if p.grad is not None]
    assert grads
    assert all(g.isfinite().all() for g in grads)


def test_half_precision_input_is_computed_in_single(head):
    x = np.random.default_rng(0).normal(size=(50, D)).astype(np.float16)
    half, single = outputs(head, [x]), outputs(head, [x.astype(np.float32)])
    assert half.logits.dtype == torch.float32
    assert torch.equal(half.logits, single.logits)


def test_a_hundred_thousand_half_precision_tiles_give_finite_numbers_in_any_order(head):
    x = features(100_000).astype(np.float16)
    straight, turned = outputs(head, [x]), outputs(head, [x[::-1].copy()])
    assert torch.allclose(straight.logits, turned.logits, atol=1e-6)
    sums = straight.weights.double().sum(dim=0)
    assert torch.allclose(sums, torch.ones_like(sums), atol=1e-6)


def test_options_rebuild_the_same_architecture(head):
    again = create_head(head.name, D, C, **head.options)
    again.load_state_dict(head.state_dict(), strict=True)
    with torch.no_grad():
        assert torch.equal(again.eval()(Bag.from_list([features(6)])).logits, outputs(head, [features(6)]).logits)


def test_features_of_another_width_are_refused(head):
    with pytest.raises(BagError, match="width 11"):
        head(Bag.from_list([np.ones((2, D + 1), np.float32)]))


def test_coordinates_are_demanded_where_declared(head):
    if head.contract.needs_coords:
        with pytest.raises(BagError, match="coordinates"):
            outputs(head, [features(4)])


def test_unknown_heads_and_options_name_what_exists():
    with pytest.raises(UnknownHeadError, match="Did you mean gated_abmil"):
        create_head("gated_abmill", D, C)
    with pytest.raises(MilError, match="cannot be built"):
        create_head("mean", D, C, wings=2)


# Closed forms


@pytest.mark.parametrize("name", ["abmil", "gated_abmil"])
def test_attention_is_the_printed_formula(name):
    """Ilse et al. eq. 7 to 9, written again in numpy double precision."""
    torch.manual_seed(0)
    head = create_head(name, D, 2, hidden=8, attention=5).eval()
    x = np.random.default_rng(0).normal(size=(13, D)).astype(np.float32)
    p = {k: v.detach().numpy().astype(np.float64) for k, v in head.state_dict().items()}
    h = np.maximum(x @ p["embed.0.weight"].T + p["embed.0.bias"], 0)
    s = np.tanh(h @ p["attention_v.weight"].T + p["attention_v.bias"])
    if name == "gated_abmil":
        s = s / (1 + np.exp(-(h @ p["attention_u.weight"].T + p["attention_u.bias"])))
    s = s @ p["attention_w.weight"].T + p["attention_w.bias"]
    a = np.exp(s) / np.exp(s).sum()
    logits = (a * h).sum(axis=0) @ p["classifier.weight"].T + p["classifier.bias"]
    out = outputs(head, [x])
    assert np.allclose(out.weights.numpy(), a, atol=1e-6)
    assert np.allclose(out.scores.numpy(), s, atol=1e-6)
    assert np.allclose(out.logits.numpy()[0], logits, atol=1e-6)


def test_abmil_input_gradient_is_the_closed_form():
    """dy/dh_i = a_i v + a_i ((h_i - z) . v) ds_i/dh_i, in double precision (algorithms.md §3)."""
    torch.manual_seed(1)
    head = create_head("abmil", D, 2, hidden=D, attention=5).double().eval()
    head.embed = torch.nn.Sequential(torch.nn.Identity())  # the input is h itself
    h = torch.randn(9, D, dtype=torch.float64, requires_grad=True)
    out = head(Bag(h, torch.tensor([0, 9])))
    (grad,) = torch.autograd.grad(out.logits[0, 1], h)
    v, a = head.classifier.weight[1].detach(), out.weights[:, 0].detach()
    t = torch.tanh(h @ head.attention_v.weight.T + head.attention_v.bias)
    ds = ((1 - t**2) * head.attention_w.weight[0]) @ head.attention_v.weight
    z = (a[:, None] * h).sum(dim=0)
    closed = a[:, None] * v + a[:, None] * ((h - z) @ v)[:, None] * ds
    assert torch.allclose(grad, closed, atol=1e-12)


def test_mean_head_logits_are_the_mean_of_the_tile_logits():
    torch.manual_seed(0)
    out = outputs(create_head("mean", D, 2).eval(), [features(17)])
    assert torch.allclose(out.instance_logits.mean(dim=0), out.logits[0], atol=1e-5)


def test_standardization_gives_unit_scale_and_switches_constant_features_off():
    head = create_head("mean", 3, 2)
    x = torch.randn(1000, 3, dtype=torch.float64) * torch.tensor([1e-4, 1e4, 0.0]) + torch.tensor([1.0, -3e4, 1234.567])
    head.fit_input(x.float())
    z = head.input(x.float())
    assert torch.allclose(z.mean(dim=0), torch.zeros(3), atol=1e-3)
    assert torch.allclose(z[:, :2].std(dim=0), torch.ones(2), atol=1e-2)
    assert not z[:, 2].any()
