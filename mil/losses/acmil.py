"""ACMIL: every branch has to tell the class, and the branches have to look at different tiles."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import normalize

from mil.bag import Bag
from mil.heads import MILOutput


def acmil(out: MILOutput, bag: Bag, target: Tensor | None, slide_loss: Callable[[Tensor], Tensor]) -> Tensor:
    """Loss of the slide + mean loss of the branches + likeness of their attention: (B,).

    Source: Zhang et al., ECCV 2024, eq. 5 to 8.
    """
    del target
    assert out.branch_logits is not None
    branches = torch.stack([slide_loss(logits) for logits in out.branch_logits.unbind(dim=1)])
    alike = torch.stack([likeness(weights) for weights in bag.per_bag(out.weights)])
    return slide_loss(out.logits) + branches.mean(dim=0) + alike


def likeness(weights: Tensor) -> Tensor:
    """Mean cosine between the attention of every two branches of one bag (N, K); 1 where they are the same."""
    branches = weights.shape[1]
    if branches < 2 or not weights.shape[0]:
        return weights.sum() * 0
    unit = normalize(weights, dim=0)
    cosines = unit.T @ unit  # (K, K), ones on the diagonal
    return (cosines.sum() - cosines.diagonal().sum()) / (branches * (branches - 1))
