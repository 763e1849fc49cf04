"""What an ensemble says, as the target of a small head."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import log_softmax

from .base import Array, Task
from .classification import Classification


@dataclass(frozen=True)
class Distillation(Task):
    """Targets are the label (NaN where there is none) and the ensemble's softened probabilities, (n, 1 + C).

    Attributes:
        base: the classification that the head is for.
        temperature: T, by which the logits of both sides are divided.
        share: of the ensemble in the loss; the rest is the label's.

    Source: Hinton, Vinyals, Dean 2015, arXiv 1503.02531, §2.
    """

    base: Classification
    temperature: float = 2.0
    share: float = 0.7
    kind = "distillation"
    score_name = "auc"

    def target_width(self) -> int:
        """The label, and what the teachers say of each class."""
        return 1 + self.base.outputs

    @property
    def outputs(self) -> int:
        """Those of the classification."""
        return self.base.outputs

    @property
    def columns(self) -> tuple[str, ...]:
        """Those of the classification."""
        return self.base.columns

    def encode(self, labels: NDArray[Any]) -> Array:
        """Check the labels among them."""
        target = super().encode(labels)
        self.base.encode(target[:, 0])
        return target

    def fitted(self, target: Array) -> Self:
        """Fit the classification."""
        return replace(self, base=self.base.fitted(target[:, :1]))

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Both parts."""
        taught = distillation_loss(logits, target[:, 1:].to(logits.dtype), self.temperature)
        return self.share * taught + (1 - self.share) * self.base.loss(logits, target[:, :1])

    def answer(self, logits: Array) -> Array:
        """Probabilities of the classes."""
        return self.base.answer(logits)

    def score(self, target: Array, answer: Array) -> float | None:
        """Against the labels."""
        return self.base.score(target[:, :1], answer)


def distillation_loss(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T² KL(teacher ‖ student) of softened probabilities, (B,); the factor keeps the gradient's size whatever T.

    Args:
        logits: of the student, (B, C).
        teacher: probabilities of the ensemble, already softened by the same temperature, (B, C).
        temperature: T.
    """
    student = log_softmax(logits / temperature, dim=1)
    own = torch.where(teacher > 0, teacher * torch.log(teacher.clamp(min=1e-30)), torch.zeros_like(teacher))
    return temperature**2 * (own - teacher * student).sum(dim=1)


def softened(logits: Array, temperature: float) -> Array:
    """Mean over the members of softmax(logits / T): (M, n, C) → (n, C)."""
    e = np.exp((logits - logits.max(axis=-1, keepdims=True)) / temperature)
    mean: Array = (e / e.sum(axis=-1, keepdims=True)).mean(axis=0)
    return mean
