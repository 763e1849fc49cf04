"""Mean pooling: every tile counts the same."""

from __future__ import annotations

from torch import nn

from mil.bag import Bag
from mil.pooling import segment_mean_weights, segment_weighted_sum

from .base import Contract, Head, MILOutput, tile_embedding


class MeanHead(Head):
    """Average of the tile embeddings, then a linear classifier.

    The classifier is linear, so the class logits of the tiles average to the logits of the bag: `instance_logits`
    are exact contributions.

    Source: MI-Net with mean pooling, Wang et al., Pattern Recognition 2018, doi:10.1016/j.patcog.2017.08.026.
    """

    name = "mean"
    contract = Contract(instance_logits=True)

    def __init__(self, in_dim: int, classes: int, *, hidden: int = 64, dropout: float = 0.25) -> None:
        super().__init__(in_dim, classes, hidden=hidden, dropout=dropout)
        self.embed = tile_embedding(in_dim, hidden, dropout)
        self.classifier = nn.Linear(hidden, classes)

    def pool(self, bag: Bag) -> MILOutput:
        """Average; the raw scores are all zero, since no tile is preferred."""
        h = self.embed(self.input(bag.features))  # (T, E)
        weights = segment_mean_weights(bag, h)  # (T, 1)
        z = segment_weighted_sum(weights, h, bag)[:, 0]  # (B, E)
        return MILOutput(self.classifier(z), z, weights.new_zeros(weights.shape), weights, self.classifier(h))
