"""What explanations are held against: captum, sums that are known, memory that may not grow."""

from __future__ import annotations

import gc
import os
import resource
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from mil import HEADS, Bag, create_encoder, create_head
from mil.explain import explanation
from mil.explain.backbone import Backbone
from mil.explain.gradcam import tile_maps
from mil.explain.result import Reach
from mil.explain.rollout import rollout, token_rollout

DIM, CLASSES = 384, 2


def tiles(n: int, side: int, seed: int = 0) -> np.ndarray:
    """Return colored patches (n, side, side, 3)."""
    rough = np.random.default_rng(seed).integers(0, 256, (n, side // 16, side // 16, 3), dtype=np.uint8)
    return np.kron(rough, np.ones((1, 16, 16, 1), np.uint8))


def head_on(features: np.ndarray, name: str = "gated_abmil") -> Any:
    """Return a head of random weights that standardizes as if trained on these features."""
    torch.manual_seed(1)
    head = create_head(name, features.shape[1], CLASSES, hidden=32).eval()
    head.fit_input(torch.from_numpy(np.asarray(features, np.float32)))
    return head


class WholeBag(nn.Module):
    """All tiles in, one row of logits out, in one graph."""

    def __init__(self, network: nn.Module, head: Any) -> None:
        super().__init__()
        self.network, self.head = network, head

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = self.network(x)
        return self.head(Bag(features, torch.tensor([0, len(features)]))).logits


def gradcam_against_captum(arch: str, n: int) -> dict[str, float]:
    """Return the largest difference to captum's LayerGradCam on the whole-bag function, and the largest value."""
    from captum.attr import LayerGradCam

    encoder = create_encoder(arch, weights="random:1", device="cpu", batch_size=8)
    pixels = tiles(n, encoder.input_size)
    head = head_on(encoder(tiles(16, encoder.input_size, seed=9)))
    apart, size = 0.0, 0.0
    for target in range(CLASSES):
        captum = LayerGradCam(WholeBag(encoder.model, head), encoder.model.layer4)
        x = Backbone.of(encoder).prepare(pixels).requires_grad_()
        theirs = captum.attribute(x, target=target)[:, 0].detach().numpy()
        ours = tile_maps(head, Bag.from_list([encoder(pixels)]), target, range(n), Reach(encoder, pixels))
        apart, size = max(apart, float(np.abs(ours - theirs).max())), max(size, float(np.abs(theirs).max()))
    return {"gradcam_from_captum": apart, "gradcam_largest": size}


def bag_of(n: int, dtype: Any = np.float32, seed: int = 0) -> Bag:
    """Return one bag of random features with places."""
    rng = np.random.default_rng(seed)
    rows = (rng.normal(size=(n, DIM)) * np.logspace(-2, 2, DIM) + 3).astype(dtype)
    places = np.stack([np.arange(n) % 32, np.arange(n) // 32], axis=1) * 224
    return Bag.from_list([rows], xy=[places])


def sums(n: int) -> dict[str, float]:
    """Return how far LRP's terms and bias are from the logit, over the heads that declare it, and rollout from 1."""
    found = {}
    for key, dtype, kind in (
        ("lrp_float32", torch.float32, np.float32),
        ("lrp_float64", torch.float64, np.float64),
    ):
        bag, worst = bag_of(n, kind), 0.0
        for name in sorted(name for name, head in HEADS.items() if head.contract.contributions):
            head = head_on(bag.features.numpy(), name).to(dtype)
            with torch.inference_mode():
                logits = head(bag).logits[0].double()
            for target in range(CLASSES):
                with torch.inference_mode():
                    values, bias = head.contributions(bag, target)
                total = float(values.sum(dtype=torch.float64)) + float(torch.as_tensor(bias).detach())
                worst = max(worst, abs(total - float(logits[target])))
        found[f"{key}_from_logit"] = worst
    bag = bag_of(min(n, 600))
    row = explanation("rollout", head_on(bag.features.numpy(), "vit"), bag, 1)
    found["rollout_row_from_1"] = abs(float(row.values.sum(dtype=np.float64)) + row.facts["share_of_the_token"] - 1)
    vit = create_encoder("test_vit", weights="random:1", device="cpu", batch_size=4)
    matrices = [torch.softmax(torch.randn(2, 30, 30, generator=torch.Generator().manual_seed(k)), -1) for k in range(4)]
    rows = rollout(matrices).sum(dim=-1)
    found["rollout_row_from_1"] = max(found["rollout_row_from_1"], float((rows - 1).abs().max()))
    inside = token_rollout(vit, tiles(2, vit.input_size)).reshape(2, -1).sum(axis=1)
    assert (inside <= 1 + 1e-5).all(), "patches cannot hold more than the token gives"
    return found


IG_HEADS = ("gated_abmil", "transmil", "abmil", "additive", "mean", "dsmil", "clam_sb")


def completeness(n: int, names: Sequence[str] = IG_HEADS) -> float:
    """Return the largest error of integrated gradients' sum, over heads of all kinds."""
    bag = bag_of(n)
    errors = [
        explanation("integrated_gradients", head_on(bag.features.numpy(), name), bag, 1).facts["completeness_error"]
        for name in names
    ]
    return float(max(errors))


def growth_of_calls(arch: str, calls: int) -> float:
    """Return resident memory after so many calls of Grad-CAM and of the others, over that after ten."""
    encoder = create_encoder(arch, weights="random:1", device="cpu", batch_size=8)
    pixels = tiles(8, encoder.input_size)
    features = encoder(pixels)
    head, bag = head_on(encoder(tiles(16, encoder.input_size, seed=9))), Bag.from_list([features])

    def call() -> None:
        explanation("gradcam", head, bag, 1, encoder=encoder, tiles=pixels)
        for method in ("lrp", "gradient_input", "perturbation"):
            explanation(method, head, bag, 1)

    for _ in range(10):
        call()
    gc.collect()
    before = resident()
    for _ in range(calls):
        call()
    gc.collect()
    return resident() / before


def memory_of_gradcam(arch: str, n: int) -> float:
    """Return the peak of resident memory above that before the first tile, in MB; for a process of its own."""
    encoder = create_encoder(arch, weights="random:1", device="cpu", batch_size=32)
    side = encoder.input_size

    def stream() -> Iterator[np.ndarray]:
        for start in range(0, n, 32):
            yield tiles(min(32, n - start), side, seed=start)

    head = head_on(np.random.default_rng(0).normal(size=(64, encoder.dim)))
    before = resident()
    features = np.concatenate([encoder(part) for part in stream()])
    explanation("gradcam", head, Bag.from_list([features]), 1, encoder=encoder, tiles=Again(stream))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return (peak - before) / 1e6


class Again:
    """Tiles that can be gone through again."""

    def __init__(self, make: Any) -> None:
        self.make = make

    def __iter__(self) -> Iterator[np.ndarray]:
        return self.make()


def resident() -> int:
    """Return resident bytes of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
