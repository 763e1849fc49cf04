"""An adversary learns to tell the site from the embedding; the head learns that it cannot."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from .base import Adaptation

HIDDEN = 32
NOISE = 2.0  # standard deviations of the embedding


class Reverse(torch.autograd.Function):
    """The same values; the gradient turned round, times a number."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, strength: float) -> Tensor:
        """Pass on."""
        ctx.strength = strength
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """Turn round."""
        return -ctx.strength * gradients[0], None


class Reversal(Adaptation):
    """Cross-entropy of an adversary (one hidden layer) that reads the embedding through a reversed gradient.

    The strength of the reversal rises with the training as in the paper: 2 / (1 + exp(-10 p)) - 1. Every site counts
    the same, however many slides it has. The adversary sees the embedding through noise: one that knows every slide for
    certain has a loss without slope, and the head would learn nothing of it (on few slides that is the rule).

    Source: Ganin et al., "Domain-Adversarial Training of Neural Networks", JMLR 17, 2016, eq. 13 to 15;
    Arjovsky and Bottou, "Towards Principled Methods for Training Generative Adversarial Networks", ICLR 2017 (noise).
    """

    kind = "reversal"

    def build(self, width: int) -> None:
        """One adversary per confounder."""
        self.adversaries = nn.ModuleList(
            nn.Sequential(nn.Linear(width, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, count)) for count in self.levels
        )

    def penalty(self, z: Tensor) -> Tensor:
        """Loss of the adversaries."""
        strength = 2 / (1 + math.exp(-10 * self.progress)) - 1
        reversed_: Tensor = Reverse.apply(self.residual(z), strength)
        reversed_ = reversed_ + NOISE * torch.randn_like(reversed_)
        return torch.stack(self._losses(reversed_)).mean()

    def amount(self, z: Tensor) -> float:
        """By how many nats the adversaries do better than by guessing, on average."""
        with torch.no_grad():
            losses = self._losses(self.residual(z))
        gains = [math.log(count) - float(loss) for count, loss in zip(self.levels, losses, strict=True)]
        return max(sum(gains) / len(gains), 0.0)

    def _losses(self, z: Tensor) -> list[Tensor]:
        losses = []
        for column, count, adversary in zip(self.codes.T, self.levels, self.adversaries, strict=True):
            known = column >= 0
            size = torch.bincount(column[known], minlength=count).clamp(min=1)
            losses.append(cross_entropy(adversary(z[known]), column[known], weight=1.0 / size.to(z.dtype)))
        return losses
