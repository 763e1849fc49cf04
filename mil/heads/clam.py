"""CLAM: gated attention, one branch or one per class, and a classifier of tiles that its loss trains beside it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mil.bag import Bag

from .attending import AttendingHead, GatedAttention, Tiles
from .base import Contract, MILOutput, tile_embedding


class ClamSB(AttendingHead):
    """Gated attention as in `GatedABMIL`; `instance_logits` say per tile and class whether it is evidence for it.

    The instance classifiers (one against the rest) do not enter the prediction: `mil.losses.clam` trains them on the
    tiles with the highest and lowest attention, which shapes the embedding. The paper has two outputs per class, and
    only their difference matters: here it is one.

    Source: Lu et al., "Data-efficient and weakly supervised computational pathology on whole-slide images", Nature
    Biomedical Engineering 2021, doi:10.1038/s41551-020-00682-w, with a single branch.
    """

    name = "clam_sb"
    contract = Contract(instance_logits=True, streams=True, contributions=True)

    def __init__(
        self, in_dim: int, classes: int, *, hidden: int = 64, attention: int = 32, dropout: float = 0.25
    ) -> None:
        super().__init__(in_dim, classes, hidden=hidden, attention=attention, dropout=dropout)
        self.embed = tile_embedding(in_dim, hidden, dropout)
        self.attention = GatedAttention(hidden, attention, self.branches)
        self.classifier = nn.Linear(hidden, classes)
        self.instances = nn.Linear(hidden, classes)

    @property
    def branches(self) -> int:
        """Number of attention branches."""
        return 1

    def tiles(self, bag: Bag) -> Tiles:
        """Embed, score, classify the tiles."""
        h = self.embedded(bag)  # (T, E)
        return Tiles(h, self.attention(h), self.instances(h))

    def answer(self, z: Tensor, tiles: Tiles, weights: Tensor) -> MILOutput:
        """Classify the one average."""
        return MILOutput(self.classifier(z[:, 0]), z[:, 0], tiles.scores, weights, tiles.logits)


class ClamMB(ClamSB):
    """As `ClamSB` with one attention branch per class: logits_c = w_c · z_c + b_c.

    The embedding of the bag is that of the branches, one after another.
    """

    name = "clam_mb"
    contract = Contract(instance_logits=True, class_weights=True, streams=True, contributions=True)

    @property
    def branches(self) -> int:
        """One per class."""
        return self.classes

    def answer(self, z: Tensor, tiles: Tiles, weights: Tensor) -> MILOutput:
        """Classify each average with the weights of its class."""
        logits = torch.einsum("bce,ce->bc", z, self.classifier.weight) + self.classifier.bias
        return MILOutput(logits, z.flatten(1), tiles.scores, weights, tiles.logits)
