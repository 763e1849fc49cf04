"""A graph head: tiles pass messages to their nearest neighbors on the slide, then attention over the slide."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mil.bag import Bag
from mil.cells import nearest

from .attending import AttendingHead, GatedAttention, Tiles
from .base import Contract, MILOutput, tile_embedding


class GraphHead(AttendingHead):
    """k-NN graph over the coordinates, residual graph convolutions with softmax aggregation, gated attention.

    Message m_u = ReLU(h_u) + 1e-7; per feature, Σ_u softmax_u(t m_u) m_u over the neighbors u of a tile, t learned;
    h ← h + ReLU(W (h + sum)). A tile without neighbors hears zero. Tiles at the very same place count as different
    neighbors, so their order and number matter: coordinates should be distinct, as those of a tile grid are.

    Source: Chen et al., "Whole Slide Images are 2D Point Clouds" (Patch-GCN), MICCAI 2021; Li et al., "DeeperGCN",
    arXiv 2006.07739, eq. 3.
    """

    name = "graph"
    contract = Contract(duplicate_invariant=False, needs_coords=True, contributions=True)

    def __init__(
        self,
        in_dim: int,
        classes: int,
        *,
        hidden: int = 64,
        attention: int = 32,
        neighbors: int = 8,
        layers: int = 2,
        dropout: float = 0.25,
    ) -> None:
        given = {"hidden": hidden, "attention": attention, "neighbors": neighbors, "layers": layers}
        super().__init__(in_dim, classes, **given, dropout=dropout)
        self.neighbors = neighbors
        self.embed = tile_embedding(in_dim, hidden, dropout)
        self.temperature = nn.Parameter(torch.ones(layers))
        self.update = nn.ModuleList(nn.Linear(hidden, hidden) for _ in range(layers))
        self.attention = GatedAttention(hidden, attention)
        self.classifier = nn.Linear(hidden, classes)

    def tiles(self, bag: Bag) -> Tiles:
        """Embed, pass messages, score."""
        around = nearest(bag, self.neighbors)  # (T, k)
        h = self.embedded(bag)  # (T, E)
        for t, update in zip(self.temperature, self.update, strict=True):
            h = h + torch.relu(update(h + aggregate(torch.relu(h) + 1e-7, around, t)))
        return Tiles(h, self.attention(h))

    def answer(self, z: Tensor, tiles: Tiles, weights: Tensor) -> MILOutput:
        """Classify."""
        return MILOutput(self.classifier(z[:, 0]), z[:, 0], tiles.scores, weights)


def aggregate(messages: Tensor, around: Tensor, temperature: Tensor) -> Tensor:
    """Softmax-weighted sum of the neighbors' messages per feature: (T, E), (T, k) with -1 for none → (T, E).

    The neighbors come one after another and the sums are kept running: no (T, k, E) is ever made.
    """
    columns = [(column.clamp(min=0), (column >= 0)[:, None]) for column in around.T]
    pull = temperature * messages
    top = torch.full_like(messages, torch.finfo(messages.dtype).min)
    for column, there in columns:
        top = torch.where(there, torch.maximum(top, pull.detach()[column]), top)
    total, weight = torch.zeros_like(messages), torch.zeros_like(messages)
    for column, there in columns:
        share = torch.exp((pull[column] - top).masked_fill(~there, -torch.inf))
        total, weight = total + share * messages[column], weight + share
    return total / weight.clamp(min=torch.finfo(weight.dtype).tiny)
