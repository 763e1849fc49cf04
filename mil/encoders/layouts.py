"""Tensors by the names of another library → by timm's names.

transformers stores ViT and DINOv2 with query, key and value apart; timm with the three stacked. Only names and the
place of rows change, never a value, but for a position table of another grid.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

_MARK = "embeddings.patch_embeddings.projection.weight"
_BLOCK = re.compile(r"encoder\.layer\.(\d+)\.(.+)")
_QKV = re.compile(r"attention\.attention\.(query|key|value)\.(weight|bias)")
_OUTSIDE = {
    "embeddings.cls_token": "cls_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.register_tokens": "reg_token",
    "embeddings.patch_embeddings.projection.weight": "patch_embed.proj.weight",
    "embeddings.patch_embeddings.projection.bias": "patch_embed.proj.bias",
    "layernorm.weight": "norm.weight",
    "layernorm.bias": "norm.bias",
}
_INSIDE = {
    "attention.output.dense": "attn.proj",
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
    "norm1": "norm1",
    "norm2": "norm2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
    "mlp.weights_in": "mlp.fc1",
    "mlp.weights_out": "mlp.fc2",
    "layer_scale1.lambda1": "ls1.gamma",
    "layer_scale2.lambda1": "ls2.gamma",
}


def from_transformers(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor] | None:
    """Return the tensors under timm's names; None where they are not in the layout of transformers.

    A pooler, a mask token and a classifier are left out: features do not pass them.
    """
    mark = next((name for name in state if name.endswith(_MARK)), None)
    if mark is None:
        return None
    prefix = mark.removesuffix(_MARK)
    found: dict[str, Tensor] = {}
    apart: dict[str, dict[str, Tensor]] = {}
    for name, tensor in state.items():
        inner = name.removeprefix(prefix)
        block = _BLOCK.fullmatch(inner)
        if inner in _OUTSIDE:
            found[_OUTSIDE[inner]] = tensor
        elif block and (part := _QKV.fullmatch(block[2])):
            apart.setdefault(f"blocks.{block[1]}.attn.qkv.{part[2]}", {})[part[1]] = tensor
        elif block:
            found[f"blocks.{block[1]}.{_inside(block[2])}"] = tensor
    for name, parts in apart.items():
        if parts.keys() == {"query", "key", "value"}:
            found[name] = torch.cat([parts["query"], parts["key"], parts["value"]])
    table = getattr(model, "pos_embed", None)
    if isinstance(table, Tensor) and "pos_embed" in found:
        found["pos_embed"] = _regridded(found["pos_embed"], table.shape[1])
    return found


def _inside(name: str) -> str:
    """Return timm's name of a tensor inside a block; a name that is not known is kept, and refused later."""
    if name in _INSIDE:
        return _INSIDE[name]
    stem, _, kind = name.rpartition(".")
    return f"{_INSIDE[stem]}.{kind}" if stem in _INSIDE else name


def _regridded(table: Tensor, wanted: int) -> Tensor:
    """Return a position table (1, 1 + n², C) for another grid, interpolated as transformers does it."""
    old, new = (table.shape[1] - 1) ** 0.5, (wanted - 1) ** 0.5
    if table.shape[1] == wanted or old % 1 or new % 1:
        return table
    grid = table[:, 1:].reshape(1, int(old), int(old), -1).permute(0, 3, 1, 2).float()
    grid = functional.interpolate(grid, size=(int(new), int(new)), mode="bicubic", align_corners=False)
    places = grid.permute(0, 2, 3, 1).reshape(1, wanted - 1, -1).to(table.dtype)
    return torch.cat([table[:, :1], places], dim=1)
