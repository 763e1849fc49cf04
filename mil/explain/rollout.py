"""Attention rollout: how much of each tile, or of each patch of a tile, reaches the token that decides."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mil.bag import Bag
from mil.errors import MilError
from mil.heads import Head

from .backbone import Backbone
from .result import Explanation, Reach, as_values, bag_by_bag

_QUERIES = 512  # rows of an attention matrix that are held at a time


def rollout(matrices: Sequence[Tensor]) -> Tensor:
    """Multiply attention matrices (…, n, n), first layer first, each averaged with the shortcut; rows sum to 1.

    Source: Abnar and Zuidema, "Quantifying Attention Flow in Transformers", ACL 2020, §3.1 (A = 0.5 W + 0.5 I).
    """
    together: Tensor | None = None
    for matrix in matrices:
        unit = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
        layer = (matrix + unit) / 2
        together = layer if together is None else layer @ together
    assert together is not None
    return together


def row_through(row: Tensor, queries: Tensor, keys: Tensor) -> Tensor:
    """Multiply a row (n,) with softmax(q kᵀ / √d) averaged over heads (H, n, d), never held whole: (n,)."""
    out = torch.zeros_like(row)
    scale = queries.shape[-1] ** -0.5
    for start in range(0, queries.shape[1], _QUERIES):
        part = slice(start, start + _QUERIES)
        attention = torch.softmax(queries[:, part] @ keys.mT * scale, dim=-1).mean(dim=0)  # (m, n)
        out += row[part] @ attention
    return out


@bag_by_bag
@torch.inference_mode()
def head_rollout(head: Head, bag: Bag, target: int, reach: Reach) -> Explanation:
    """Share of each tile in the class token after all layers of the head; the token's own share is told.

    Like attention it knows no class and no sign.
    """
    row: Tensor = head.eval().rollout(bag, row_through)
    return Explanation(as_values(row[1:]), {"share_of_the_token": float(row[0])})


def token_rollout(encoder: Any, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Rollout inside a vision transformer that encodes tiles: (B, S, S, 3) uint8 → (B, h, w), of the class token.

    A network without class token gives the mean over all tokens' rows. Register tokens are left out of the map.

    Raises:
        MilError: the encoder is no vision transformer.
    """
    network = Backbone.of(encoder)
    if not network.is_vit:
        raise MilError(f"{encoder.id} is no vision transformer: it has no attention to roll out. Use gradcam.")
    model: Any = network.module
    with torch.inference_mode():
        matrices = _attentions(model, lambda: model(network.prepare(pixels)))
        whole = rollout(matrices)
    prefix = network.prefix_tokens
    row = whole[:, 0] if prefix else whole.mean(dim=1)
    maps: NDArray[np.float32] = (
        row[:, prefix:].reshape(len(pixels), *network.token_grid(row.shape[1] - prefix)).cpu().numpy()
    )
    return maps


def _attentions(model: Any, run: Callable[[], Any]) -> list[Tensor]:
    """Attention of every block, mean over heads, (B, n, n), computed anew from its input: fused kernels keep none."""
    found: list[Tensor] = []

    def look(module: Any, inputs: tuple[Any, ...]) -> None:
        x = inputs[0]
        b, n, _ = x.shape
        qkv = module.qkv(x).reshape(b, n, 3, module.num_heads, -1).permute(2, 0, 3, 1, 4)
        q, k = module.q_norm(qkv[0]), module.k_norm(qkv[1])
        found.append(torch.softmax(q * module.scale @ k.mT, dim=-1).mean(dim=1))

    hooks = [block.attn.register_forward_pre_hook(look) for block in model.blocks]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return found
