"""Attention-based pooling, plain and gated."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mil.bag import Bag
from mil.fused import attend

from .attending import AttendingHead, Tiles
from .base import Contract, MILOutput, tile_embedding


class ABMIL(AttendingHead):
    """Weighted average of the tile embeddings; a small network gives the weights.

    a_k ∝ exp(wᵀ tanh(V h_k)), z = Σ a_k h_k, logits = C z + c, softmax within each bag.

    Source: Ilse, Tomczak, Welling, "Attention-based Deep Multiple Instance Learning", ICML 2018, eq. 7 and 8.
    """

    name = "abmil"
    contract = Contract(streams=True, contributions=True)

    def __init__(
        self, in_dim: int, classes: int, *, hidden: int = 64, attention: int = 32, dropout: float = 0.25
    ) -> None:
        super().__init__(in_dim, classes, hidden=hidden, attention=attention, dropout=dropout)
        self.embed = tile_embedding(in_dim, hidden, dropout)
        self.attention_v = nn.Linear(hidden, attention)
        self.attention_w = nn.Linear(attention, 1)
        self.classifier = nn.Linear(hidden, classes)

    def score(self, h: Tensor) -> Tensor:
        """Raw attention of tile embeddings: (T, E) → (T, 1)."""
        raw: Tensor = self.attention_w(torch.tanh(self.attention_v(h)))
        return raw

    def tiles(self, bag: Bag) -> Tiles:
        """Embed and score."""
        h = self.embedded(bag)  # (T, E)
        return Tiles(h, self.score(h))

    def pool(self, bag: Bag) -> MILOutput:
        """As every attending head; in training with bfloat16 in few passes (`mil.fused`)."""
        if not (self.fused and torch.is_grad_enabled() and bag.features.dtype == torch.bfloat16):
            return super().pool(bag)
        gate, w = getattr(self, "attention_u", None), self.attention_w
        share = self.options["dropout"] if self.training else 0.0
        z, scores = attend(bag, self.first_linear, self.attention_v, gate, w.weight[0], dropout=share)
        scores = scores + w.bias
        return self.answer(z[:, None], Tiles(z[:0], scores), self.weigh(scores, bag))

    def answer(self, z: Tensor, tiles: Tiles, weights: Tensor) -> MILOutput:
        """Classify."""
        return MILOutput(self.classifier(z[:, 0]), z[:, 0], tiles.scores, weights)


class GatedABMIL(ABMIL):
    """As `ABMIL` with a learned gate: a_k ∝ exp(wᵀ(tanh(V h_k) ⊙ σ(U h_k))).

    Source: Ilse, Tomczak, Welling, ICML 2018, eq. 9.
    """

    name = "gated_abmil"

    def __init__(
        self, in_dim: int, classes: int, *, hidden: int = 64, attention: int = 32, dropout: float = 0.25
    ) -> None:
        super().__init__(in_dim, classes, hidden=hidden, attention=attention, dropout=dropout)
        self.attention_u = nn.Linear(hidden, attention)

    def score(self, h: Tensor) -> Tensor:
        """Raw gated attention of tile embeddings: (T, E) → (T, 1)."""
        gated = torch.tanh(self.attention_v(h)) * torch.sigmoid(self.attention_u(h))
        raw: Tensor = self.attention_w(gated)
        return raw
