"""One contract test over the registry: every head keeps what it declares."""

from __future__ import annotations

import math
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode

from mil import HEADS, Bag, BagError, MilError, MILOutput, UnknownHeadError, check_head, create_head
from mil.heads.options import RANGES, options_of
from mil.losses import objective_of
from mil.predict import CHUNK, infer

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


class Heaviest(TorchFunctionMode):
    """Remembers how many bytes the largest tensor has that torch made."""

    bytes = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.dtype != torch.int64:
            self.bytes = max(self.bytes, out.numel() * out.element_size())
        return out


def grid(n, seed=0):
    """Different places on a grid of tiles, in the order of the rows; some are empty."""
    side = int(np.sqrt(2 * n)) + 1
    cells = np.sort(np.random.default_rng(seed).choice(side * side, n, replace=False))
    return np.stack([cells % side, cells // side], axis=1) * 448 + np.array([1000, 7000])


def packed(items, xy=None):
    return Bag.from_list(items, xy=[grid(len(x)) for x in items] if xy is None else xy)


def outputs(head, items, xy=None):
    with torch.no_grad():
        return head(packed(items, xy))


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


def test_order_of_tiles_matters_exactly_where_declared(head):
    x, order = features(140), np.random.default_rng(1).permutation(140)
    straight, shuffled = outputs(head, [x]), outputs(head, [x[order]], [grid(140)[order]])
    if not head.contract.permutation_invariant:
        assert not torch.allclose(straight.logits, shuffled.logits, atol=1e-6)
        return
    assert torch.allclose(straight.logits, shuffled.logits, atol=2e-6)
    assert torch.allclose(straight.weights[order], shuffled.weights, atol=1e-6)


def test_coordinates_matter_exactly_where_declared_and_their_origin_never(head):
    x, xy = features(140), grid(140)
    here, there = outputs(head, [x], [xy]), outputs(head, [x], [xy + np.array([7 * 448 + 3, 99])])
    assert torch.allclose(here.logits, there.logits, atol=1e-6)
    elsewhere = outputs(head, [x], [xy[np.random.default_rng(1).permutation(140)]])
    assert torch.allclose(here.logits, elsewhere.logits, atol=1e-6) != head.contract.needs_coords


def test_a_bag_alone_equals_the_bag_between_others_of_large_random_values(head):
    x, loud = features(7), [features(n, n, scale=1e4) for n in (1, 30)]
    alone, among = outputs(head, [x]), outputs(head, [loud[0], x, loud[1]])
    assert torch.allclose(alone.logits[0], among.logits[1], atol=1e-6)
    assert torch.allclose(alone.embedding[0], among.embedding[1], atol=1e-6)
    assert torch.allclose(alone.weights, among.weights[1:8], atol=1e-6)
    if alone.branch_logits is not None:
        assert torch.allclose(alone.branch_logits[0], among.branch_logits[1], atol=1e-6)


def test_every_tile_twice_changes_nothing_exactly_where_declared(head):
    x, xy = features(13), grid(13)
    once, twice = outputs(head, [x], [xy]), outputs(head, [np.concatenate([x, x])], [np.concatenate([xy, xy])])
    assert torch.allclose(once.logits, twice.logits, atol=1e-6) == head.contract.duplicate_invariant


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
    """And the head's objective reaches every parameter: none is stored that nothing trains."""
    head.train()
    bag, target = packed([features(40), features(0), features(1)]), torch.tensor([0, 1, 2])
    loss = partial(torch.nn.functional.cross_entropy, target=target, reduction="none")
    values = objective_of(head)(head(bag), bag, target, loss)
    assert values.shape == (3,)
    values.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in head.parameters())


def test_gradients_are_those_of_finite_differences(head):
    """Double precision, one random direction per parameter and one in the features."""
    head = head.double().eval()
    xy = [grid(n, 5) for n in (9, 6)]
    x = [torch.from_numpy(features(n, 3)).double().requires_grad_() for n in (9, 6)]
    generator = torch.Generator().manual_seed(0)
    drawn = {}

    def value():
        out, total = head(Bag.from_list(x, xy=xy)), 0.0
        for name in ("logits", "embedding", "scores", "instance_logits", "branch_logits"):
            part = getattr(out, name)
            if part is not None:
                shape = drawn.setdefault(name, torch.randn(part.shape, dtype=torch.float64, generator=generator))
                total = total + (part * shape).sum()
        return total

    variables = [*head.parameters(), *x]
    grads = torch.autograd.grad(value(), variables, allow_unused=True)
    for variable, grad in zip(variables, grads, strict=True):
        step = 1e-6 * torch.randn(variable.shape, dtype=torch.float64, generator=generator)
        if not isinstance(variable, torch.nn.Parameter):
            step *= torch.logspace(-3, 3, D)  # the features' own scales
        with torch.no_grad():
            variable += step
            above = value()
            variable -= 2 * step
            below = value()
            variable += step
        expected = 0.0 if grad is None else float((grad * step).sum() / 1e-6)
        assert float(above - below) / 2e-6 == pytest.approx(expected, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("n", [0, 1, 9, 50])
@pytest.mark.parametrize("size", [1, 7, 64])
def test_a_bag_in_chunks_gives_what_the_whole_bag_gives_where_declared(head, n, size):
    bag = packed([features(n, 4)])
    if not head.contract.streams:
        with pytest.raises(MilError, match="needs all tiles at once"):
            head.stream(bag.chunks(size))
        return
    with torch.no_grad():
        whole, streamed = head(bag), head.stream(bag.chunks(size))
    for name in (*FIELDS, "branch_logits"):
        one, other = getattr(whole, name), getattr(streamed, name)
        assert (one is None) == (other is None), name
        if one is not None:
            assert one.shape == other.shape, name
            assert torch.allclose(one, other, atol=2e-6), name


def test_more_tiles_than_a_chunk_are_predicted_with_little_memory_and_the_same_answer(head):
    bag = packed([features(3 * CHUNK + 5)])
    with torch.no_grad():
        whole = head(bag)
    with Heaviest() as heaviest:
        streamed = infer(head, bag)
    if head.contract.streams:
        assert heaviest.bytes < bag.n_tiles * 16 * 4  # never the embeddings of all tiles
    assert torch.allclose(whole.logits, streamed.logits, atol=2e-6)
    assert torch.allclose(whole.weights, streamed.weights, atol=1e-7)


def test_a_further_tile_never_speaks_for_the_negative_class_where_declared(head):
    """Standard assumption: P(class 0) does not rise, and is that of the most positive tile alone."""
    x = features(60)
    more = [outputs(head, [x[:n]]).logits[0].double().softmax(dim=0)[0] for n in range(61)]
    rises = any(b > a + 1e-7 for a, b in pairwise(more))
    assert rises != head.contract.standard_mil
    if head.contract.standard_mil:
        two = create_head(head.name, D, 2, hidden=16).eval()
        alone = [outputs(two, [x[i : i + 1]]).logits[0, 1] for i in range(60)]
        assert torch.isclose(outputs(two, [x]).logits[0, 1], max(alone))


def test_half_precision_input_is_computed_in_single(head):
    x = np.random.default_rng(0).normal(size=(50, D)).astype(np.float16)
    half, single = outputs(head, [x]), outputs(head, [x.astype(np.float32)])
    assert half.logits.dtype == torch.float32
    assert torch.equal(half.logits, single.logits)


def test_a_hundred_thousand_half_precision_tiles_give_finite_numbers_in_any_order(head):
    """A head whose time is quadratic gets 5,000."""
    n = 100_000 if head.contract.linear else 5_000
    x, xy = features(n).astype(np.float16), grid(n)
    straight = outputs(head, [x], [xy])
    assert straight.logits.isfinite().all()
    if head.contract.permutation_invariant:
        turned = outputs(head, [x[::-1].copy()], [xy[::-1].copy()])
        assert torch.allclose(straight.logits, turned.logits, atol=2e-6)
    sums = straight.weights.double().sum(dim=0)
    assert torch.allclose(sums, torch.ones_like(sums), atol=1e-6)


def test_options_rebuild_the_same_architecture(head):
    again = create_head(head.name, D, C, **head.options)
    again.load_state_dict(head.state_dict(), strict=True)
    with torch.no_grad():
        assert torch.equal(again.eval()(packed([features(6)])).logits, outputs(head, [features(6)]).logits)


def test_features_of_another_width_are_refused(head):
    with pytest.raises(BagError, match="width 11"):
        head(Bag.from_list([np.ones((2, D + 1), np.float32)]))


def test_coordinates_are_demanded_where_declared(head):
    without = Bag.from_list([features(4)])
    if head.contract.needs_coords:
        with pytest.raises(BagError, match="coordinates"):
            head(without)
    else:
        assert torch.equal(head(without).logits, head(packed([features(4)])).logits)


def test_unknown_heads_and_options_name_what_exists():
    with pytest.raises(UnknownHeadError, match="Did you mean gated_abmil"):
        create_head("gated_abmill", D, C)
    with pytest.raises(MilError, match=r"'wings'. By default: hidden=64, dropout=0.25"):
        create_head("mean", D, C, wings=2)
    with pytest.raises(MilError, match=r"'atention'. Did you mean attention\?"):
        create_head("abmil", D, C, atention=2)


def test_every_option_has_a_range_a_default_in_it_and_is_stored_as_it_was_given(head):
    for option, default in options_of(type(head)).items():
        low, high = RANGES[option]
        assert low <= default <= high
        for wrong in (low - 1, high + 1, math.nan, "8", True, *([2.5] if isinstance(default, int) else [])):
            with pytest.raises(MilError, match=f"{option}={wrong} is no .*number from"):
                check_head(head.name, {option: wrong})
        value = 12 if option == "hidden" else default // 2 if isinstance(default, int) else default / 2
        assert create_head(head.name, D, C, **{option: float(value)}).options[option] == value


def test_a_head_is_checked_before_it_is_built_and_at_no_cost():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    check_head("gated_abmil", {"hidden": 65536, "attention": 65536})  # 34 GB
    assert torch.equal(before, torch.get_rng_state())
    with pytest.raises(MilError, match="multiple of 4"):
        check_head("transmil", {"hidden": 10})
    with pytest.raises(MilError, match="no option is called 'in_dim'"):
        check_head("mean", {"in_dim": 3})
