"""Weights and bags for torchmil and for us, and what our heads make of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import mil
from mil.heads import Head
from mil.heads.transformer import Attention
from mil.heads.transmil import nystrom
from mil.losses.clam import K, instance_loss

DIM, HIDDEN, ATTENTION, LANDMARKS = 6, 8, 4, 5
SIZES, NOISE = (20, 13), 7
SHAPES = {
    "embed": (HIDDEN, DIM), "embed_b": (HIDDEN,),
    "cls": (1, HIDDEN), "cls_b": (1,), "cls2": (1, HIDDEN), "cls2_b": (1,),
    "v": (ATTENTION, HIDDEN), "v_b": (ATTENTION,), "w": (1, ATTENTION), "u": (ATTENTION, HIDDEN), "u_b": (ATTENTION,),
    "v2": (ATTENTION, HIDDEN), "v2_b": (ATTENTION,), "w2": (1, ATTENTION),
    "q1": (ATTENTION, HIDDEN), "q1_b": (ATTENTION,), "q2": (ATTENTION, ATTENTION), "q2_b": (ATTENTION,),
    "inst": (1, HIDDEN), "inst_b": (1,), "inst0": (2, HIDDEN), "inst0_b": (2,), "inst1": (2, HIDDEN), "inst1_b": (2,),
    "nq": (HIDDEN, HIDDEN), "nk": (HIDDEN, HIDDEN), "nv": (HIDDEN, HIDDEN),
}  # fmt: skip
OPEN = 40.0  # the logistic function of it is 1 in single precision: a gate that is no gate


def made(seed: int = 0) -> dict[str, Any]:
    """Random weights and bags as nested lists of single-precision numbers; the noise is large on purpose."""
    rng = np.random.default_rng(seed)

    def numbers(*shape: int, scale: float = 1.0) -> Any:
        return (scale * rng.normal(size=shape)).astype(np.float32).tolist()

    return {
        "weights": {name: numbers(*shape, scale=shape[-1] ** -0.5) for name, shape in SHAPES.items()},
        "bags": [numbers(n, DIM) for n in SIZES],
        "noise": numbers(NOISE, DIM, scale=10.0),
    }


def head(name: str, w: dict[str, Tensor], **options: float) -> Head:
    """Our head of one output with torchmil's weights; names of layers → weights stand in `LAYERS`."""
    given = {} if name in ("mean", "max") else {"attention": ATTENTION}
    built = mil.create_head(name, DIM, 1, hidden=HIDDEN, dropout=0.0, **given, **options).double().eval()
    layers = dict(built.named_modules())
    wanted = {"embed.0": ("embed", "embed_b"), "classifier": ("cls", "cls_b"), **LAYERS.get(name, {})}
    for layer, (weight, bias) in wanted.items():
        put(layers[layer], w[weight], None if bias is None else w[bias])
    return built


LAYERS: dict[str, dict[str, tuple[str, str | None]]] = {
    "abmil": {"attention_v": ("v", "v_b"), "attention_w": ("w", None)},
    "gated_abmil": {"attention_v": ("v", "v_b"), "attention_u": ("u", "u_b"), "attention_w": ("w", None)},
    "clam_sb": {"attention.v": ("v", "v_b"), "attention.u": ("u", "u_b"), "attention.w": ("w", None)},
    "dsmil": {"instances": ("inst", "inst_b"), "query.0": ("q1", "q1_b"), "query.2": ("q2", "q2_b"),
              "value": ("one", None)},
    "dtfd": {"attention.v": ("v", "v_b"), "attention.u": ("closed", "open"), "attention.w": ("w", None),
             "attention2.v": ("v2", "v2_b"), "attention2.u": ("closed", "open"), "attention2.w": ("w2", None),
             "group_classifier": ("cls2", "cls2_b")},
}  # fmt: skip


def put(layer: nn.Module, weight: Tensor, bias: Tensor | None = None) -> None:
    """Copy weights; without a bias it is zero."""
    assert isinstance(layer, nn.Linear)
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(torch.zeros_like(layer.bias) if bias is None else bias)


@torch.no_grad()
def ours(given: dict[str, Any]) -> dict[str, Tensor]:
    """Our answers to what torchmil was asked, by the same names; bags are packed, so the noise has no place here."""
    w, bags = tensors(given)
    packed = mil.Bag.from_list(bags)
    heads = {name: head(name, w) for name in ("mean", "max", "abmil", "gated_abmil", "clam_sb", "dsmil", "dtfd")}
    out = {name: built(packed) for name, built in heads.items()}
    answers = {name: one.logits[:, 0] for name, one in out.items()}
    answers |= {f"{name}_scores": out[name].scores[:, 0] for name in ("abmil", "gated_abmil")}
    answers["dtfd"] = answers["dtfd"][:1]
    h = heads["abmil"].embed(bags[0])
    answers["nystrom"] = nystrom(attention(w), h, torch.arange(len(h)) * LANDMARKS // len(h))
    return answers


def tensors(given: dict[str, Any]) -> tuple[dict[str, Tensor], list[Tensor]]:
    """Weights and bags in double precision; further an identity, and a gate that is always open."""
    w = {name: torch.tensor(value).double() for name, value in given["weights"].items()}
    w |= {"one": torch.eye(HIDDEN).double(), "closed": torch.zeros(ATTENTION, HIDDEN).double()}
    w["open"] = torch.full((ATTENTION,), OPEN).double()
    return w, [torch.tensor(rows).double() for rows in given["bags"]]


def attention(w: dict[str, Tensor]) -> Attention:
    """One head of scaled dot-product attention without a last layer."""
    layer = Attention(HIDDEN, 1).double()
    for part, weight in ((layer.query, "nq"), (layer.key, "nk"), (layer.value, "nv"), (layer.out, "one")):
        put(part, w[weight])
    return layer


@torch.no_grad()
def our_clam_loss(given: dict[str, Any]) -> float:
    """Instance loss of the long bag as a positive one: the sum of both classes, as torchmil has it (ours: the mean)."""
    w, bags = tensors(given)
    built = head("clam_sb", w)
    h = built.embed(bags[0])
    evidence = torch.stack([h @ w[f"inst{c}"].diff(dim=0)[0] + w[f"inst{c}_b"].diff() for c in (0, 1)], dim=1)
    return float(2 * instance_loss(built(mil.Bag.from_list(bags[:1])).scores, evidence, 1, k=K))


@torch.no_grad()
def our_slips(given: dict[str, Any]) -> dict[str, float]:
    """Largest change of our answer where torchmil's changes: a bag alone, and beside one that ends in large numbers."""
    w, (long, small) = tensors(given)
    other = torch.cat([long, torch.tensor(given["noise"]).double()])
    alone, beside = mil.Bag.from_list([small]), mil.Bag.from_list([other, small])
    slips = {}
    for name in ("dsmil", "clam_sb", "dtfd", "abmil", "gated_abmil"):
        built = head(name, w)
        slips[f"{name}_padding"] = float((built(alone).logits[0] - built(beside).logits[1]).abs().max())
    built = head("dtfd", w)
    slips["dtfd_asked_twice"] = float((built(alone).logits - built(alone).logits).abs().max())
    # Our Nystrom attention goes bag by bag: there is no batch that another bag could change.
    empty = mil.Bag.from_list([torch.empty(0, DIM).double()])
    for name in ("abmil", "gated_abmil", "clam_sb", "dsmil"):
        slips[f"{name}_empty"] = 0.0 if bool(torch.isfinite(head(name, w)(empty).logits).all()) else float("inf")
    return slips
