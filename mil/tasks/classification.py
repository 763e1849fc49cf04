"""One class of several that exclude each other."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy

from mil.errors import TrainingDataError
from mil.metrics import auc

from .base import Array, Task, masked, mean_known


@dataclass(frozen=True)
class Classification(Task):
    """Softmax over classes; the target is a class number.

    Attributes:
        classes: names; target i means `classes[i]`.
        class_weights: "balanced" (inverse to the class's number of slides, 1 on average), "none", or a number over 0
            per class. The loss of a slide is multiplied by the weight of its class.
        weights: the numbers, once fitted.
    """

    classes: tuple[str, ...]
    class_weights: str | tuple[float, ...] = "balanced"
    weights: tuple[float, ...] = ()
    kind = "classification"
    score_name = "auc"

    @property
    def outputs(self) -> int:
        """One per class."""
        return len(self.classes)

    @property
    def columns(self) -> tuple[str, ...]:
        """p_<class>."""
        return tuple(f"p_{name}" for name in self.classes)

    @property
    def output_names(self) -> tuple[str, ...]:
        """The classes."""
        return self.classes

    def encode(self, labels: NDArray[Any]) -> Array:
        """Check that every label names a class."""
        target = super().encode(labels)
        known = target[~np.isnan(target)]
        wrong = known[(known < 0) | (known >= len(self.classes)) | (known != np.floor(known))]
        if wrong.size:
            raise TrainingDataError(
                f"label {wrong[0]:g} names no class; there are {len(self.classes)}: {list(self.classes)}."
            )
        return target

    def fitted(self, target: Array) -> Self:
        """Fix the weights of the classes; every class has to be there."""
        known = target[~np.isnan(target)].astype(np.int64)
        count = np.bincount(known, minlength=len(self.classes))
        if len(self.classes) < 2 or not count.all():
            found = [name for name, n in zip(self.classes, count, strict=True) if n]
            raise TrainingDataError(
                f"the training slides are all of {found}, the classes are {list(self.classes)}: nothing can be told "
                "apart. Every class needs training slides."
            )
        return replace(self, weights=class_weights(self.class_weights, count))

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy times the weight of the class."""
        known = ~torch.isnan(target[:, 0])
        number = torch.nan_to_num(target[:, 0]).long()
        return masked(cross_entropy(logits, number, weight=self._weight(logits), reduction="none"), known)

    def full_loss(self, logits: Tensor, target: Tensor) -> float:
        """Divided by the sum of the weights: a side with more slides of one class is not another scale."""
        known = ~torch.isnan(target[:, 0])
        if not bool(known.any()):
            return 0.0
        number = target[known, 0].long()
        return float(cross_entropy(logits[known], number, weight=self._weight(logits)))

    def _weight(self, like: Tensor) -> Tensor:
        return like.new_tensor(self.weights or [1.0] * len(self.classes))

    def answer(self, logits: Array) -> Array:
        """Probabilities of the classes."""
        return softmax(logits)

    def score(self, target: Array, answer: Array) -> float | None:
        """AUC; with more than two classes the mean over those present, one against the rest."""
        known = ~np.isnan(target[:, 0])
        y, p = target[known, 0], answer[known]
        columns = [1] if len(self.classes) == 2 else range(len(self.classes))
        return mean_known([auc(y == c, p[:, c]) for c in columns if 0 < (y == c).sum() < len(y)])


def class_weights(wanted: str | tuple[float, ...], count: NDArray[np.integer]) -> tuple[float, ...]:
    """Weight of each class by what the user says and the number of its slides (C,).

    Raises:
        TrainingDataError: the weights mean nothing.
    """
    if isinstance(wanted, tuple):
        if len(wanted) != len(count):
            raise TrainingDataError(f"{len(wanted)} class weights for {len(count)} classes.")
        if not all(math.isfinite(weight) and weight > 0 for weight in wanted):
            raise TrainingDataError(f"class_weights={wanted}: every weight must be over 0.")
        return tuple(float(weight) for weight in wanted)
    if wanted not in ("balanced", "none"):
        raise TrainingDataError(f"class_weights={wanted!r}: use 'balanced', 'none' or numbers.")
    if wanted == "none":
        return (1.0,) * len(count)
    balanced = (count.sum() / (len(count) * count)).astype(np.float32)
    return tuple(float(weight) for weight in balanced)


def softmax(logits: Array) -> Array:
    """Softmax over the last axis, float64."""
    out: Array = torch.softmax(torch.as_tensor(logits, dtype=torch.float64), dim=-1).numpy()
    return out
