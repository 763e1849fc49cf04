"""A head that cannot break the standard assumption: a bag is positive exactly when one of its tiles is."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from .base import Contract
from .instance_max import InstanceMax


class StandardMIL(InstanceMax):
    """logits_0 = 0, logits_c = b_c + max over the tiles of softplus(f_c(h_k)) for the other classes.

    Proof that it keeps the assumption: logits_c is a maximum over the tiles, and over no tile it is b_c, less than with
    any; so a further tile raises it or leaves it, and P(class 0) = 1 / (1 + Σ exp logits_c) never rises. No tile can
    speak for class 0, hence none can be learned as "this makes the bag negative", which attention, mean pooling and
    `instance_max` with two outputs all do. Class 0 has to be the negative one; with more than two classes the same
    holds for class 0 against all others.

    Source: Raff and Holt, "Reproducibility in Multiple Instance Learning: A Case For Algorithmic Unit Tests",
    NeurIPS 2023; the form of mi-Net (Wang et al. 2018) with the negative side held at zero.
    """

    name = "standard_mil"
    contract = Contract(instance_logits=True, class_weights=True, streams=True, standard_mil=True)

    def __init__(self, in_dim: int, classes: int, *, hidden: int = 64, dropout: float = 0.25) -> None:
        super().__init__(in_dim, classes, hidden=hidden, dropout=dropout)
        self.classifier = nn.Linear(hidden, classes - 1)
        self.prior = nn.Parameter(torch.zeros(classes - 1))

    def tile_logits(self, h: Tensor) -> Tensor:
        """Logits of a bag with this tile alone: (T, E) → (T, C), the first column zero."""
        evidence = softplus(self.classifier(h))
        return torch.cat([evidence.new_zeros(evidence.shape[0], 1), self.prior + evidence], dim=1)

    def empty_logits(self) -> Tensor:
        """Nothing seen, shape (C,)."""
        return torch.cat([self.prior.new_zeros(1), self.prior])
