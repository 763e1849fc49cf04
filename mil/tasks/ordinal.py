"""Classes in an order, e.g. grades: answers that are one step off cost less than those that are two."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from mil.errors import TrainingDataError

from .base import Array, Task


@dataclass(frozen=True)
class Ordinal(Task):
    """Logit k says whether the class lies above k, given that it is not below: P(y > k | y ≥ k) = σ(l_k).

    The product of these chances can only fall with k, so the probabilities of the classes are never negative.

    Attributes:
        classes: names, from the lowest to the highest.

    Source: Shi, Cao, Raschka, "Deep Neural Networks for Rank-Consistent Ordinal Regression Based On Conditional
    Probabilities", 2021, arXiv 2111.08851.
    """

    classes: tuple[str, ...]
    kind = "ordinal"
    score_name = "quadratic_kappa"

    @property
    def outputs(self) -> int:
        """One per step between neighboring classes."""
        return len(self.classes) - 1

    @property
    def columns(self) -> tuple[str, ...]:
        """p_<class>."""
        return tuple(f"p_{name}" for name in self.classes)

    @property
    def output_names(self) -> tuple[str, ...]:
        """`above <class>` for each step."""
        return tuple(f"above {name}" for name in self.classes[:-1])

    def fitted(self, target: Array) -> Self:
        """Every class has to be there, else some step is never seen."""
        known = target[~np.isnan(target)]
        if len(self.classes) < 2 or set(known.tolist()) != set(range(len(self.classes))):
            found = sorted({int(v) for v in known})
            raise TrainingDataError(f"the training slides have the grades {found} of {list(self.classes)}: all needed.")
        return self

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy of the steps that the slide takes part in, divided by all steps."""
        y = target  # (B, 1)
        step = torch.arange(self.outputs, device=logits.device)
        counts = y >= step  # NaN compares false
        values = binary_cross_entropy_with_logits(logits, (y > step).to(logits.dtype), reduction="none")
        return torch.where(counts, values, torch.zeros_like(values)).sum(dim=1) / self.outputs

    def answer(self, logits: Array) -> Array:
        """Probabilities of the classes."""
        above = np.cumprod(1 / (1 + np.exp(-np.clip(logits, -500, 500))), axis=1)
        ones, zeros = np.ones((len(above), 1)), np.zeros((len(above), 1))
        p: Array = np.concatenate([ones, above], axis=1) - np.concatenate([above, zeros], axis=1)
        return p

    def score(self, target: Array, answer: Array) -> float | None:
        """Kappa with quadratic weights of the most probable class."""
        known = ~np.isnan(target[:, 0])
        return quadratic_kappa(target[known, 0].astype(int), answer[known].argmax(axis=1), len(self.classes))


def quadratic_kappa(a: np.ndarray, b: np.ndarray, classes: int) -> float | None:
    """Agreement beyond chance, disagreements weighing by their square; None where both always say the same class.

    Source: Cohen 1968, doi:10.1037/h0026256.
    """
    if not len(a):
        return None
    seen = np.zeros((classes, classes))
    np.add.at(seen, (a, b), 1)
    cost = (np.arange(classes)[:, None] - np.arange(classes)) ** 2
    chance = np.outer(seen.sum(axis=1), seen.sum(axis=0)) / len(a)
    expected = float((cost * chance).sum())
    return 1 - float((cost * seen).sum()) / expected if expected else None
