"""Per-tile values of packed bags → one value per bag.

Every function works bag by bag on views of the packed rows, so that a bag alone and the same bag between others
go through the same arithmetic, and nothing depends on a padding. An empty bag gives zeros, never NaN.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .bag import Bag


def accumulation_dtype(values: Tensor) -> torch.dtype:
    """Return float32 for half precision and the dtype itself otherwise; a half sum over 65,000 tiles overflows."""
    return torch.float32 if values.dtype in (torch.float16, torch.bfloat16) else values.dtype


def segment_softmax(scores: Tensor, bag: Bag) -> Tensor:
    """Softmax over the tiles of each bag, in float32 at least.

    Args:
        scores: shape (T, K), raw.
        bag: whose offsets cut the rows.

    Returns:
        Weights, shape (T, K); each column sums to 1 in every bag that has tiles.
    """
    dtype = accumulation_dtype(scores)
    # Along the first axis torch adds one by one: over 100,000 tiles the weights would sum to 0.999.
    lying = scores.T.contiguous()
    return torch.cat([torch.softmax(rows, dim=1, dtype=dtype) for rows in bag.per_bag(lying, axis=1)], dim=1).T


def segment_weighted_sum(weights: Tensor, values: Tensor, bag: Bag) -> Tensor:
    """Sum of the tile values of each bag, weighted: (T, K) and (T, E) → (B, K, E); zeros for an empty bag."""
    dtype = accumulation_dtype(values)
    pairs = zip(bag.per_bag(weights.to(dtype)), bag.per_bag(values.to(dtype)), strict=True)
    return torch.stack([w.T @ rows for w, rows in pairs])


def segment_mean_weights(bag: Bag, like: Tensor) -> Tensor:
    """Weights 1 / N of each tile of an N-tile bag, shape (T, 1), on the device of `like`."""
    sizes = bag.sizes.to(like.device)
    share = 1.0 / sizes.clamp(min=1).to(accumulation_dtype(like))
    return torch.repeat_interleave(share, sizes)[:, None]


def segment_max(values: Tensor, bag: Bag) -> Tensor:
    """Largest value of each column in each bag: (T, E) → (B, E); zeros for an empty bag."""
    return torch.stack(
        [rows.amax(dim=0) if rows.shape[0] else rows.new_zeros(rows.shape[1]) for rows in bag.per_bag(values)]
    )
