"""Mean pooling: every tile counts the same."""

from __future__ import annotations

from torch import Tensor, nn

from mil.bag import Bag

from .attending import AttendingHead, Tiles
from .base import Contract, MILOutput, tile_embedding


class MeanHead(AttendingHead):
    """Average of the tile embeddings, then a linear classifier.

    The classifier is linear, so the class logits of the tiles average to the logits of the bag: `instance_logits`
    are exact contributions.

    Source: MI-Net with mean pooling, Wang et al., Pattern Recognition 2018, doi:10.1016/j.patcog.2017.08.026.
    """

    name = "mean"
    contract = Contract(instance_logits=True, streams=True, attention=False, contributions=True)

    def __init__(self, in_dim: int, classes: int, *, hidden: int = 64, dropout: float = 0.25) -> None:
        super().__init__(in_dim, classes, hidden=hidden, dropout=dropout)
        self.embed = tile_embedding(in_dim, hidden, dropout)
        self.classifier = nn.Linear(hidden, classes)

    def tiles(self, bag: Bag) -> Tiles:
        """Embed; the raw scores are all zero, since no tile is preferred."""
        h = self.embedded(bag)  # (T, E)
        return Tiles(h, h.new_zeros((h.shape[0], 1)), self.classifier(h))

    def answer(self, z: Tensor, tiles: Tiles, weights: Tensor) -> MILOutput:
        """Classify."""
        return MILOutput(self.classifier(z[:, 0]), z[:, 0], tiles.scores, weights, tiles.logits)
