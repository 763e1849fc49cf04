"""Several yes-or-no questions at once; each may be unanswered for a slide."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from mil.errors import TrainingDataError
from mil.metrics import auc

from .base import Array, Task, mean_known


@dataclass(frozen=True)
class MultiLabel(Task):
    """One logistic output per label; targets are 0, 1 or NaN, (n, K). A slide's loss is the mean over its known labels.

    Attributes:
        labels: names.
        balanced: positives of a label weigh by negatives over positives of the training slides.
        positive_weights: the weights, once fitted.
    """

    labels: tuple[str, ...]
    balanced: bool = True
    positive_weights: tuple[float, ...] = ()
    kind = "multilabel"
    score_name = "mean_auc"

    def target_width(self) -> int:
        """One per label."""
        return len(self.labels)

    @property
    def outputs(self) -> int:
        """One per label."""
        return len(self.labels)

    @property
    def columns(self) -> tuple[str, ...]:
        """p_<label>."""
        return tuple(f"p_{name}" for name in self.labels)

    @property
    def output_names(self) -> tuple[str, ...]:
        """The labels."""
        return self.labels

    def fitted(self, target: Array) -> Self:
        """Fix the weights of positives; every label needs both answers."""
        if not np.isin(target[~np.isnan(target)], (0, 1)).all():
            raise TrainingDataError("multilabel targets are 0, 1 or unknown.")
        positive, negative = np.nansum(target == 1, axis=0), np.nansum(target == 0, axis=0)
        one_sided = [name for name, p, n in zip(self.labels, positive, negative, strict=True) if not p or not n]
        if one_sided:
            raise TrainingDataError(f"no training slide answers otherwise for {', '.join(one_sided)}: leave it out.")
        weights = negative / positive if self.balanced else np.ones(len(self.labels))
        return replace(self, positive_weights=tuple(float(w) for w in weights))

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Binary cross-entropy."""
        known = ~torch.isnan(target)
        weight = logits.new_tensor(self.positive_weights or [1.0] * len(self.labels))
        values = binary_cross_entropy_with_logits(
            logits, torch.nan_to_num(target).to(logits.dtype), pos_weight=weight, reduction="none"
        )
        return torch.where(known, values, torch.zeros_like(values)).sum(dim=1) / known.sum(dim=1).clamp(min=1)

    def answer(self, logits: Array) -> Array:
        """Probability of each label."""
        return 1 / (1 + np.exp(-np.clip(logits, -500, 500)))

    def score(self, target: Array, answer: Array) -> float | None:
        """Mean AUC over the labels that have both answers."""
        values = []
        for y, p in zip(target.T, answer.T, strict=True):
            known = ~np.isnan(y)
            values.append(auc(y[known] == 1, p[known]) if 0 < np.nansum(y) < known.sum() else None)
        return mean_known(values)
