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
    return torch.cat([tile_softmax(rows) for rows in bag.per_bag(scores)])


def tile_softmax(scores: Tensor) -> Tensor:
    """Softmax over the tiles of one bag, shape (N, K), in float32 at least."""
    # Along the first axis torch adds one by one: over 100,000 tiles the weights would sum to 0.999.
    return torch.softmax(scores.T.contiguous(), dim=1, dtype=accumulation_dtype(scores)).T


class KeptRows:
    """Rows that come in chunks, written where they will stay.

    A list of small tensors, each made after the large ones of its chunk were freed, would lie scattered in their holes:
    the next chunk then finds no hole large enough, and memory grows by a chunk each time (46 or 700 MB, by luck).
    """

    def __init__(self, n: int) -> None:
        self._n, self._filled = n, 0
        self._rows: Tensor | None = None

    def add(self, rows: Tensor) -> None:
        """Take in rows (m, K); all together have to be n."""
        if self._rows is None:
            self._rows = rows.new_empty(self._n, *rows.shape[1:])
        self._rows[self._filled : self._filled + len(rows)] = rows
        self._filled += len(rows)

    def result(self) -> Tensor:
        """Return all rows (n, K)."""
        assert self._rows is not None
        assert self._filled == self._n
        return self._rows


class RunningSoftmax:
    """Σ softmax(scores) values over tiles that come in chunks, exact: sums are rescaled when a larger score comes.

    Source: Milakov and Gimelshein 2018, arXiv 1805.02867.
    """

    def __init__(self) -> None:
        self._top: Tensor | None = None
        self._total: Tensor
        self._sum: Tensor

    def add(self, scores: Tensor, values: Tensor) -> None:
        """Take in tiles: scores (n, K), -inf for a tile that does not count; values (n, E)."""
        scores, values = scores.to(accumulation_dtype(scores)), values.to(accumulation_dtype(values))
        if self._top is None:
            self._top = scores.new_full((scores.shape[1],), torch.finfo(scores.dtype).min)
            self._total = scores.new_zeros(scores.shape[1])
            self._sum = values.new_zeros(scores.shape[1], values.shape[1])
        if not scores.shape[0]:
            return
        top = torch.maximum(self._top, scores.amax(dim=0))
        old, new = torch.exp(self._top - top), torch.exp(scores - top)
        self._total = self._total * old + new.T.sum(dim=1)
        self._sum = self._sum * old[:, None] + new.T @ values
        self._top = top

    def result(self) -> Tensor:
        """Return the weighted sums, shape (K, E); zeros where no tile counted."""
        return self._sum / self._total.clamp(min=torch.finfo(self._total.dtype).tiny)[:, None]


def segment_weighted_sum(weights: Tensor, values: Tensor, bag: Bag) -> Tensor:
    """Sum of the tile values of each bag, weighted: (T, K) and (T, E) → (B, K, E); zeros for an empty bag."""
    dtype = accumulation_dtype(values)
    pairs = zip(bag.per_bag(weights.to(dtype)), bag.per_bag(values.to(dtype)), strict=True)
    with torch.autocast(values.device.type, enabled=False):  # sums over all tiles stay in single precision
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
