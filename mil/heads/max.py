"""Max pooling: per feature, the tile where it is strongest."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mil.bag import Bag
from mil.pooling import KeptRows, segment_max

from .base import CHUNK, Contract, Head, MILOutput, tile_embedding


class MaxHead(Head):
    """Largest value of each embedding feature over the tiles, then a linear classifier.

    A tile's weight is the share of the features for which it holds the maximum (equal tiles share it).

    Source: MI-Net with max pooling, Wang et al., Pattern Recognition 2018, doi:10.1016/j.patcog.2017.08.026.
    """

    name = "max"
    contract = Contract(streams=True)

    def __init__(self, in_dim: int, classes: int, *, hidden: int = 64, dropout: float = 0.25) -> None:
        super().__init__(in_dim, classes, hidden=hidden, dropout=dropout)
        self.embed = tile_embedding(in_dim, hidden, dropout)
        self.classifier = nn.Linear(hidden, classes)

    def pool(self, bag: Bag) -> MILOutput:
        """Take the maxima; the raw scores are the weights themselves."""
        h = self.embedded(bag)  # (T, E)
        z = segment_max(h, bag)  # (B, E)
        weights = torch.cat([top_share(rows).mean(dim=1, keepdim=True) for rows in bag.per_bag(h.detach())])  # (T, 1)
        return MILOutput(self.classifier(z), z, weights, weights)

    def pool_chunks(self, chunks: Sequence[Bag]) -> MILOutput:
        """Go through the tiles for the maxima, and again for the tiles that hold them."""
        z = torch.full_like(self.first_linear.bias, -torch.inf)
        for chunk in chunks:
            z = torch.cat([z[None], self.embedded(chunk)]).amax(dim=0)
        z = torch.where(z.isinf(), 0.0, z)  # no tile at all
        kept = KeptRows(sum(chunk.n_tiles for chunk in chunks))
        for chunk in chunks:
            kept.add(self.embedded(chunk) == z)
        top = kept.result()  # (N, E) bool
        share = 1.0 / top.sum(dim=0).clamp(min=1).to(z.dtype) / z.numel()  # of one tile in each feature it holds
        weights = torch.cat([rows.to(z.dtype) @ share for rows in torch.split(top, CHUNK)])[:, None]
        return MILOutput(self.classifier(z)[None], z[None], weights, weights)


def top_share(values: Tensor) -> Tensor:
    """Share of each row of one bag in the maximum of each column: (N, K) → (N, K), columns summing to 1."""
    if not values.shape[0]:
        return values
    top = (values == values.amax(dim=0)).to(values.dtype)
    return top / top.sum(dim=0)
