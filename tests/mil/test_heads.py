"""Each head against something that cannot share its mistake: a formula written again, a loop, torch's own layers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import conv2d

from mil import Bag, BagError, MilError, create_head
from mil.cells import Cells, grid_positions, nearest, spatial_order
from mil.heads.graph import aggregate
from mil.heads.grid_convolution import DepthwiseConvolution
from mil.heads.transformer import Attention
from mil.heads.transmil import nystrom, pseudo_inverse
from mil.losses import acmil, clam, dsmil, dtfd
from mil.losses.acmil import likeness
from mil.losses.clam import instance_loss, smooth_hinge

D = 11


def features(n, seed=0):
    return np.random.default_rng(seed).normal(size=(n, D)).astype(np.float32)


def grid(n, seed=0, step=448):
    side = int(np.sqrt(2 * n)) + 1
    cells = np.random.default_rng(seed).choice(side * side, n, replace=False)
    return np.stack([cells % side, cells // side], axis=1) * step + np.array([1000, 7000])


def outputs(head, items, xy=None):
    with torch.no_grad():
        return head(Bag.from_list(items, xy=xy))


def fresh(name, classes=3, seed=0, **options):
    torch.manual_seed(seed)
    return create_head(name, D, classes, **options).eval()


def numpy_state(head):
    return {name: value.detach().numpy().astype(np.float64) for name, value in head.state_dict().items()}


def softmax(x, axis=0):
    e = np.exp(x - x.max(axis=axis, keepdims=True))
    return e / e.sum(axis=axis, keepdims=True)


def gated(p, name, h):
    s = np.tanh(h @ p[f"{name}.v.weight"].T + p[f"{name}.v.bias"])
    s = s / (1 + np.exp(-(h @ p[f"{name}.u.weight"].T + p[f"{name}.u.bias"])))
    return s @ p[f"{name}.w.weight"].T + p[f"{name}.w.bias"]


def embedded(p, x):
    return np.maximum(x @ p["embed.0.weight"].T + p["embed.0.bias"], 0)


# Attention heads


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


def test_additive_contributions_are_the_printed_sum_and_add_up():
    """Javed et al. eq. 4 and 5 in numpy: g of the weighted tile, not the weight times g."""
    head = fresh("additive")
    x, p = features(13), numpy_state(head)
    h = embedded(p, x)
    a = softmax(gated(p, "attention", h))
    g = np.maximum((a * h) @ p["evidence.0.weight"].T, 0) @ p["classifier.weight"].T
    out = outputs(head, [x])
    assert np.allclose(out.logits[0], g.sum(axis=0) + p["classifier.bias"], atol=1e-6)
    assert torch.allclose(out.instance_logits.sum(dim=0), out.logits[0], atol=1e-6)


def test_clam_branches_are_the_printed_formula():
    head = fresh("clam_mb")
    x, p = features(13), numpy_state(head)
    h = embedded(p, x)
    a = softmax(gated(p, "attention", h))
    expected = [p["classifier.weight"][c] @ (a[:, c] @ h) + p["classifier.bias"][c] for c in range(3)]
    out = outputs(head, [x])
    assert np.allclose(out.logits[0], expected, atol=1e-6)
    assert np.allclose(out.instance_logits, h @ p["instances.weight"].T + p["instances.bias"], atol=1e-6)


def test_dsmil_attention_is_that_of_a_loop_over_classes_and_tiles():
    """Li et al. eq. 2 to 6."""
    head = fresh("dsmil", attention=6)
    x, p = features(13), numpy_state(head)
    h = embedded(p, x)
    s = h @ p["instances.weight"].T + p["instances.bias"]
    inner = np.maximum(h @ p["query.0.weight"].T + p["query.0.bias"], 0)
    q = np.tanh(inner @ p["query.2.weight"].T + p["query.2.bias"])
    v = h @ p["value.weight"].T + p["value.bias"]
    b, attention = [], np.zeros((13, 3))
    for c in range(3):
        critical = max(range(13), key=lambda k, c=c: s[k, c])
        loud = [math.exp(sum(q[k, d] * q[critical, d] for d in range(6)) / math.sqrt(6)) for k in range(13)]
        attention[:, c] = np.array(loud) / sum(loud)
        b.append(sum(attention[k, c] * v[k] for k in range(13)))
    streams = np.stack([s.max(axis=0), p["classifier.weight"] @ np.concatenate(b) + p["classifier.bias"]])
    out = outputs(head, [x])
    assert np.allclose(out.weights, attention, atol=1e-6)
    assert np.allclose(out.branch_logits[0], streams, atol=1e-6)
    assert np.allclose(out.logits[0], streams.mean(axis=0), atol=1e-6)


def test_dtfd_tiers_are_those_of_a_loop_over_pseudo_bags():
    head = fresh("dtfd", groups=3)
    x, p = features(14), numpy_state(head)
    h = embedded(p, x)
    s = gated(p, "attention", h)[:, 0]
    members = [list(range(g, 14, 3)) for g in range(3)]
    z = np.stack([softmax(s[rows]) @ h[rows] for rows in members])
    share = softmax(gated(p, "attention2", z))[:, 0]
    out = outputs(head, [x])
    assert np.allclose(out.logits[0], p["classifier.weight"] @ (share @ z) + p["classifier.bias"], atol=1e-6)
    assert np.allclose(out.branch_logits[0], z @ p["group_classifier.weight"].T + p["group_classifier.bias"], atol=1e-6)
    for g, rows in enumerate(members):
        assert np.allclose(out.weights[rows, 0], softmax(s[rows]) * share[g], atol=1e-6)


def _as_gated_abmil(head, other):
    """A gated ABMIL with the weights of another head's attention and classifier."""
    twin, state = fresh("gated_abmil"), other.state_dict()
    names = {"embed.0": "embed.0"} | {f"attention_{part}": f"attention.{part}" for part in "vuw"}
    pairs = {f"{a}.{part}": state[f"{b}.{part}"] for a, b in names.items() for part in ("weight", "bias")}
    pairs |= {f"classifier.{part}": state[f"{head}.{part}"] for part in ("weight", "bias")}
    twin.load_state_dict(pairs, strict=False)
    return twin


@pytest.mark.parametrize(
    ("name", "options", "classifier"),
    [
        ("clam_sb", {}, "classifier"),
        ("dtfd", {"groups": 1}, "classifier"),
        ("acmil", {"branches": 1, "mask_top": 0}, "classifier"),
        ("acmil", {"branches": 1, "mask_top": 0}, "branch_classifiers.0"),
    ],
)
def test_heads_that_extend_gated_attention_are_it_when_nothing_is_extended(name, options, classifier):
    head = fresh(name, **options)
    twin, x = _as_gated_abmil(classifier, head), features(20)
    mine, expected = outputs(head.train() if name == "acmil" else head, [x]), outputs(twin, [x])
    if name == "acmil":  # its embedding drops out in training; its masking is what is under test
        mine = outputs(head.eval(), [x])
    logits = mine.branch_logits[:, 0] if classifier.startswith("branch") else mine.logits
    assert torch.allclose(logits, expected.logits, atol=1e-6)
    assert torch.allclose(mine.weights, expected.weights, atol=1e-6)


def test_acmil_answers_from_the_mean_of_its_branches_and_from_each():
    head = fresh("acmil", branches=3)
    x, p = features(13), numpy_state(head)
    h = embedded(p, x)
    z = softmax(gated(p, "attention", h)).T @ h  # (3, E)
    out = outputs(head, [x])
    assert np.allclose(out.logits[0], p["classifier.weight"] @ z.mean(axis=0) + p["classifier.bias"], atol=1e-6)
    for k in range(3):
        own = p[f"branch_classifiers.{k}.weight"] @ z[k] + p[f"branch_classifiers.{k}.bias"]
        assert np.allclose(out.branch_logits[0, k], own, atol=1e-6)


def test_acmil_silences_the_stated_share_of_the_loudest_tiles_in_training_only():
    head = fresh("acmil", dropout=0.0)
    bag = Bag.from_list([features(40), features(1), features(2)])
    assert (head(bag).weights > 0).all()
    out = head.train()(bag)
    for k in range(5):
        gone = (out.weights[:40, k] == 0).nonzero().flatten().tolist()
        assert len(gone) == 6
        assert set(gone) <= set(out.scores[:40, k].topk(10).indices.tolist())
    assert (out.weights[40] == 1).all()  # a lone tile is never silenced
    sums = torch.stack([rows.sum(dim=0) for rows in bag.per_bag(out.weights)])
    assert torch.allclose(sums, torch.ones_like(sums), atol=1e-6)


def test_instance_max_and_standard_mil_are_the_largest_tile():
    x = features(13)
    head = fresh("instance_max")
    p = numpy_state(head)
    logits = embedded(p, x) @ p["classifier.weight"].T + p["classifier.bias"]
    assert np.allclose(outputs(head, [x]).logits[0], logits.max(axis=0), atol=1e-6)
    head = fresh("standard_mil")
    p = numpy_state(head)
    logits = embedded(p, x) @ p["classifier.weight"].T + p["classifier.bias"]
    expected = p["prior"] + np.log1p(np.exp(logits)).max(axis=0)
    assert np.allclose(outputs(head, [x]).logits[0], [0, *expected], atol=1e-6)


# Transformers


def test_attention_is_torchs_own_multi_head_attention():
    torch.manual_seed(0)
    mine, other = Attention(12, 3), nn.MultiheadAttention(12, 3, batch_first=True)
    with torch.no_grad():
        other.in_proj_weight.copy_(torch.cat([mine.query.weight, mine.key.weight, mine.value.weight]))
        other.in_proj_bias.copy_(torch.cat([mine.query.bias, mine.key.bias, mine.value.bias]))
        other.out_proj.load_state_dict(mine.out.state_dict())
    x, y = torch.randn(7, 12), torch.randn(9, 12)
    expected, weights = other(x[None], y[None], y[None], average_attn_weights=False)
    assert torch.allclose(mine(x, y), expected[0], atol=1e-6)
    assert torch.allclose(mine.scores(x[:1], y).softmax(dim=0).T, weights[0, :, 0], atol=1e-6)


def test_vit_layers_are_torchs_own_encoder_layers():
    head = fresh("vit", layers=1, hidden=8, heads=2).double()
    other = nn.TransformerEncoderLayer(8, 2, 16, activation="gelu", batch_first=True, norm_first=True).double().eval()
    mine = head.last
    attention = mine.attention
    with torch.no_grad():
        other.self_attn.in_proj_weight.copy_(
            torch.cat([attention.query.weight, attention.key.weight, attention.value.weight])
        )
        other.self_attn.in_proj_bias.copy_(torch.cat([attention.query.bias, attention.key.bias, attention.value.bias]))
        for theirs, ours in (
            (other.self_attn.out_proj, attention.out),
            (other.norm1, mine.norm1),
            (other.norm2, mine.norm2),
            (other.linear1, mine.mlp[0]),
            (other.linear2, mine.mlp[2]),
        ):
            theirs.load_state_dict(ours.state_dict())
        x = torch.randn(9, 8, dtype=torch.float64)
        assert torch.allclose(mine(x, x), other(x[None])[0], atol=1e-10)


def test_positions_repeat_with_their_wave_lengths_and_start_at_the_first_tile():
    from mil.heads.vit import sine_positions

    bag = Bag.from_list([features(9)], xy=[grid(9)])
    places = sine_positions(grid_positions(bag), 8)
    corner = sine_positions(torch.zeros(1, 2, dtype=torch.float64), 8)
    assert torch.equal(corner[0], torch.tensor([0.0] * 4 + [1.0] * 4, dtype=torch.float64))
    assert torch.allclose(places[:, :4] ** 2 + places[:, 4:] ** 2, torch.ones(9, 4, dtype=torch.float64))


def test_transmil_of_a_small_bag_is_exact_attention_with_a_dense_convolution():
    """The whole forward pass again, with torch's multi-head attention and a convolution over a dense picture."""
    head = fresh("transmil", hidden=8, heads=2, landmarks=64)
    x, xy = features(20), grid(20)
    with torch.no_grad():
        h = head.embed(torch.from_numpy(x))
        t = torch.cat([head.token, h])
        t = t + _exact(head.mix, head.norm1(t))
        col, row = ((xy - xy.min(axis=0)) // 448).T
        dense = torch.zeros(8, row.max() + 1, col.max() + 1)
        dense[:, row, col] = t[1:].T
        for layer in head.position:
            kernel = layer.weight.permute(2, 0, 1)[:, None]
            made = conv2d(dense[None], kernel, layer.bias, padding="same", groups=8)[0]
            h = made[:, row, col].T if layer is head.position[0] else h + made[:, row, col].T
        t = torch.cat([t[:1], t[1:] + h])
        z = head.norm3((t + _exact(head.read, head.norm2(t)))[:1])
        expected = head.classifier(z)[0]
    assert torch.allclose(outputs(head, [x], [xy]).logits[0], expected, atol=1e-5)


def _exact(layer, x):
    """Self-attention in plain matrices."""
    q, k, v = (layer.parts(part(x)) for part in (layer.query, layer.key, layer.value))
    weights = torch.softmax(q @ k.mT / math.sqrt(q.shape[-1]), dim=-1)
    return layer.out((weights @ v).transpose(0, 1).flatten(1))


def test_nystrom_with_a_landmark_per_row_is_exact_attention_and_near_it_with_fewer(monkeypatch):
    """To 1e-4 with twenty rounds of the inverse; the usual six leave 1e-2 (algorithms.md §3)."""
    torch.manual_seed(0)
    layer = Attention(16, 2).double()
    rows = torch.randn(24, 16, dtype=torch.float64)
    with torch.no_grad():
        exact = _exact(layer, rows)
        assert (nystrom(layer, rows, torch.arange(24)) - exact).abs().max() < 3e-2
        monkeypatch.setattr("mil.heads.transmil.pseudo_inverse", lambda a: pseudo_inverse(a, 60))
        assert torch.allclose(nystrom(layer, rows, torch.arange(24)), exact, atol=1e-6)
        similar = rows.repeat_interleave(3, dim=0)  # runs of equal rows: their mean is each of them
        assert torch.allclose(
            nystrom(layer, similar, torch.arange(24).repeat_interleave(3)), exact.repeat_interleave(3, dim=0), atol=1e-6
        )


def test_landmarks_are_the_class_token_and_means_over_runs_of_the_curve():
    """The first layer on more tiles than landmarks, with every landmark made by a loop."""
    head = fresh("transmil", hidden=8, heads=2, landmarks=5)
    bag = Bag.from_list([features(23)], xy=[grid(23)])
    with torch.no_grad():
        h = head.embed(bag.features)
        tokens = torch.cat([head.token, h])
        rows, order, layer = head.norm1(tokens), spatial_order(bag).tolist(), head.mix
        runs = [[0], *([1 + order[i] for i in range(23) if i * 5 // 23 == m] for m in range(5))]
        q, k, v = (layer.parts(part(rows)) for part in (layer.query, layer.key, layer.value))
        q_mean, k_mean = (torch.stack([x[:, run].mean(dim=1) for run in runs], dim=1) for x in (q, k))
        first, middle, last = (
            torch.softmax(a @ b.mT / 2, dim=-1) for a, b in ((q, k_mean), (q_mean, k_mean), (q_mean, k))
        )
        mixed = first @ pseudo_inverse(middle) @ last @ v
        expected = tokens + layer.out(mixed.transpose(0, 1).flatten(1))
        assert torch.allclose(head._mix(h, bag), expected, atol=1e-5)


def test_the_pseudo_inverse_is_that_of_the_singular_values():
    a = torch.softmax(torch.randn(2, 9, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(1)), dim=-1)
    assert torch.allclose(pseudo_inverse(a, 60), torch.linalg.pinv(a), atol=1e-6)


def test_hidden_sizes_that_heads_cannot_share_are_refused():
    for name, hidden, words in (("transmil", 10, "multiple of 4"), ("ilra", 10, "multiple of 4"), ("vit", 6, "of 4")):
        with pytest.raises(MilError, match=words):
            create_head(name, D, 2, hidden=hidden)


# Places on the slide


def test_cells_and_convolution_are_those_of_a_dense_picture():
    """Two bags, one of them with two tiles in one cell (their mean stands there); conv2d is the oracle."""
    torch.manual_seed(0)
    layer = DepthwiseConvolution(4, 5)
    places = [grid(30, 1), grid(12, 2, step=100)]
    places[1][3] = places[1][5]
    values = [torch.randn(30, 4), torch.randn(12, 4)]
    bag = Bag.from_list(values, xy=places)
    cells = Cells.of(bag)
    assert len(cells) == 41
    with torch.no_grad():
        found = bag.per_bag(layer(cells.gather(bag.features), cells)[cells.of_tile])
        for x, xy, step, got in zip(values, places, (448, 100), found, strict=True):
            col, row = ((xy - xy.min(axis=0)) // step).T
            dense, count = torch.zeros(4, row.max() + 1, col.max() + 1), torch.zeros(row.max() + 1, col.max() + 1)
            for r, c, value in zip(row, col, x, strict=True):
                dense[:, r, c] += value
                count[r, c] += 1
            dense /= count.clamp(min=1)
            expected = conv2d(dense[None], layer.weight.permute(2, 0, 1)[:, None], layer.bias, padding="same", groups=4)
            assert torch.allclose(got, expected[0][:, row, col].T, atol=1e-5)


def test_islands_far_apart_cost_nothing():
    far = np.array([[0, 0], [448, 0], [448 * 10**6, 448 * 10**6]])
    cells = Cells.of(Bag.from_list([features(3)], xy=[far]))
    assert len(cells) == 3
    assert cells.neighbor(0, 1).tolist() == [1, 3, 3]
    with pytest.raises(BagError, match="out of reach"):
        cells.neighbor(0, 65)


@pytest.mark.parametrize(
    ("xy", "expected"),
    [
        ([[7, 9]], [[0, 0]]),
        ([[0, 0], [300, 0]], [[0, 0], [1, 0]]),
        ([[0, 0], [0, 300]], [[0, 0], [0, 1]]),
        ([[0, 0], [300, 0], [600, 0], [1800, 600]], [[0, 0], [1, 0], [2, 0], [6, 2]]),
        ([[0, 0], [100, 0], [200, 0], [0, 50], [0, 100], [100, 50]], [[0, 0], [1, 0], [2, 0], [0, 1], [0, 2], [1, 1]]),
    ],
)
def test_the_step_of_the_grid_is_found_from_the_tiles(xy, expected):
    bag = Bag.from_list([features(len(xy))], xy=[np.array(xy)])
    assert grid_positions(bag).tolist() == expected


def test_the_curve_visits_squares_one_after_another():
    xy = np.array([(c, r) for r in range(4) for c in range(4)]) * 10
    order = spatial_order(Bag.from_list([features(16)], xy=[xy]))
    assert [tuple(xy[i] // 20) for i in order[::4]] == [(0, 0), (1, 0), (0, 1), (1, 1)]
    for start in range(0, 16, 4):
        assert len({tuple(xy[i] // 20) for i in order[start : start + 4]}) == 1


def test_nearest_neighbors_are_those_of_a_search_through_all_pairs():
    places = [grid(40, 3), grid(3, 4), grid(1), np.zeros((0, 2), int)]
    found = nearest(Bag.from_list([features(len(xy)) for xy in places], xy=places), 8)
    start = 0
    for xy in places:
        for i in range(len(xy)):
            others = [j for j in range(len(xy)) if j != i]
            others.sort(key=lambda j, i=i, xy=xy: (((xy[j] - xy[i]) ** 2).sum(), xy[j][1], xy[j][0]))
            expected = [start + j for j in others[:8]]
            assert found[start + i].tolist() == expected + [-1] * (8 - len(expected))
        start += len(xy)


def test_messages_are_those_of_a_loop_over_neighbors():
    messages = torch.rand(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 50
    around = torch.tensor([[1, 2], [0, -1], [5, 4], [-1, -1], [0, 3], [2, 1]])
    got = aggregate(messages, around, torch.tensor(0.7, dtype=torch.float64))
    for i, row in enumerate(around.tolist()):
        near = [messages[j] for j in row if j >= 0]
        expected = torch.zeros(3, dtype=torch.float64)
        if near:
            m = torch.stack(near)
            expected = (torch.softmax(0.7 * m, dim=0) * m).sum(dim=0)
        assert torch.allclose(got[i], expected, atol=1e-12)


# Losses


def cross_entropy(target):
    return lambda logits: torch.nn.functional.cross_entropy(logits, target, reduction="none")


def test_smooth_hinge_is_the_hinge_without_smoothing():
    margin = torch.linspace(-3, 3, 13)
    assert torch.allclose(smooth_hinge(margin, tau=1e-4), (1 - margin).clamp(min=0), atol=1e-3)
    loud = torch.stack([margin * 0 + 1, margin], dim=1)  # log Σ_j exp(Δ_j + s_j - s_y), Δ = 1 for the other
    assert torch.allclose(smooth_hinge(margin), (loud[:, 0] - loud[:, 1]).exp().add(1).log(), atol=1e-6)


def test_clam_loss_is_seven_tenths_slide_and_three_tenths_of_a_loop_over_classes():
    head, bag, target = (
        fresh("clam_mb"),
        Bag.from_list([features(40), features(5), features(1)]),
        torch.tensor([1, 0, 2]),
    )
    with torch.no_grad():
        out = head(bag)
    got = clam(out, bag, target, cross_entropy(target))
    for b, (s, logits) in enumerate(zip(bag.per_bag(out.scores), bag.per_bag(out.instance_logits), strict=True)):
        k, terms = min(8, len(s) // 2), []
        for c in range(3):
            ranked = sorted(range(len(s)), key=lambda i, s=s, c=c: -float(s[i, c]))
            signed = [float(logits[i, c]) for i in ranked[:k]]
            if c == int(target[b]):
                signed += [-float(logits[i, c]) for i in ranked[-k:]] if k else []
            else:
                signed = [-v for v in signed]
            terms.append(np.mean([math.log1p(math.exp(1 - v)) for v in signed]) if signed else 0.0)
        slide = float(cross_entropy(target)(out.logits)[b])
        assert float(got[b]) == pytest.approx(0.7 * slide + 0.3 * np.mean(terms), abs=1e-5)


def test_no_tile_is_evidence_for_and_against_a_class_at_once():
    for n in (2, 3, 15, 16):
        logits = torch.zeros(n, 2, requires_grad=True)
        instance_loss(torch.randn(n, 1), logits, 1).backward()
        assert int((logits.grad[:, 1] < 0).sum()) == int((logits.grad[:, 1] > 0).sum()) == min(8, n // 2)


def test_branch_losses_are_the_means_they_say():
    bag, target = Bag.from_list([features(9), features(6)]), torch.tensor([0, 2])
    loss = cross_entropy(target)
    for name, objective in (("dsmil", dsmil), ("dtfd", dtfd), ("acmil", acmil)):
        out = fresh(name)(bag)
        each = torch.stack([loss(out.branch_logits[:, k]) for k in range(out.branch_logits.shape[1])])
        expected = each.mean(dim=0)
        if name != "dsmil":
            expected = expected + loss(out.logits)
        if name == "acmil":
            expected = expected + torch.stack([_cosines(rows) for rows in bag.per_bag(out.weights)])
        assert torch.allclose(objective(out, bag, target, loss), expected, atol=1e-6)


def _cosines(weights):
    pairs = [(i, j) for i in range(weights.shape[1]) for j in range(i)]
    return torch.stack([torch.cosine_similarity(weights[:, i], weights[:, j], dim=0) for i, j in pairs]).mean()


def test_branches_that_look_at_the_same_tiles_are_as_alike_as_can_be():
    same = torch.rand(9, 1).expand(9, 4)
    assert float(likeness(same)) == pytest.approx(1.0, abs=1e-6)
    assert float(likeness(torch.eye(4))) == pytest.approx(0.0, abs=1e-6)
