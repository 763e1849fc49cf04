"""Several losses, one step: how much each weighs, and what happens where their gradients point against one another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn


class UncertaintyWeights(nn.Module):
    """Σ ½ e^(-s) L + ½ s with a learned s per task: at the optimum s = log L, so large losses weigh less.

    Source: Kendall, Gal, Cipolla, "Multi-Task Learning Using Uncertainty to Weigh Losses for Scene Geometry and
    Semantics", CVPR 2018, eq. 7, with s = log σ².
    """

    def __init__(self, tasks: int) -> None:
        super().__init__()
        self.s = nn.Parameter(torch.zeros(tasks))

    def forward(self, losses: Sequence[Tensor]) -> list[Tensor]:
        """Weighted losses; twice the paper's, so that s = 0 leaves the losses as they are."""
        return [torch.exp(-s) * loss + s for s, loss in zip(self.s, losses, strict=True)]


def pcgrad(gradients: Sequence[Tensor], order: Sequence[Sequence[int]]) -> Tensor:
    """Sum of the tasks' gradients, each freed of what points against another's.

    Every gradient is projected, one after another, on the plane across each of the others' *original* gradients that
    it points against.

    Args:
        gradients: one per task, over all weights together, shape (P,).
        order: in which order each meets the others, drawn at random by the caller.

    Source: Yu et al., "Gradient Surgery for Multi-Task Learning", NeurIPS 2020, algorithm 1.
    """
    freed = []
    for i, gradient in enumerate(gradients):
        mine = gradient.clone()
        for j in (j for j in order[i] if j != i):
            along = torch.dot(mine, gradients[j])
            if along < 0:
                mine -= along / gradients[j].square().sum().clamp(min=1e-30) * gradients[j]
        freed.append(mine)
    return torch.stack(freed).sum(dim=0)


def conflict(gradients: Sequence[Tensor]) -> tuple[float, float]:
    """Mean cosine between the tasks' gradients, and the share of pairs that point against one another."""
    cosines = [float(torch.cosine_similarity(a, b, dim=0)) for a, b in combinations(gradients, 2)]
    return sum(cosines) / len(cosines), sum(cosine < 0 for cosine in cosines) / len(cosines)


def conflict_of(training: Mapping[str, Any]) -> dict[str, Any] | None:
    """Mean over a training's epochs: `share` of conflicts and `cosine`, and the `surgery`; None of one task."""
    told = [epoch for epoch in training["history"] if epoch.get("conflict") is not None]
    if not told:
        return None
    share, cosine = (sum(epoch[key] for epoch in told) / len(told) for key in ("conflict", "cosine"))
    return {"share": share, "cosine": cosine, "surgery": training["settings"].get("surgery", "none")}


def spoken_conflict(found: Mapping[str, Any]) -> str:
    """Say it in a line."""
    what = "these were projected (PCGrad)" if found["surgery"] == "pcgrad" else "nothing was done about it"
    return (
        f"The gradients of the tasks pointed against one another in {found['share']:.0%} of the pairs (mean cosine "
        f"{found['cosine']:.2f}); {what}."
    )
