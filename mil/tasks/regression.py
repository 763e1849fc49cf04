"""A number per slide."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import huber_loss

from mil.errors import TrainingDataError

from .base import Array, Task, masked


@dataclass(frozen=True)
class Regression(Task):
    """The output is the target less its training mean, in training standard deviations; Huber loss in that unit.

    Attributes:
        name: of the number.
        delta: deviations beyond so many standard deviations cost linearly; a large one gives half the squared error.
        mean: of the training targets, once fitted.
        spread: their standard deviation.
    """

    name: str = "value"
    delta: float = 1.0
    mean: float = 0.0
    spread: float = 1.0
    kind = "regression"
    score_name = "r2"

    @property
    def outputs(self) -> int:
        """One."""
        return 1

    @property
    def columns(self) -> tuple[str, ...]:
        """The number's name."""
        return (self.name,)

    def fitted(self, target: Array) -> Self:
        """Take mean and spread."""
        known = target[~np.isnan(target)]
        if known.size < 2 or not known.std() > 0:
            raise TrainingDataError(f"all training slides have the same {self.name}: there is nothing to learn.")
        return replace(self, mean=float(known.mean()), spread=float(known.std()))

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Huber loss."""
        known = ~torch.isnan(target[:, 0])
        wanted = ((torch.nan_to_num(target[:, 0]) - self.mean) / self.spread).to(logits.dtype)
        return masked(huber_loss(logits[:, 0], wanted, reduction="none", delta=self.delta), known)

    def answer(self, logits: Array) -> Array:
        """In the unit of the target."""
        return logits * self.spread + self.mean

    def score(self, target: Array, answer: Array) -> float | None:
        """Share of the variance that is explained; below 0 for worse than the mean."""
        known = ~np.isnan(target[:, 0])
        y, found = target[known, 0], answer[known, 0]
        total = float(((y - y.mean()) ** 2).sum()) if y.size else 0.0
        return 1 - float(((y - found) ** 2).sum()) / total if total else None
