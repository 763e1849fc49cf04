"""What is asked of a slide: the size of the head's output, the loss, and what the output means."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Self, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mil.errors import TrainingDataError

Array: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True)
class Task(abc.ABC):
    """A question to each slide. Targets are float64, (n, `width`); NaN stands for what is not known, and costs nothing.

    A task is made from what the user says, `fitted` to the training targets (scales, weights, time bins), and stored
    with the model by `spec`.
    """

    kind: ClassVar[str] = ""
    width: ClassVar[int] = 1
    score_name: ClassVar[str] = ""

    @property
    @abc.abstractmethod
    def outputs(self) -> int:
        """Number of the head's outputs C."""

    @property
    @abc.abstractmethod
    def columns(self) -> tuple[str, ...]:
        """Names of what `answer` gives."""

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the head's outputs, of each of which may be asked why (C,); the columns where these are as many."""
        return self.columns

    @abc.abstractmethod
    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Loss of each slide (B,) from logits (B, C) and targets (B, `width`); 0 where the target is not known."""

    @abc.abstractmethod
    def answer(self, logits: Array) -> Array:
        """What the logits (n, C) mean: (n, P), see `columns`."""

    @abc.abstractmethod
    def score(self, target: Array, answer: Array) -> float | None:
        """One number that is larger for better answers (`score_name`); None where it is not defined."""

    def encode(self, labels: NDArray[Any]) -> Array:
        """Return labels as targets (n, width).

        Raises:
            TrainingDataError: they have another shape, or values that the task does not know.
        """
        target = np.asarray(labels, dtype=np.float64)
        target = target[:, None] if target.ndim == 1 else target
        if target.ndim != 2 or target.shape[1] != self.target_width():
            raise TrainingDataError(
                f"{self.kind} labels have shape {np.shape(labels)}, wanted (n, {self.target_width()}): "
                "one row per slide."
            )
        return target

    def target_width(self) -> int:
        """Columns of its targets."""
        return self.width

    def known(self, target: Array) -> NDArray[np.bool_]:
        """Which slides have something to learn from, (n,)."""
        return np.asarray(~np.isnan(target).all(axis=1))

    def fitted(self, target: Array) -> Self:
        """Return the task with what it takes from the training targets.

        Raises:
            TrainingDataError: nothing can be learned from them.
        """
        del target
        return self

    def full_loss(self, logits: Tensor, target: Tensor) -> float:
        """Mean loss of a whole side, (n, C) and (n, width)."""
        known = ~torch.isnan(target).all(dim=1)
        return float(self.loss(logits[known], target[known]).mean()) if bool(known.any()) else 0.0

    def spec(self) -> dict[str, Any]:
        """What JSON can hold and `mil.tasks.task_from` builds the same task from."""
        return {"kind": self.kind, **asdict(self)}


def masked(values: Tensor, known: Tensor) -> Tensor:
    """`values` where `known`, else 0 with no gradient."""
    return torch.where(known, values, torch.zeros_like(values))


def mean_known(values: Sequence[float | None]) -> float | None:
    """Mean of the numbers that are there; None without one."""
    there = [value for value in values if value is not None and np.isfinite(value)]
    return float(np.mean(there)) if there else None
