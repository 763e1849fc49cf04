"""torchmil's answers for given weights and bags, in a process of its own (see `_turns.Worker`).

    {"do": "answers", "weights": {name: nested list}, "bags": [[[…]]], "noise": [[…]]} → {"right": {…}, "wrong": {…}}
    {"do": "versions"} → {"torchmil": "1.0.2", "torch": "2.15.0"}

"right" are answers to compare; "wrong" are pairs that ought to be equal: the answer for a bag, and for the same bag
where only what is no part of it has changed (of `_formula`: what the paper says). `noise` are rows that pad the last,
shorter bag; the mask says that they are none of its own. All in double precision: what is left is no rounding.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchmil.models import ABMIL, CLAM_SB, DSMIL, DTFDMIL, TransMIL
from torchmil.nn import MaxPool, MeanPool
from torchmil.nn.attention import NystromAttention

K, GROUPS, LANDMARKS = 8, 4, 5
Weights = dict[str, Tensor]


def embedding(w: Weights) -> nn.Module:
    """Linear and ReLU: what our heads begin with."""
    layer = nn.Linear(*reversed(w["embed"].shape))
    fill(layer, w["embed"], w["embed_b"])
    return nn.Sequential(layer, nn.ReLU())


def fill(layer: nn.Module, weight: Tensor, bias: Tensor | None = None) -> None:
    """Copy weights, also into torchmil's `LazyLinear`, which holds the layer as `module`."""
    layer = getattr(layer, "module", layer)
    with torch.no_grad():
        layer.weight.copy_(weight)
        if bias is not None:
            layer.bias.copy_(bias)


def fill_pool(pool: nn.Module, w: Weights, end: str = "") -> None:
    """Attention: V, w and the gate where there is one."""
    fill(pool.fc1, w[f"v{end}"], w[f"v{end}_b"])
    fill(pool.fc2, w[f"w{end}"])
    if pool.gated:
        fill(pool.fc_gated, w["u"], w["u_b"])


def attending(kind: type, w: Weights, **more: Any) -> nn.Module:
    """ABMIL or CLAM."""
    head = kind((w["embed"].shape[1],), att_dim=len(w["v"]), feat_ext=embedding(w), **more)
    fill_pool(head.pool, w)
    fill(head.classifier, w["cls"], w["cls_b"])
    if kind is CLAM_SB:
        for c, layer in enumerate(head.inst_classifiers):
            fill(layer, w[f"inst{c}"], w[f"inst{c}_b"])
    return head.eval()


def dsmil(w: Weights) -> nn.Module:
    head = DSMIL((w["embed"].shape[1],), att_dim=len(w["v"]), nonlinear_q=True, feat_ext=embedding(w))
    fill(head.q_nn[0], w["q1"], w["q1_b"])
    fill(head.q_nn[2], w["q2"], w["q2_b"])
    fill(head.inst_classifier, w["inst"], w["inst_b"])
    fill(head.bag_classifier, w["cls"], w["cls_b"])
    return head.eval()


def dtfd(w: Weights) -> nn.Module:
    head = DTFDMIL((w["embed"].shape[1],), len(w["v"]), GROUPS, "afs", feat_ext=embedding(w))
    fill_pool(head.attention_pool, w)
    fill_pool(head.u_attention_pool, w, "2")
    fill(head.classifier, w["cls2"], w["cls2_b"])
    fill(head.u_classifier, w["cls"], w["cls_b"])
    return head.eval()


def nystrom(w: Weights) -> nn.Module:
    dim = len(w["nq"])
    layer = NystromAttention(dim, att_dim=dim, n_heads=1, n_landmarks=LANDMARKS)
    fill(layer.qkv_nn, torch.cat([w["nq"], w["nk"], w["nv"]]))
    return layer.eval()


def transmil(w: Weights) -> nn.Module:
    torch.manual_seed(0)
    return TransMIL((w["embed"].shape[1],), att_dim=16, n_heads=2, n_landmarks=4).eval()


def dealt(call: Callable[[], Tensor], n: int) -> Tensor:
    """The answer where pseudo-bag g gets the tiles g, g + GROUPS …, instead of a deal at random."""
    order = np.concatenate([np.arange(g, n, GROUPS) for g in range(GROUPS)])
    shuffle, np.random.shuffle = np.random.shuffle, lambda rows: rows.__setitem__(slice(None), order)
    try:
        return call()
    finally:
        np.random.shuffle = shuffle


@torch.no_grad()
def answers(weights: dict[str, Any], bags: list[Any], noise: list[Any]) -> dict[str, Any]:
    w = {name: torch.tensor(value) for name, value in weights.items()}
    long, small = (torch.tensor(rows) for rows in bags)
    padded = torch.stack([long, torch.cat([small, torch.tensor(noise)])])
    mask = torch.tensor([[True] * len(long), [True] * len(small) + [False] * len(noise)])
    hidden, linear = embedding(w), nn.functional.linear
    abmil, gated, clam = (
        attending(ABMIL, w),
        attending(ABMIL, w, gated=True),
        attending(CLAM_SB, w, gated=True, k_sample=K),
    )
    tiers, layer, two, whole = dtfd(w), nystrom(w), dsmil(w), transmil(w)
    scores, h = clam(long[None], return_att=True)[1][0], hidden(long)
    right = {
        "mean": linear(MeanPool()(hidden(padded), mask), w["cls"], w["cls_b"])[:, 0],
        "max": linear(MaxPool()(hidden(padded), mask), w["cls"], w["cls_b"])[:, 0],
        "abmil": abmil(padded, mask),
        "abmil_scores": abmil(padded, mask, return_att=True)[1][mask],
        "gated_abmil": gated(padded, mask),
        "gated_abmil_scores": gated(padded, mask, return_att=True)[1][mask],
        "clam_sb": clam(padded, mask),
        "dsmil": torch.cat([two.predict(long[None]), two.predict(small[None])]),
        "dtfd": dealt(lambda: tiers(long[None]), len(long)),
        "nystrom": layer(h[None])[0],
    }
    np.random.seed(0)  # noqa: NPY002 - it is what torchmil draws from
    of_small, faint = torch.tensor([1.0]), 0.1 * torch.tensor(noise)
    wrong = {
        "dsmil_padding": [two.predict(small[None])[0], two.predict(padded, mask)[1]],
        "transmil_padding": [whole(small[None])[0], whole(padded)[1]],
        "nystrom_neighbor_in_batch": [layer(h[None])[0, 0], layer(torch.stack([h, 8 * h]))[0, 0]],
        "clam_loss_padding": [
            clam.compute_loss(of_small, small[None])[1]["InstLoss"],
            clam.compute_loss(of_small, torch.cat([small, faint])[None], mask[1:])[1]["InstLoss"],
        ],
        "clam_loss_formula": [clam.compute_inst_loss(scores[None], h[None], torch.tensor([1])), formula(w, scores, h)],
        "dtfd_asked_twice": [tiers(long[None])[0], tiers(long[None])[0]],
    }
    nothing = torch.zeros(1, len(long), dtype=torch.bool)
    empty = {"abmil": abmil, "gated_abmil": gated, "clam_sb": clam, "dsmil": two}
    told = {name: bool(torch.isfinite(head(long[None], nothing)).all()) for name, head in empty.items()}
    return {
        "right": {name: value.tolist() for name, value in right.items()},
        "wrong": {name: [value.tolist() for value in pair] for name, pair in wrong.items()},
        "empty_bag_is_finite": told,
        "clam_loss_of_sure_tiles": sure(clam, h),
    }


def formula(w: Weights, scores: Tensor, h: Tensor) -> Tensor:
    """What the loss of a positive bag is meant to be: mean of log(1 + exp(1 - margin)) over the chosen tiles, summed.

    torchmil hands its targets over as a column; added to the logits they make a square of tiles by tiles.
    """
    order = scores.argsort(descending=True)
    high, low = h[order[:K]], h[order[-K:]]
    margin = [
        nn.functional.linear(h, w[f"inst{c}"], w[f"inst{c}_b"]).diff()[:, 0]
        for c, h in ((1, high), (1, low), (0, high))
    ]
    return sum(nn.functional.softplus(1 - m).mean() for m in (torch.cat([margin[0], -margin[1]]), -margin[2]))


def sure(clam: nn.Module, h: Tensor) -> str:
    """What the instance loss says of tiles whose two logits are far apart (more than ln 1000)."""
    try:
        return str(float(clam.compute_inst_loss(torch.arange(len(h))[None], 100 * h[None], torch.tensor([1]))))
    except RuntimeError as error:
        return f"RuntimeError: {error}"


def main() -> None:
    torch.set_default_dtype(torch.float64)
    versions = {name: version(name) for name in ("torchmil", "torch")}
    for command in map(json.loads, sys.stdin):
        do = command.pop("do")
        try:
            answer = versions if do == "versions" else answers(**command)
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
