"""Grad-CAM through the head into the network: captum on the whole-bag function, maps of tokens, memory, refusals."""

from __future__ import annotations

import gc

import numpy as np
import pytest
import torch
from captum.attr import LayerGradCam
from torch import nn

from mil import Bag, MilError, create_encoder, create_head, explain
from mil.explain import NotDifferentiableError, explanation
from mil.explain.backbone import Backbone
from mil.explain.gradcam import network_maps, stream_maps, tile_maps
from mil.explain.gradients import feature_gradient
from mil.explain.result import Reach
from mil.explain.rollout import _attentions, rollout, token_rollout

N, BATCH = 7, 3


def tiles(n=N, side=160, seed=0):
    rng = np.random.default_rng(seed)
    rough = rng.integers(0, 256, (n, side // 16, side // 16, 3), dtype=np.uint8)
    return np.kron(rough, np.ones((1, 16, 16, 1), np.uint8))


@pytest.fixture(scope="module", params=["test_resnet", "test_vit"])
def encoder(request):
    return create_encoder(request.param, weights="random:1", device="cpu", batch_size=BATCH)


def head_for(encoder, name="gated_abmil"):
    torch.manual_seed(1)
    head = create_head(name, encoder.dim, 2, hidden=16).eval()
    head.fit_input(torch.from_numpy(encoder(tiles(12, seed=9))))
    return head


def bag_for(encoder, pixels):
    return Bag.from_list([encoder(pixels)])


class WholeBag(nn.Module):
    """All tiles in, one row of logits out: what Grad-CAM means by the network."""

    def __init__(self, network, head):
        super().__init__()
        self.network, self.head = network, head

    def forward(self, x):
        features = self.network(x)
        return self.head(Bag(features, torch.tensor([0, len(features)]))).logits


@pytest.mark.parametrize("target", [0, 1])
def test_streamed_maps_are_captums_on_the_whole_bag(target):
    encoder = create_encoder("test_resnet", weights="random:1", device="cpu", batch_size=BATCH)
    head, pixels = head_for(encoder), tiles()
    network = Backbone.of(encoder)
    layer = encoder.model.layer4
    captum = LayerGradCam(WholeBag(encoder.model, head), layer)
    expected = captum.attribute(network.prepare(pixels).requires_grad_(), target=target)[:, 0].detach().numpy()
    rows, _ = feature_gradient(head, bag_for(encoder, pixels), target)
    found = np.concatenate([part.maps for part in stream_maps(network, rows, pixels)])
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= 1e-6
    assert np.abs(expected).max() > 1e-4  # there is something to compare
    assert (expected < 0).any()  # signs are kept


@pytest.mark.parametrize("encoder", ["test_resnet", "test_vit", "test_convnext"], indirect=True)
def test_values_are_the_means_of_the_maps_on_one_scale(encoder):
    head, pixels = head_for(encoder), tiles()
    bag = bag_for(encoder, pixels)
    found = explanation("gradcam", head, bag, 1, encoder=encoder, tiles=list(pixels))
    maps = tile_maps(head, bag, 1, range(N), Reach(encoder, pixels))
    assert np.allclose(found.values, maps.mean(axis=(1, 2)), atol=1e-7)
    assert found.facts["features_apart"] < 1e-4
    some = tile_maps(head, bag, 1, [4, 2], Reach(encoder, pixels[[4, 2]]))
    assert np.allclose(some, maps[[4, 2]], atol=1e-6)  # no map is rescaled by itself
    assert found.values.std() > 0


def test_maps_of_tokens_are_the_chain_rule_written_out():
    """All tokens of the whole bag at once, differentiated by autograd in one piece, against the stream."""
    encoder = create_encoder("test_vit", weights="random:1", device="cpu", batch_size=BATCH)
    head, pixels = head_for(encoder), tiles()
    kept = []
    model = encoder.model
    hook = model.blocks[-1].norm1.register_forward_hook(lambda _, __, out: kept.append(out.requires_grad_()) or out)
    logits = WholeBag(model, head)(Backbone.of(encoder).prepare(pixels).requires_grad_())
    hook.remove()
    (slope,) = torch.autograd.grad(logits[0, 1], kept[0])
    patches = slice(model.num_prefix_tokens, None)
    expected = (slope[:, patches].mean(dim=1, keepdim=True) * kept[0][:, patches]).sum(dim=2).detach()
    maps = tile_maps(head, bag_for(encoder, pixels), 1, range(N), Reach(encoder, pixels))
    assert np.abs(maps.reshape(N, -1) - expected.numpy()).max() <= 1e-6
    assert np.abs(maps).max() > 1e-5


def test_tiles_may_come_one_by_one_or_in_batches_and_for_several_bags(encoder):
    head, pixels = head_for(encoder), tiles()
    features = encoder(pixels)
    one = Bag.from_list([features])
    plain = explain("gradcam", head, one, 1, encoder=encoder, tiles=list(pixels))
    batches = explain("gradcam", head, one, 1, encoder=encoder, tiles=[pixels[:2], pixels[2:]])
    assert np.array_equal(plain, batches)
    two = Bag.from_list([features[:4], features[4:]])
    apart = [explain("gradcam", head, Bag.from_list([features[s]]), 1, encoder=encoder, tiles=pixels[s])
             for s in (slice(0, 4), slice(4, 7))]  # fmt: skip
    assert np.allclose(
        explain("gradcam", head, two, 1, encoder=encoder, tiles=pixels), np.concatenate(apart), atol=1e-6
    )


def test_other_tiles_than_those_of_the_bag_are_refused(encoder):
    head, pixels = head_for(encoder), tiles()
    bag = bag_for(encoder, pixels)
    for wrong, word in [(tiles(seed=5), "other features"), (pixels[:5], "5 tiles"), (tiles(N + 1), "more tiles")]:
        with pytest.raises(MilError, match=word):
            explain("gradcam", head, bag, 1, encoder=encoder, tiles=wrong)
    with pytest.raises(MilError, match="tiles="):
        explain("gradcam", head, bag, 1, encoder=encoder)


def test_descriptors_are_refused_with_the_mend():
    descriptors = create_encoder("descriptors")
    head = create_head("gated_abmil", descriptors.dim, 2)
    bag = Bag.from_list([np.zeros((2, descriptors.dim), np.float32)])
    with pytest.raises(NotDifferentiableError, match="--encoder slidemil-compact"):
        explain("gradcam", head, bag, 1, encoder=descriptors, tiles=tiles(2))


def test_a_segmentation_network_is_explained_by_the_mean_of_its_logit_map():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.body, self.relu, self.last = nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 1)

        def forward(self, x):
            return self.last(self.relu(self.body(x)))

    net = Net().eval().requires_grad_(False)
    network = Backbone(net, net.relu, 0, lambda x: torch.from_numpy(x).permute(0, 3, 1, 2).float() / 255, 2)
    pixels = tiles(2, 32)
    maps = network_maps(network, pixels, 1)
    activation = net.relu(net.body(network.prepare(pixels)))
    weight = net.last.weight[1, :, 0, 0] / activation[0, 0].numel()  # d mean / d activation
    assert np.allclose(maps, (weight[None, :, None, None] * activation).sum(dim=1), atol=1e-6)


def test_token_rollout_is_that_of_the_unfused_attention_and_rows_sum_to_one():
    encoder = create_encoder("test_vit", weights="random:1", device="cpu", batch_size=BATCH)
    model, pixels = encoder.model, tiles(2)
    seen = []
    for block in model.blocks:
        block.attn.fused_attn = False
    hooks = [b.attn.attn_drop.register_forward_hook(lambda _, __, out: seen.append(out)) for b in model.blocks]
    encoder(pixels)
    [hook.remove() for hook in hooks]
    expected = rollout([a.mean(dim=1) for a in seen])[:2]
    assert torch.allclose(expected.sum(dim=-1), torch.ones(expected.shape[:2]), atol=1e-5)
    for block in model.blocks:
        block.attn.fused_attn = True
    maps = token_rollout(encoder, pixels)
    prefix = model.num_prefix_tokens
    row = expected[:, 0, prefix:] if prefix else expected.mean(dim=1)
    assert np.allclose(maps.reshape(2, -1), row, atol=1e-6)
    assert not any(block.attn._forward_pre_hooks for block in model.blocks)
    with pytest.raises(MilError, match="vision transformer"):
        token_rollout(create_encoder("test_resnet", weights="random", device="cpu"), pixels)


def test_hooks_are_gone_even_when_the_network_fails():
    encoder = create_encoder("test_vit", weights="random:1", device="cpu", batch_size=BATCH)
    network = Backbone.of(encoder)
    with pytest.raises(RuntimeError):
        network.split_at_maps(torch.zeros(1, 4, 160, 160))
    with pytest.raises(RuntimeError):
        _attentions(encoder.model, lambda: encoder.model(torch.zeros(1, 4, 160, 160)))
    assert not any(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in encoder.model.modules())


def live_tensors():
    gc.collect()
    return sum(1 for thing in gc.get_objects() if type(thing) is torch.Tensor)


def test_a_hundred_calls_leave_nothing_behind(encoder):
    head, pixels = head_for(encoder), tiles(2, 64)
    bag = bag_for(encoder, pixels)
    explain("gradcam", head, bag, 1, encoder=encoder, tiles=pixels)
    before = live_tensors()
    for _ in range(100):
        explain("gradcam", head, bag, 1, encoder=encoder, tiles=pixels)
    assert live_tensors() == before


def test_memory_does_not_know_the_number_of_tiles(encoder):
    """The largest number of bytes that live tensors hold at once, met by a hook in every batch."""
    head, pixels = head_for(encoder), tiles(2, 64)
    peaks = []
    for repeats in (4, 30):
        bag = Bag.from_list([np.tile(encoder(pixels), (repeats, 1))])
        rows, _ = feature_gradient(head, bag, 1)
        held = []
        for k, _ in enumerate(stream_maps(Backbone.of(encoder), rows, (pixels for _ in range(repeats)))):
            if k in (0, repeats // 2):
                gc.collect()
                held.append(sum(t.numel() for t in gc.get_objects() if type(t) is torch.Tensor) - rows.numel())
        bag_numbers = bag.features.numel()
        peaks.append(max(held) - bag_numbers)
    assert peaks[1] <= peaks[0] * 1.01
