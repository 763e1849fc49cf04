"""ACMIL: several attention branches that must differ, and the loudest tiles silenced at random in training."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mil.bag import Bag
from mil.pooling import segment_softmax

from .attending import AttendingHead, GatedAttention, Tiles
from .base import Contract, MILOutput, tile_embedding


class ACMIL(AttendingHead):
    """K gated attentions; the slide is classified from their mean, each branch by itself for the loss.

    In training each branch loses a random `mask_share` of its `mask_top` strongest tiles, so that no few tiles carry
    it all. `branch_logits` (B, K, C) and the weights (T, K) go into `mil.losses.acmil`: every branch has to tell the
    class, and their attentions have to differ.

    Source: Zhang et al., "Attention-Challenging Multiple Instance Learning for Whole Slide Image Classification",
    ECCV 2024.
    """

    name = "acmil"
    contract = Contract(streams=True, contributions=True)

    def __init__(
        self,
        in_dim: int,
        classes: int,
        *,
        hidden: int = 64,
        attention: int = 32,
        branches: int = 5,
        mask_top: int = 10,
        mask_share: float = 0.6,
        dropout: float = 0.25,
    ) -> None:
        given = {"hidden": hidden, "attention": attention, "branches": branches, "dropout": dropout}
        super().__init__(in_dim, classes, **given, mask_top=mask_top, mask_share=mask_share)
        self.mask_top, self.mask_share = mask_top, mask_share
        self.embed = tile_embedding(in_dim, hidden, dropout)
        self.attention = GatedAttention(hidden, attention, branches)
        self.classifier = nn.Linear(hidden, classes)
        self.branch_classifiers = nn.ModuleList(nn.Linear(hidden, classes) for _ in range(branches))

    def tiles(self, bag: Bag) -> Tiles:
        """Embed and score."""
        h = self.embedded(bag)  # (T, E)
        return Tiles(h, self.attention(h))

    def weigh(self, scores: Tensor, bag: Bag) -> Tensor:
        """Softmax; in training with some of the strongest tiles left out."""
        if not self.training or self.mask_top == 0:
            return segment_softmax(scores, bag)
        silenced = torch.cat([self._silenced(rows) for rows in bag.per_bag(scores)])
        return segment_softmax(scores.masked_fill(silenced, -torch.inf), bag)

    def _silenced(self, scores: Tensor) -> Tensor:
        """Mask (N, K), True for a random share of the strongest tiles of each branch, never for all tiles."""
        top = min(self.mask_top, scores.shape[0])
        drawn = torch.rand(top, scores.shape[1], device=scores.device).argsort(dim=0)[: int(top * self.mask_share)]
        rows = scores.topk(top, dim=0).indices.gather(0, drawn)
        return torch.zeros_like(scores, dtype=torch.bool).scatter_(0, rows, value=True)

    def answer(self, z: Tensor, tiles: Tiles, weights: Tensor) -> MILOutput:
        """Classify the mean of the branches, and each branch."""
        branches = torch.stack([each(z[:, k]) for k, each in enumerate(self.branch_classifiers)], dim=1)
        mean = z.mean(dim=1)
        return MILOutput(self.classifier(mean), mean, tiles.scores, weights, branch_logits=branches)
