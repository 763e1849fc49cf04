"""What the heads share that average tile embeddings with softmax weights."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mil.bag import Bag
from mil.pooling import KeptRows, RunningSoftmax, segment_softmax, segment_weighted_sum, tile_softmax

from .base import CHUNK, Head, MILOutput


@dataclass(frozen=True, eq=False)
class Tiles:
    """What is known of each tile before the tiles of a bag meet.

    Attributes:
        values: shape (T, E), what is averaged.
        scores: shape (T, K), raw attention of K branches.
        logits: shape (T, C), or None.
    """

    values: Tensor
    scores: Tensor
    logits: Tensor | None = None


class AttendingHead(Head):
    """z_k = Σ softmax(score)_k value, then an answer from the z; exact in chunks, for the softmax can be kept running.

    A subclass gives `tiles`, `answer` and a linear `classifier` of the averages.
    """

    classifier: nn.Linear

    @abc.abstractmethod
    def tiles(self, bag: Bag) -> Tiles:
        """Values and scores of the tiles."""

    @abc.abstractmethod
    def answer(self, z: Tensor, tiles: Tiles, weights: Tensor) -> MILOutput:
        """Output from the averages z (B, K, E); `values` of the tiles are not there when they came in chunks."""

    def weigh(self, scores: Tensor, bag: Bag) -> Tensor:
        """Weights (T, K) of the scores (T, K)."""
        return segment_softmax(scores, bag)

    def pool(self, bag: Bag) -> MILOutput:
        """Weigh, average, answer."""
        tiles = self.tiles(bag)
        weights = self.weigh(tiles.scores, bag)  # (T, K)
        return self.answer(segment_weighted_sum(weights, tiles.values, bag), tiles, weights)

    def pool_chunks(self, chunks: Sequence[Bag]) -> MILOutput:
        """As `pool` for one bag; scores are kept, values are not."""
        n, running = sum(chunk.n_tiles for chunk in chunks), RunningSoftmax()
        scores, logits = KeptRows(n), KeptRows(n)
        for chunk in chunks:
            tiles = self.tiles(chunk)
            running.add(tiles.scores, tiles.values)
            scores.add(tiles.scores)
            if tiles.logits is not None:
                logits.add(tiles.logits)
        raw, z = scores.result(), running.result()[None]
        said = logits.result() if self.contract.instance_logits else None
        return self.answer(z, Tiles(z[0, :0], raw, said), tile_softmax(raw))

    def contributions(self, bag: Bag, target: int) -> tuple[Tensor, Tensor]:
        """Attention × what the linear classifier says to the tile's value; with one branch per class that branch's."""
        said, scores = KeptRows(bag.n_tiles), KeptRows(bag.n_tiles)
        for chunk in bag.chunks(CHUNK) if self.contract.streams else [bag]:
            tiles = self.tiles(chunk)
            said.add(tiles.values @ self.classifier.weight[target])
            scores.add(tiles.scores)
        weights = tile_softmax(scores.result())
        share = weights[:, target] if self.contract.class_weights else weights.mean(dim=1)
        return share * said.result(), self.classifier.bias[target]


class GatedAttention(nn.Module):
    """wᵀ(tanh(V h) ⊙ σ(U h)) for K branches: (T, E) → (T, K).

    Source: Ilse, Tomczak, Welling, ICML 2018, eq. 9.
    """

    def __init__(self, hidden: int, attention: int, branches: int = 1) -> None:
        super().__init__()
        self.v, self.u = nn.Linear(hidden, attention), nn.Linear(hidden, attention)
        self.w = nn.Linear(attention, branches)

    def forward(self, h: Tensor) -> Tensor:
        """Raw attention."""
        scores: Tensor = self.w(torch.tanh(self.v(h)) * torch.sigmoid(self.u(h)))
        return scores
