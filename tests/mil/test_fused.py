"""Attention pooling in few passes: its numbers and gradients are those of torch's own operations."""

from __future__ import annotations

import pytest
import torch

from mil import Bag, create_head
from mil.fused import _random_steps, attend

D, HIDDEN, ATTENTION = 19, 24, 40


def parts(gate, dtype=torch.float64):
    torch.manual_seed(1)
    layers = [torch.nn.Linear(D, HIDDEN), *(torch.nn.Linear(HIDDEN, ATTENTION) for _ in range(2))]
    first, v, u = (layer.to(dtype) for layer in layers)
    return first, v, u if gate else None, torch.nn.Parameter(torch.randn(ATTENTION, dtype=dtype))


def plain(bag, first, v, u, w):
    """The same, operation by operation."""
    h = torch.relu(first(bag.features))
    g = torch.tanh(v(h)) * (torch.sigmoid(u(h)) if u is not None else 1)
    scores = g @ w
    rows = zip(bag.per_bag(scores), bag.per_bag(h), strict=True)
    return torch.stack([torch.softmax(s, 0) @ x for s, x in rows]), scores[:, None]


@pytest.mark.parametrize("gate", [True, False])
@pytest.mark.parametrize("sizes", [[7], [1, 30, 5], [3, 0, 4], [2] * 40])
def test_values_and_gradients_are_those_of_the_plain_operations(gate, sizes):
    """Double precision; both outputs carry gradient; an empty bag among others."""
    bag = Bag.from_list([torch.randn(n, D, dtype=torch.float64) for n in sizes])
    weights = [torch.randn(len(sizes), HIDDEN).double(), torch.randn(sum(sizes), 1).double()]
    found = []
    for way in (attend, plain):
        first, v, u, w = parts(gate)
        out = way(bag, first, v, u, w)
        sum((x * weight).sum() for x, weight in zip(out, weights, strict=True)).backward()
        layers = [first, v, *([u] if gate else [])]
        found.append([*out, w.grad, *(p.grad for layer in layers for p in layer.parameters())])
    for fused, expected in zip(*found, strict=True):
        assert torch.allclose(fused, expected, atol=1e-12)


@pytest.mark.parametrize("name", ["abmil", "gated_abmil"])
def test_in_bfloat16_the_gradient_of_a_head_points_where_single_precision_says(name):
    torch.manual_seed(0)
    head = create_head(name, 64, 3, hidden=32, attention=16, dropout=0.0)
    bag = Bag.from_list([torch.randn(n, 64) for n in (200, 31)])
    grads = []
    for half in (False, True):
        head.zero_grad()
        bags = Bag(bag.features.bfloat16(), bag.offsets) if half else bag
        with head.takes_prepared(fused=True), torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            out = head(bags)
            assert ("_Attend" in str(out.scores.grad_fn.next_functions)) == half
        torch.nn.functional.cross_entropy(out.logits.float(), torch.tensor([0, 2])).backward()
        grads.append(torch.cat([(0 * p if p.grad is None else p.grad).flatten() for p in head.parameters()]))
    assert torch.cosine_similarity(*grads, dim=0) > 0.999


def test_a_second_pass_through_the_same_graph_is_refused_and_not_wrong():
    first, v, u, w = parts(gate=True)
    z, _ = attend(Bag.from_list([torch.randn(5, D).double()]), first, v, u, w)
    z.sum().backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace"):
        z.sum().backward()


@pytest.mark.parametrize("share", [0.25, 0.5])
def test_dropout_switches_off_its_share_and_keeps_the_mean(share):
    """Mean over draws of z with one tile, which is h itself."""
    first, v, u, w = parts(gate=True)
    bag = Bag.from_list([torch.randn(1, D).double()])
    with torch.no_grad():
        whole = attend(bag, first, v, u, w)[0]
        drawn = torch.cat([attend(bag, first, v, u, w, dropout=share)[0] for _ in range(1500)])
    alive = whole[0] > 0
    assert torch.allclose(drawn.mean(dim=0)[alive], whole[0, alive], rtol=0.15)
    off = (drawn[:, alive] == 0).double().mean(dim=0)
    assert torch.allclose(off, torch.full_like(off, share), atol=0.06)


def test_random_steps_are_uniform_in_every_place_of_a_word():
    steps = _random_steps(torch.empty(4000, 16)).reshape(-1, 8).double()
    assert steps.max() == 127
    assert torch.allclose(steps.mean(dim=0), torch.full((8,), 63.5).double(), atol=2)
    counts = torch.bincount(steps.flatten().long(), minlength=128)
    assert counts.min() > 350
    assert counts.max() < 650
