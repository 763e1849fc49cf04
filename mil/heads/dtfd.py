"""DTFD-MIL: a slide is dealt into pseudo-bags, attended to within each, and then over them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mil.bag import Bag
from mil.pooling import KeptRows, RunningSoftmax, tile_softmax

from .attending import GatedAttention
from .base import CHUNK, Contract, Head, MILOutput, tile_embedding


class DTFD(Head):
    """Two tiers of gated attention: over the tiles of each of G pseudo-bags, and over the pseudo-bags (AFS).

    In training the tiles are dealt at random; in evaluation in turn, as they are listed, so that the same slide always
    has the same answer and neighbors go to different pseudo-bags. The order of the tiles therefore matters a little.
    A tile's weight is its weight in its pseudo-bag times that of the pseudo-bag. `branch_logits` (B, G, C) are the
    pseudo-bags' own; with fewer than G tiles some of them are repeated.

    Source: Zhang et al., "DTFD-MIL: Double-Tier Feature Distillation Multiple Instance Learning for Histopathology
    Whole Slide Image Classification", CVPR 2022; of its distillations the aggregated feature (AFS).
    """

    name = "dtfd"
    contract = Contract(permutation_invariant=False, duplicate_invariant=False, streams=True, contributions=True)

    def __init__(
        self,
        in_dim: int,
        classes: int,
        *,
        hidden: int = 64,
        attention: int = 32,
        groups: int = 4,
        dropout: float = 0.25,
    ) -> None:
        super().__init__(in_dim, classes, hidden=hidden, attention=attention, groups=groups, dropout=dropout)
        self.groups = groups
        self.embed = tile_embedding(in_dim, hidden, dropout)
        self.attention, self.attention2 = GatedAttention(hidden, attention), GatedAttention(hidden, attention)
        self.group_classifier, self.classifier = nn.Linear(hidden, classes), nn.Linear(hidden, classes)

    def pool(self, bag: Bag) -> MILOutput:
        """Both tiers, bag by bag."""
        h = self.embedded(bag)  # (T, E)
        scores = self.attention(h)  # (T, 1)
        answers = []
        for mine, rows in zip(bag.per_bag(scores), bag.per_bag(h), strict=True):
            n = rows.shape[0]
            dealt = self._deal(mine, torch.randperm(n, device=h.device) if self.training else None, n)
            answers.append(self._answer(tile_softmax(dealt).T @ rows, dealt, mine))
        logits, z, branches = (torch.cat([getattr(a, name) for a in answers]) for name in _PER_BAG)
        return MILOutput(logits, z, scores, torch.cat([a.weights for a in answers]), branch_logits=branches)

    def pool_chunks(self, chunks: Sequence[Bag]) -> MILOutput:
        """As `pool` for one bag in evaluation; scores are kept, embeddings are not."""
        n, start, running = sum(chunk.n_tiles for chunk in chunks), 0, RunningSoftmax()
        seen = KeptRows(n)
        for chunk in chunks:
            h = self.embedded(chunk)
            mine = self.attention(h)
            places = torch.arange(start, start + chunk.n_tiles, device=h.device)
            running.add(self._deal(mine, places, n), h)
            seen.add(mine)
            start += chunk.n_tiles
        scores = seen.result()
        return self._answer(running.result(), self._deal(scores, None, n), scores)

    def contributions(self, bag: Bag, target: int) -> tuple[Tensor, Tensor]:
        """Weight of both tiers × what the classifier says to the tile's embedding."""
        said = KeptRows(bag.n_tiles)
        for chunk in bag.chunks(CHUNK):
            said.add(self.embedded(chunk) @ self.classifier.weight[target])
        weights = self.pool_chunks(bag.chunks(CHUNK)).weights[:, 0]
        return weights * said.result(), self.classifier.bias[target]

    def _deal(self, scores: Tensor, places: Tensor | None, n: int) -> Tensor:
        """Scores (m, 1) → (m, G'), -inf but in the tile's pseudo-bag; G' = G or less, so that none stays empty."""
        groups = min(self.groups, max(n, 1))
        places = torch.arange(scores.shape[0], device=scores.device) if places is None else places
        elsewhere = places[:, None] % groups != torch.arange(groups, device=scores.device)
        return scores.expand(-1, groups).masked_fill(elsewhere, -torch.inf)

    def _answer(self, pseudo: Tensor, dealt: Tensor, scores: Tensor) -> MILOutput:
        """Second tier over the pseudo-bags (G', E) of one bag."""
        share = tile_softmax(self.attention2(pseudo))  # (G', 1)
        z = share.T @ pseudo  # (1, E)
        weights = tile_softmax(dealt) @ share  # (N, 1)
        own = self.group_classifier(pseudo)[torch.arange(self.groups, device=z.device) % len(pseudo)]
        return MILOutput(self.classifier(z), z, scores, weights, branch_logits=own[None])


_PER_BAG = ("logits", "embedding", "branch_logits")
