"""Instance max: every tile is classified, and the strongest tile of each class speaks for the bag."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mil.bag import Bag
from mil.pooling import KeptRows

from .base import Contract, Head, MILOutput, tile_embedding
from .max import top_share


class InstanceMax(Head):
    """logits_c = max over the tiles of l_c(h_k), with l linear on the embedding.

    Only one tile per class and bag has a gradient: some seeds learn slowly. Warm-start, or take several seeds.
    The embedding of the bag is that of the strongest tile of each class, one after another. An empty bag counts as
    one tile whose embedding is zero.

    Source: mi-Net, Wang et al., "Revisiting multiple instance neural networks", Pattern Recognition 2018,
    doi:10.1016/j.patcog.2017.08.026.
    """

    name = "instance_max"
    contract = Contract(instance_logits=True, class_weights=True, streams=True)

    def __init__(self, in_dim: int, classes: int, *, hidden: int = 64, dropout: float = 0.25) -> None:
        super().__init__(in_dim, classes, hidden=hidden, dropout=dropout)
        self.embed = tile_embedding(in_dim, hidden, dropout)
        self.classifier = nn.Linear(hidden, classes)

    def tile_logits(self, h: Tensor) -> Tensor:
        """Class logits of tile embeddings: (T, E) → (T, C)."""
        logits: Tensor = self.classifier(h)
        return logits

    def empty_logits(self) -> Tensor:
        """Class logits of a bag without tiles, shape (C,)."""
        return self.classifier.bias

    def pool(self, bag: Bag) -> MILOutput:
        """Classify the tiles, take the largest logit of each class."""
        h = self.embedded(bag)  # (T, E)
        tiles = self.tile_logits(h)  # (T, C)
        rows = list(zip(bag.per_bag(tiles), bag.per_bag(h), strict=True))
        logits = torch.stack([values.amax(dim=0) if len(values) else self.empty_logits() for values, _ in rows])
        z = torch.stack([_strongest(values, embedded) for values, embedded in rows])  # (B, C * E)
        weights = torch.cat([top_share(values.detach()) for values, _ in rows])
        return MILOutput(logits, z, tiles, weights, tiles)

    def pool_chunks(self, chunks: Sequence[Bag]) -> MILOutput:
        """Keep all tile logits (T, C), and the embedding of the strongest tiles only."""
        best: Tensor | None = None
        z = self.first_linear.weight.new_zeros(self.classes, self.first_linear.out_features)
        seen = KeptRows(sum(chunk.n_tiles for chunk in chunks))
        for chunk in chunks:
            h = self.embedded(chunk)
            tiles = self.tile_logits(h)
            seen.add(tiles)
            if len(tiles):
                top = tiles.amax(dim=0)
                better = torch.ones_like(top, dtype=torch.bool) if best is None else top > best
                z = torch.where(better[:, None], h[tiles.argmax(dim=0)], z)
                best = top if best is None else torch.maximum(best, top)
        together = seen.result()
        logits = self.empty_logits() if best is None else best
        return MILOutput(logits[None], z.flatten()[None], together, top_share(together), together)


def _strongest(values: Tensor, h: Tensor) -> Tensor:
    """Embeddings (N, E) of the tile with the largest value (N, C) of each class, flat (C * E,)."""
    if not values.shape[0]:
        return h.new_zeros(values.shape[1] * h.shape[1])
    return h[values.argmax(dim=0)].flatten()
