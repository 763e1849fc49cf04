"""DSMIL: the critical tile of each class decides which tiles are attended to."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mil.bag import Bag
from mil.pooling import KeptRows, RunningSoftmax, segment_softmax, tile_softmax

from .base import Contract, Head, MILOutput, tile_embedding


class DSMIL(Head):
    """Two streams whose logits are averaged: the largest tile logit, and a bag attended from the critical tile.

    Tile logits s = W h; critical tile m_c = argmax s_c; queries q = tanh(·), values v = V h;
    a_kc ∝ exp(q_k · q_{m_c} / √d), b_c = Σ a_kc v_k; the bag stream is linear on all b_c together.
    `branch_logits` are the two streams: max, bag. An empty bag counts as a tile with a zero embedding.

    Source: Li, Li, Eliceiri, "Dual-stream Multiple Instance Learning Network for Whole Slide Image Classification with
    Self-supervised Contrastive Learning", CVPR 2021, eq. 2 to 6.
    """

    name = "dsmil"
    contract = Contract(instance_logits=True, class_weights=True, streams=True)

    def __init__(
        self, in_dim: int, classes: int, *, hidden: int = 64, attention: int = 32, dropout: float = 0.25
    ) -> None:
        super().__init__(in_dim, classes, hidden=hidden, attention=attention, dropout=dropout)
        self.embed = tile_embedding(in_dim, hidden, dropout)
        self.instances = nn.Linear(hidden, classes)
        self.query = nn.Sequential(nn.Linear(hidden, attention), nn.ReLU(), nn.Linear(attention, attention), nn.Tanh())
        self.value = nn.Linear(hidden, hidden)
        self.classifier = nn.Linear(classes * hidden, classes)

    def pool(self, bag: Bag) -> MILOutput:
        """Find the critical tiles, attend from them, answer."""
        h = self.embedded(bag)  # (T, E)
        tiles, q, v = self.instances(h), self.query(h), self.value(h)  # (T, C), (T, Q), (T, E)
        parts = list(zip(*(bag.per_bag(x) for x in (tiles, q, v)), strict=True))
        # At no tile the largest logit is that of a zero embedding; `scores` is then empty.
        top = torch.stack([rows.amax(dim=0) if len(rows) else self.instances.bias for rows, _, _ in parts])
        scores = torch.cat([self._scores(mine, mine[rows.argmax(0)] if len(rows) else None) for rows, mine, _ in parts])
        weights = segment_softmax(scores, bag)  # (T, C)
        b = torch.stack([w.T @ part[2] for w, part in zip(bag.per_bag(weights), parts, strict=True)])  # (B, C, E)
        return self._answer(top, b.flatten(1), scores, weights, tiles)

    def pool_chunks(self, chunks: Sequence[Bag]) -> MILOutput:
        """Go through the tiles for the critical ones, and again to attend from them."""
        critical = self._critical(chunks)
        n, running = sum(chunk.n_tiles for chunk in chunks), RunningSoftmax()
        tiles, scores = KeptRows(n), KeptRows(n)
        for chunk in chunks:
            h = self.embedded(chunk)
            mine = self._scores(self.query(h), critical)
            running.add(mine, self.value(h))
            tiles.add(self.instances(h))
            scores.add(mine)
        seen, raw = tiles.result(), scores.result()
        top = seen.amax(dim=0) if len(seen) else self.instances.bias
        return self._answer(top[None], running.result().flatten()[None], raw, tile_softmax(raw), seen)

    def _critical(self, chunks: Sequence[Bag]) -> Tensor | None:
        """Queries of the critical tiles, (C, Q); None without tiles."""
        best, found = None, None
        for chunk in (chunk for chunk in chunks if chunk.n_tiles):
            h = self.embedded(chunk)
            values, rows = self.instances(h).max(dim=0)
            mine = self.query(h[rows])
            better = torch.ones_like(values, dtype=torch.bool) if best is None else values > best
            found = mine if found is None else torch.where(better[:, None], mine, found)
            best = values if best is None else torch.maximum(best, values)
        return found

    def _scores(self, q: Tensor, critical: Tensor | None) -> Tensor:
        """Likeness of queries (N, Q) to the critical ones (C, Q): (N, C)."""
        if critical is None:
            return q.new_zeros(0, self.classes)
        return q @ critical.T / math.sqrt(q.shape[1])

    def _answer(self, top: Tensor, b: Tensor, scores: Tensor, weights: Tensor, tiles: Tensor) -> MILOutput:
        """Average the streams' logits."""
        streams = torch.stack([top, self.classifier(b)], dim=1)  # (B, 2, C)
        return MILOutput(streams.mean(dim=1), b, scores, weights, tiles, streams)
