"""ILRA-MIL: tiles speak to one another through a few latent vectors, so that their interaction has a low rank."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import relu, silu

from mil.bag import Bag
from mil.pooling import segment_softmax

from .base import Contract, Head, MILOutput, tile_embedding
from .transformer import Attention


class ILRA(Head):
    """Iterated low-rank attention, then non-local pooling by one learned query.

    Each layer: latents (rank r) attend to the tiles, the tiles attend to what the latents found; both are gated
    attention blocks. Time and memory are linear in the tiles. The paper's contrastive low-rank loss, which is meant
    for training the encoder, is not part of the head.

    Source: Xiang and Zhang, "Exploring Low-Rank Property in Multiple Instance Learning for Whole Slide Image
    Classification", ICLR 2023, §3.3.
    """

    name = "ilra"
    contract = Contract()

    def __init__(
        self,
        in_dim: int,
        classes: int,
        *,
        hidden: int = 64,
        heads: int = 4,
        rank: int = 16,
        layers: int = 2,
        dropout: float = 0.25,
    ) -> None:
        super().__init__(in_dim, classes, hidden=hidden, heads=heads, rank=rank, layers=layers, dropout=dropout)
        self.embed = tile_embedding(in_dim, hidden, dropout)
        self.latents = nn.ParameterList(torch.randn(rank, hidden) * hidden**-0.5 for _ in range(layers))
        self.down = nn.ModuleList(GatedBlock(hidden, heads) for _ in range(layers))
        self.up = nn.ModuleList(GatedBlock(hidden, heads) for _ in range(layers))
        self.query = nn.Parameter(torch.randn(1, hidden) * hidden**-0.5)
        self.read, self.norm = Attention(hidden, heads), nn.LayerNorm(hidden)
        self.classifier = nn.Linear(hidden, classes)

    def pool(self, bag: Bag) -> MILOutput:
        """Bag by bag: the layers, then the query."""
        h = self.embedded(bag)  # (T, E)
        z, scores = [], []
        for rows in bag.per_bag(h):
            x = rows
            for latents, down, up in zip(self.latents, self.down, self.up, strict=True):
                x = up(x, down(latents, x))
            z.append(self.norm(self.query + self.read(self.query, x)))
            scores.append(self.read.scores(self.query, x))
        embedding, raw = torch.cat(z), torch.cat(scores)
        return MILOutput(self.classifier(embedding), embedding, raw, segment_softmax(raw, bag))


class GatedBlock(nn.Module):
    """Attention from x to y, gated by x, and a small network; each beside a shortcut and before a layer norm."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.attention = Attention(dim, heads)
        self.gate, self.mlp = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Rows (m, E) look at rows (n, E): (m, E)."""
        o = self.norm1(x + self.attention(x, y) * silu(self.gate(x)))
        out: Tensor = self.norm2(o + relu(self.mlp(o)))
        return out
