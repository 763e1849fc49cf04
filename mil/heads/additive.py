"""Additive MIL: the logits of the bag are a plain sum of what each tile contributes."""

from __future__ import annotations

from torch import Tensor, nn

from mil.bag import Bag

from .attending import AttendingHead, GatedAttention, Tiles
from .base import Contract, MILOutput, tile_embedding


class AdditiveMIL(AttendingHead):
    """logits = Σ g(a_k h_k) + c, with a_k gated attention and g a small network.

    g is linear, ReLU, linear without bias, hence g(a h) = a g(h) for a ≥ 0: the paper's sum, but independent of the
    number of tiles (the biases of the paper's code are added once per tile) and exact in chunks. `instance_logits` are
    a_k (g(h_k) + c), and sum to the logits of the bag exactly.

    Source: Javed et al., "Additive MIL: Intrinsically Interpretable Multiple Instance Learning for Pathology",
    NeurIPS 2022, eq. 4 and 5.
    """

    name = "additive"
    contract = Contract(instance_logits=True, streams=True, contributions=True)

    def __init__(
        self, in_dim: int, classes: int, *, hidden: int = 64, attention: int = 32, dropout: float = 0.25
    ) -> None:
        super().__init__(in_dim, classes, hidden=hidden, attention=attention, dropout=dropout)
        self.embed = tile_embedding(in_dim, hidden, dropout)
        self.attention = GatedAttention(hidden, attention)
        self.evidence = nn.Sequential(nn.Linear(hidden, hidden, bias=False), nn.ReLU())
        self.classifier = nn.Linear(hidden, classes)

    def tiles(self, bag: Bag) -> Tiles:
        """Embed, score, and let each tile speak."""
        h = self.embedded(bag)  # (T, E)
        u = self.evidence(h)  # (T, E)
        return Tiles(u, self.attention(h), self.classifier(u))

    def answer(self, z: Tensor, tiles: Tiles, weights: Tensor) -> MILOutput:
        """Sum up."""
        assert tiles.logits is not None
        return MILOutput(self.classifier(z[:, 0]), z[:, 0], tiles.scores, weights, weights * tiles.logits)
