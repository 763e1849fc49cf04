"""Max pooling: per feature, the tile where it is strongest."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mil.bag import Bag
from mil.pooling import segment_max

from .base import Head, MILOutput, tile_embedding


class MaxHead(Head):
    """Largest value of each embedding feature over the tiles, then a linear classifier.

    A tile's weight is the share of the features for which it holds the maximum (equal tiles share it).

    Source: MI-Net with max pooling, Wang et al., Pattern Recognition 2018, doi:10.1016/j.patcog.2017.08.026.
    """

    name = "max"

    def __init__(self, in_dim: int, classes: int, *, hidden: int = 64, dropout: float = 0.25) -> None:
        super().__init__(in_dim, classes, hidden=hidden, dropout=dropout)
        self.embed = tile_embedding(in_dim, hidden, dropout)
        self.classifier = nn.Linear(hidden, classes)

    def pool(self, bag: Bag) -> MILOutput:
        """Take the maxima; the raw scores are the weights themselves."""
        h = self.embed(self.input(bag.features))  # (T, E)
        z = segment_max(h, bag)  # (B, E)
        weights = torch.cat([_shares(rows) for rows in bag.per_bag(h.detach())])  # (T, 1)
        return MILOutput(self.classifier(z), z, weights, weights)


def _shares(h: Tensor) -> Tensor:
    """Share of the columns of one bag (N, E) that each row dominates, shape (N, 1), summing to 1."""
    if not h.shape[0]:
        return h.new_zeros((0, 1))
    top = (h == h.amax(dim=0)).to(h.dtype)
    return (top / top.sum(dim=0)).mean(dim=1, keepdim=True)
